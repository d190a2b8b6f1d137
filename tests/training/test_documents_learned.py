"""`selfdistill learn`: what is refused, what is written of questions, and a whole learning that was stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.config import from_settings, load_config
from selfdistill.data.documents import Passage
from selfdistill.runs import no_callback, read_run
from selfdistill.training import documents
from selfdistill.training.document_questions import DocumentOptions, Reader, write_questions
from selfdistill.training.session import open_renderer

TEXT = "# Tor\n\nTor was founded by Mara.\n\nTor makes blue paper."
SMALL = (
    *("device=cpu", "sampling.max_new_tokens=8", "lora.rank=2", "tasks_per_step=2", "rollouts_per_task=2"),
    *("guards.preflight=off", "evaluation.tasks=3", "context.max_prompt_tokens=128", "context.max_teacher_tokens=160"),
)
runner = CliRunner()


def learn(*words: str) -> tuple[int, str]:
    found = runner.invoke(app, ["learn", *words], env={"COLUMNS": "200"})
    return found.exit_code, found.output


def with_context(model: Path, folder: Path, tokens: int) -> Path:
    """The tiny model with a context of so many tokens."""
    about, target = json.loads((model / "config.json").read_text()), folder / f"context-{tokens}"
    shutil.copytree(model, target)
    (target / "config.json").write_text(json.dumps({**about, "max_position_embeddings": tokens}))
    return target


def test_input_that_cannot_be_learned_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    notes, used = tmp_path / "notes.md", tmp_path / "used"
    notes.write_text(TEXT)
    used.mkdir()
    (used / "file").write_text("x")
    for words, message in (
        ((), "no document is named"),
        ((str(tmp_path / "nowhere"),), "nowhere: No such file"),
        ((str(notes), "documents.question=3"), "questions"),
        ((str(notes), "documents.held_out=1"), "held_out"),
        ((str(notes), "optimiser.lrr=3"), "optimiser.lr"),
        ((str(notes), "--known", str(tmp_path / "nowhere.jsonl")), "nowhere.jsonl"),
        ((str(notes), "--out", str(used)), "already in use"),
        (("--resume", str(used)), "no directory of `learn`"),
        ((str(notes), "--resume", str(used)), "keeps its documents"),
    ):
        code, output = learn(*words)
        assert code == 2, (words, output)
        assert message in output, (words, output)


def test_a_model_that_writes_no_question_is_refused_with_the_count(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tor.md").write_text(TEXT)
    own, out = ("documents.questions=1", *SMALL), str(tmp_path / "out")
    narrow, roomy = (with_context(model_dir, tmp_path, tokens) for tokens in (200, 2048))
    code, output = learn(f"{tmp_path}/tor.md", "--model", str(narrow), "--out", str(tmp_path / "narrow"), *own)
    assert code == 2
    assert "the model reads too little text" in output
    code, output = learn(f"{tmp_path}/tor.md", "--model", str(roomy), "--out", out, *own)
    assert code == 2
    assert "the model wrote no question that can be used" in output
    assert "0 questions about 1 passages" in output
    assert f"learn --resume {out}" in learn(str(tmp_path), "--out", out)[1], "a second begin names the way on"


@dataclass(frozen=True)
class Scripted(Reader):
    """A model that writes given lines."""

    def texts(
        self, prompts: object, uids: object, temperature: float, most: int, what: str
    ) -> list[str]:  # what is written, by the name of the draw
        return [self.line(uid) for uid in uids]  # type: ignore[attr-defined]

    def line(self, uid: str) -> str:
        if uid.startswith("questions"):
            if uid.endswith("-1-1"):  # the second sentence, when each is read alone
                return "Who came first? | Mara"
            return "Who founded Tor? | Mara\nWhat does Tor make? | paper\nWhere is Tor?\nWho founded Tor? | Mara"
        if uid.startswith("wordings"):
            return "By whom was Tor founded?\nWho founded Tor?\nWho was the founder of Tor?"
        return "Hill." if uid.startswith("answer") else "It was Mara, I think."


def test_questions_are_kept_that_are_answered_alike_with_the_passage(model_dir: Path) -> None:
    config = load_config(None, [("model", str(model_dir)), *SMALL], base=documents.SETTINGS)
    reader = Scripted(None, open_renderer(config, no_callback), config, no_callback)  # type: ignore[arg-type]
    seen: set[str] = set()
    found, dropped = write_questions(reader, [Passage("p", TEXT)], DocumentOptions(tries=1), seen)
    (question,) = found["p"]
    assert (question.text, question.answer) == ("Who founded Tor?", "Mara")
    assert question.wordings == ("By whom was Tor founded?", "Who was the founder of Tor?")
    assert dropped["p"] == {
        "answer not in the text": 1, "twice": 1, "not answered alike with the passage": 1,
    }  # fmt: skip


def test_each_sentence_is_read_alone_after_the_passage(model_dir: Path) -> None:
    config = load_config(None, [("model", str(model_dir)), *SMALL], base=documents.SETTINGS)
    reader = Scripted(None, open_renderer(config, no_callback), config, no_callback)  # type: ignore[arg-type]
    found, _ = write_questions(reader, [Passage("p", TEXT)], DocumentOptions(tries=2), set())
    assert [q.text for q in found["p"]] == ["Who founded Tor?", "Tor: Who came first?"], "a nameless one has the title"


def test_a_learning_goes_on_where_it_was_and_reports_before_and_after(model_dir: Path, tmp_path: Path) -> None:
    """From written questions on: rows, the measure before, an ordinary run, the measure after, each made once."""
    (tmp_path / "tor.md").write_text(TEXT)
    (tmp_path / "known.jsonl").write_text('{"prompt": "Say yes", "answer": "yes"}\n')
    out = tmp_path / "out"
    config = load_config(
        None, [("model", str(with_context(model_dir, tmp_path, 2048))), ("steps", 2), *SMALL], base=documents.SETTINGS
    )
    options = DocumentOptions(held_out=0.5, known=str(tmp_path / "known.jsonl"))
    documents.prepare([str(tmp_path / "tor.md")], config, options, out, steps=True)
    written = [
        {"text": "Who founded Tor?", "answer": "Mara", "wordings": ["Whose town is Tor?", "Who began Tor?"]},
        {"text": "What does Tor make?", "answer": "blue paper", "wordings": []},
    ]
    (out / "questions.jsonl").write_text(json.dumps({"passage": "0001-001", "questions": written, "dropped": {}}))
    code, output = learn("--resume", str(out))
    assert code == 0, output
    rows = {name: [json.loads(line) for line in (out / name).read_text().splitlines()]
            for name in ("train.jsonl", "held_out.jsonl", "before.jsonl", "after.jsonl")}  # fmt: skip
    kinds = [row["kind"] for name in ("train.jsonl", "held_out.jsonl") for row in rows[name]]
    assert sorted(kinds) in (["train", "train", "unseen", "wording"], ["train", "unseen"])
    assert all(row["document"].startswith("# Tor\n\nTor was founded") for row in rows["train.jsonl"])
    assert [row["kind"] for row in rows["before.jsonl"]] == [row["kind"] for row in rows["after.jsonl"]]
    run = read_run(out / "run")
    assert [step.samples for step in run.steps] == [4, 4]
    assert run.config["settings"]["method"]["name"] == "sdft"
    assert run.config["settings"]["context"]["templates"]["message"].endswith(
        "mentioning a text or passage: {question}"
    )
    record = next(run.rollouts())
    assert record.context["document"].startswith("# Tor")
    assert "questions that were not trained" in output
    assert "known tasks" in output
    assert f"selfdistill chat --model {run.model_dir}" in output
    from_settings(run.config["settings"])
    before = (out / "run" / "metrics.jsonl").read_bytes()
    assert learn("--resume", str(out))[0] == 0
    assert (out / "run" / "metrics.jsonl").read_bytes() == before, "nothing is done twice"
