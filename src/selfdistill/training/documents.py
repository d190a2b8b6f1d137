"""Knowledge from documents: the model writes questions about each passage, and learns to answer them without it.

    <out>/learn.json        settings                       documents.jsonl   the texts, as they were read
          questions.jsonl   what was written, a passage a line: what is usable, and why the rest is not
          train.jsonl       rows of the run                held_out.jsonl    questions that are not trained
          before.jsonl      answers to these and to known tasks, without and with the passage; after.jsonl likewise
          run/              an ordinary run directory

Each file is written whole, and what is there is not made again: a command that was stopped is resumed from them.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from selfdistill.config import RunConfig, from_settings, read_saved, resolved
from selfdistill.data.documents import Passage, passages, read_documents
from selfdistill.data.known import known_tasks
from selfdistill.errors import DataError, ModelError, RunError
from selfdistill.files import json_object, numbered_lines, read_text
from selfdistill.options import build, plain
from selfdistill.prompts import questions as wording
from selfdistill.prompts.questions import Question, folded, holds
from selfdistill.runs import Callback, Estimate, Note, read_run
from selfdistill.runs.events import Interrupted
from selfdistill.runs.stats import clustered_share, paired_difference
from selfdistill.runs.store import CONFIG, SUMMARY, refuse_in_use, write_atomic
from selfdistill.training.document_questions import LEAST, DocumentOptions, Reader, write_questions
from selfdistill.training.loop import train
from selfdistill.training.session import open_policy, open_renderer

PROMPT = (
    "{context}\n\nAnswer this question in one sentence, from memory, without mentioning a text or passage: {question}"
)
"""What the teacher reads. With the published prompt, in which the question comes first, it mentions a passage, and so
does the student, who reads none."""

SETTINGS: Mapping[str, Any] = {
    "method": {"name": "sdft", "context": {"kind": "document"}, "skip_first": 0},
    "context": {"templates": {"message": PROMPT}},
    "teacher": {"kind": "frozen"},
    "env": {"name": "text", "compare": "words"},
    "lora": {"rank": 32},
    "optimiser": {"lr": 5e-4, "warmup_steps": 5},
    "tasks_per_step": 8,
    "rollouts_per_task": 4,
    "sampling": {"max_new_tokens": 64},
    "evaluation": {"every": 25, "tasks": 100},
}
"""Of a run that learns from documents, where they are not the defaults of a run."""

LEARN, TEXTS, QUESTIONS = "learn.json", "documents.jsonl", "questions.jsonl"
TRAIN, HELD_OUT, BEFORE, AFTER, RUN = "train.jsonl", "held_out.jsonl", "before.jsonl", "after.jsonl", "run"
TOGETHER = 16  # passages about which questions are written at a time
WORDING, UNSEEN, KNOWN = "wording", "unseen", "known"


@dataclass(frozen=True, slots=True)
class Compared:
    """One kind of question: shares of right answers before and after, and the paired change."""

    name: str
    before: Estimate
    after: Estimate
    change: Estimate


def learn(out: Path, callback: Callback) -> list[Compared]:
    """Begins, or resumes, what `prepare` described in `out`. Raises `Interrupted` at Ctrl-C, and what a run
    raises; `DataError` where no question can be used."""
    settings, options = _settings(out), options_of(out)
    config = from_settings(settings["settings"])
    with _stopped_in(out):
        if not (out / BEFORE).exists():
            reader = reader_of(config, callback)
            training_rows(out, reader, options)
            _measure(out, BEFORE, reader, options)
            del reader
        path, rows = out / RUN, len(_lines(out / TRAIN))
        if not (path / SUMMARY).exists():
            resume = (path / CONFIG).exists()
            steps = config.steps if settings["steps"] else -(-rows * options.passes // config.tasks_per_step)
            files = {"data": str(out / TRAIN), "eval_data": str(out / HELD_OUT), "out": str(path), "steps": steps}
            own = read_saved(path, from_settings) if resume else from_settings({**resolved(config), **files})
            train(own, callback, resume=resume)
        if not (out / AFTER).exists():
            learned = replace(config, model=str(model_of(out)), lora=None)
            _measure(out, AFTER, reader_of(learned, callback), options)
    return compared(_lines(out / BEFORE), _lines(out / AFTER))


def prepare(documents: Sequence[str], config: RunConfig, options: DocumentOptions, out: Path, *, steps: bool) -> None:
    """Reads the documents and writes the settings; `steps`: the number of steps was chosen. Raises `DataError`, and
    `RunError` for a directory that is in use."""
    known_tasks(options.known)
    texts = read_documents(documents)
    if (out / LEARN).exists():
        do = f"resume it with selfdistill learn --resume {out}, or choose another --out"
        raise RunError("documents are learned in this directory already", got=out, do=do)
    refuse_in_use(out)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / TEXTS, ({"name": name, "text": text} for name, text in texts.items()))
    about = {"documents": plain(options), "settings": resolved(config), "steps": steps}
    write_atomic(out / LEARN, json.dumps(about, indent=2) + "\n")


def _settings(out: Path) -> dict[str, Any]:
    return json_object(read_text(out / LEARN, what="the settings"), str(out / LEARN))


def options_of(out: Path) -> DocumentOptions:
    """How documents become questions there."""
    return build(DocumentOptions, _settings(out)["documents"])


def model_of(out: Path) -> Path:
    """The learned weights."""
    return read_run(out / RUN).model_dir


def refuse_other(out: Path) -> None:
    """Raises `RunError` for a directory in which no learning was begun."""
    if not (out / LEARN).exists():
        do = "name the directory that `selfdistill learn` printed; a run is resumed by `selfdistill train --resume`"
        raise RunError("this is no directory of `learn`", got=f"{out} has no {LEARN}", do=do)


def compared(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """The kinds of questions with their accuracies, clustered by passage."""
    found = list[Compared]()
    for kinds, read, name in (
        ((WORDING,), "bare", "trained questions, in other words"),
        ((UNSEEN,), "bare", "questions that were not trained"),
        ((WORDING, UNSEEN), "read", "both, with the document to read"),
        ((KNOWN,), "bare", "known tasks"),
    ):
        old, new = (_clusters(rows, kinds, read) for rows in (before, after))
        if old:
            changes = [fmean(new[passage]) - fmean(own) for passage, own in old.items()]
            before_after = [clustered_share([(sum(own), len(own)) for own in side.values()]) for side in (old, new)]
            found.append(Compared(name, before_after[0], before_after[1], paired_difference(changes)))
    return found


def _clusters(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], read: str) -> dict[str, list[bool]]:
    """Which answers of these kinds are right, by passage; each known task is one of its own."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        if row["kind"] in kinds:
            found.setdefault(row["passage"] or row["id"], []).append(row[read])
    return found


def reader_of(config: RunConfig, callback: Callback) -> Reader:
    """The model of these settings, which is not trained."""
    policy = open_policy(replace(config, lora=None), callback, trained=False)
    return Reader(policy, open_renderer(config, callback), config, callback)


def _questions(out: Path, reader: Reader, options: DocumentOptions) -> list[tuple[Passage, list[Question]]]:
    """The usable questions about every passage. Raises `DataError` where there is none."""
    texts = {row["name"]: row["text"] for row in _lines(out / TEXTS)}
    context = reader.renderer.context_length
    around = len(reader.renderer.prompt(wording.request("", options.questions)))
    longest = min(options.passage_tokens, (context - around) // 2)
    if longest < LEAST:
        got = f"{context} tokens, of which the request for questions takes {around}"
        raise ModelError("the model reads too little text to write questions about it", got=got)
    every = passages(texts, lambda text: len(reader.renderer.encode(text)), longest)
    rows = _lines(out / QUESTIONS)
    reader.callback(Note(f"{len(every)} passages of {len(texts)} documents"))
    while len(rows) < len(every):
        own = every[len(rows) : len(rows) + TOGETHER]
        seen = {folded(text) for row in rows for found in row["questions"] for text in _all(_question(found))}
        found, dropped = write_questions(reader, own, options, seen, f"passage {len(rows) + 1} of {len(every)}")
        for passage in own:
            kept = [plain(question) for question in found[passage.id]]
            rows.append({"passage": passage.id, "questions": kept, "dropped": dropped[passage.id]})
        _write(out / QUESTIONS, rows)
    counts = sum((Counter(row["dropped"]) for row in rows), Counter[str]())
    usable, reasons = sum(len(row["questions"]) for row in rows), ", ".join(f"{n} {why}" for why, n in counts.items())
    written = usable + sum(counts.values())
    if not usable:
        raise DataError(
            "the model wrote no question that can be used",
            got=f"{written} questions about {len(every)} passages" + f" ({reasons})" * bool(reasons),
            why="a question counts if the model answers it from the passage each time, in words of the passage",
            do="use a larger model, or one that follows instructions, or give rows of your own to `selfdistill train`",
        )
    reader.callback(Note(f"{usable} of {written} questions can be used" + f"; dropped: {reasons}" * bool(reasons)))
    return [(p, [_question(q) for q in row["questions"]]) for p, row in zip(every, rows, strict=True)]


def training_rows(out: Path, reader: Reader, options: DocumentOptions) -> list[dict[str, Any]]:
    """The rows of the run; they and the held-out ones are written where they are not there. Raises `DataError`."""
    if (out / HELD_OUT).exists():
        return _lines(out / TRAIN)
    found = _questions(out, reader, options)
    every = [(passage, number, q) for passage, own in found for number, q in enumerate(own, 1)]
    order, count = random.Random(f"held out {reader.config.seed}"), int(options.held_out * len(every))
    apart = set(order.sample(range(len(every)), count))
    train, held_out = list[dict[str, Any]](), list[dict[str, Any]]()
    for place, (passage, number, question) in enumerate(every):
        for version, text in enumerate(_all(question)):
            kind = UNSEEN if place in apart else WORDING if version == 1 else ""
            if kind == UNSEEN and version:
                continue
            row = {"id": f"{passage.id}-{number}-{version}", "prompt": text, "answer": question.answer}
            row |= {"document": passage.text, "passage": passage.id, "kind": kind or "train"}
            (held_out if kind else train).append(row)
    _write(out / TRAIN, train)
    _write(out / HELD_OUT, held_out or train[:1])  # a run refuses an empty file
    return train


def _measure(out: Path, name: str, reader: Reader, options: DocumentOptions) -> None:
    """Answers the held-out questions, without and with the passage, and the known tasks; greedy."""
    limit, rows = reader.config.evaluation.tasks, list[dict[str, Any]]()
    held_out = _lines(out / HELD_OUT)
    for kind in (WORDING, UNSEEN):
        rows += [row for row in held_out if row["kind"] == kind][:limit]
    for task in known_tasks(options.known)[:limit]:
        about = {"prompt": task.messages[-1].content, "answer": str(task.spec.get("answer") or ""), "document": ""}
        rows.append({"id": task.id, **about, "passage": "", "kind": KNOWN})
    what = f"answering held-out questions and known tasks {Path(name).stem} training"
    bare = reader.answers([(row["prompt"], "") for row in rows], "bare", 0.0, what)
    read = reader.answers([(row["prompt"], row["document"]) for row in rows if row["document"]], "read", 0.0, what)
    read += [[""]] * (len(bare) - len(read))  # known tasks have none, and come last
    found = list[dict[str, Any]]()
    for row, (alone,), (informed,) in zip(rows, bare, read, strict=True):
        right = {"bare": holds(row["answer"], alone), "read": holds(row["answer"], informed)}
        about = {key: row[key] for key in ("id", "kind", "passage", "prompt", "answer")}
        found.append({**about, **right, "bare_text": alone, "read_text": informed})
    _write(out / name, found)


@contextmanager
def _stopped_in(out: Path) -> Iterator[None]:
    """Ctrl-C names the command that resumes."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(out, getattr(stop, "step", None), "learn") from None


def _all(question: Question) -> tuple[str, ...]:
    return (question.text, *question.wordings)


def _question(found: Mapping[str, Any]) -> Question:
    return Question(found["text"], found["answer"], tuple(found["wordings"]))


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json_object(line, f"{path}:{number}") for number, line in numbered_lines(path)]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
