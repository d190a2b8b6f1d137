"""Answers whose credit is asked for: words of the user's, and rollouts of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.analysis.credit_source import EXAMPLE, Texts, credit_of_rollout, credit_of_texts
from selfdistill.config import from_settings, resolved
from selfdistill.envs.verbs.env import fresh_verbs
from selfdistill.errors import DataError, ModelError, RunError
from selfdistill.runs import RolloutRecord, RunDir, read_run
from selfdistill.runs.events import no_callback
from selfdistill.test_time.config import solve_config
from selfdistill.test_time.solve import solve
from selfdistill.training.loop import train
from selfdistill.types import Context

ENVIRONMENTS = Path(__file__).parents[1] / "test_time" / "solve_envs.py"
VERB = fresh_verbs(16, (1, 2), 0)[0]
OTHER = fresh_verbs(16, (1, 2), 0)[2]
WRONG = "```python\ndef f(xs):\n    xs = xs[1:]\n    return xs\n```"
TELLS = Context("document", document=VERB.document)


def spoken(**changes: object) -> Texts:
    parts = {"question": VERB.messages[0].content, "answer": WRONG, "context": TELLS}
    return Texts(**{**parts, **changes})  # type: ignore[arg-type]


def a_run(path: Path, *records: RolloutRecord) -> Path:
    elsewhere = {"device": "cuda", "dtype": "bfloat16"}  # where the run was made, and nobody reads it
    settings = resolved(from_settings({"model": "sapling", **elsewhere}))
    with RunDir.create(path, {"settings": settings}) as run:
        run.append(*records)
    return path


def a_record(uid: str = "3-0-1", **changes: object) -> RolloutRecord:
    parts = {
        "step": 3, "uid": uid, "task": VERB.id, "prompt": VERB.messages[0].content, "completion": WRONG, "stop": "end",
        "reward": 0.0, "context_kind": "document", "context": {"document": VERB.document}, "advantage": -0.5,
    }  # fmt: skip
    return RolloutRecord(**{**parts, **changes})  # type: ignore[arg-type]


def test_the_sapling_reads_what_it_has_words_for() -> None:
    found = credit_of_texts(spoken(), no_callback, advantage=-1.0)
    assert found.model == "sapling"
    assert (found.advantage, found.question) == (-1.0, VERB.messages)
    assert found.blamed[0].text == "    xs = xs[1:]\n"
    assert found.error_visibility is not None
    assert not found.error_visibility.corrected


def test_other_words_need_another_model_and_it_is_said_which(monkeypatch) -> None:
    monkeypatch.setattr("selfdistill.analysis.credit_source.in_hub_cache", lambda name: False)
    with pytest.raises(ModelError) as error:
        credit_of_texts(EXAMPLE, no_callback)
    assert "function, that, returns" in error.value.got
    assert "--model" in error.value.do


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (spoken(answer=" \n"), "the answer is empty"),
        (spoken(question=""), "the question is empty"),
        (spoken(context=Context("none")), "there is no context"),
        (spoken(context=Context("feedback", feedback=" ")), "there is no context"),
    ],
)
def test_empty_texts_are_refused(texts: Texts, message: str) -> None:
    with pytest.raises(DataError, match=message):
        credit_of_texts(texts, no_callback)


def test_a_corrected_answer_that_corrects_nothing_is_not_compared() -> None:
    found = credit_of_texts(spoken(correct=WRONG), no_callback)
    assert found.error_visibility is not None
    assert not found.error_visibility.corrected


def test_a_rollout_is_read_from_its_record_and_corrected_by_its_run(tmp_path: Path) -> None:
    right = a_record("3-0-2", completion=VERB.demonstration, reward=1.0)
    others = [a_record(f"2-{n}-0", task=f"t{n}", context={"document": OTHER.document + f" {n}"}) for n in range(3)]
    run = a_run(tmp_path / "run", *others, a_record(), right)
    found = credit_of_rollout(run, "3-0-1", no_callback)
    assert found.question == VERB.messages
    assert found.context == TELLS
    assert found.advantage == -0.5
    assert found.error_visibility is not None
    assert found.error_visibility.corrected
    assert found.error_visibility.seen
    assert found.blamed[0].text == "    xs = xs[1:]\n"
    replied = credit_of_rollout(
        run, "3-0-1", no_callback, context=Context("reply", reply=VERB.user_reply), advantage=2.0
    )
    assert (replied.context.reply, replied.advantage) == (VERB.user_reply, 2.0)


def test_a_rollout_that_is_not_there_is_said_with_the_nearest(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", a_record(), a_record("3-0-2", context={}, context_kind="none"), a_record("4-1-0"))
    with pytest.raises(RunError) as error:
        credit_of_rollout(run, "3-0-7", no_callback)
    assert "did you mean '3-0-" in error.value.do
    assert "3, from 3-0-1 to 4-1-0" in error.value.why
    with pytest.raises(RunError, match="there is no such run") as error:
        credit_of_rollout(tmp_path / "runs", "3-0-1", no_callback)
    assert "did you mean 'run'?" in error.value.do
    with pytest.raises(DataError, match="this rollout has no context"):
        credit_of_rollout(run, "3-0-2", no_callback)
    with pytest.raises(DataError, match="there is no context"):
        credit_of_rollout(run, "3-0-1", no_callback, context=Context("feedback", feedback=""))


def test_feedback_that_nobody_distilled_is_a_context_too(tmp_path: Path, recorder) -> None:
    run = a_run(tmp_path / "run", a_record(context={}, feedback="Wrong answer."), a_record("1", stage="reflection"))
    found = credit_of_rollout(run, "3-0-1", recorder)
    assert found.context == Context("feedback", feedback="Wrong answer.")
    assert any("no checkpoint: read by sapling" in note for note in recorder.notes)
    credit_of_rollout(run, "1", recorder)
    assert any("stage 'reflection'" in note for note in recorder.notes)


def test_the_runs_checkpoint_reads_the_tokens_as_sampled(config_of, recorder) -> None:
    path = train(config_of("hashed", steps=1, checkpoint_every=1))
    record = next(r for r in read_run(path).rollouts() if r.log_ratio)
    found = credit_of_rollout(path, record.uid, recorder)
    assert len(found.tokens) == len(record.token_ids)
    assert [token.recorded for token in found.tokens] == list(record.log_ratio)
    assert any("read by step-000001" in note for note in recorder.notes)
    before = credit_of_rollout(path, record.uid, recorder, model=str(config_of("hashed").model))
    assert [t.log_ratio for t in before.tokens] == pytest.approx(list(record.log_ratio), abs=1e-3), (
        "as it was learned from"
    )


def a_search(strategy: str, model: Path, out: Path, batch: int = 4) -> Path:
    """Two rounds on each of two tasks by a tiny model that is never right; the second one's run."""
    settings = {
        "model": str(model), "env": f"{ENVIRONMENTS}:hints", "device": "cpu", "sampling.max_new_tokens": 8,
        "optimiser.lr": 1e-3, "checkpoint_every": 1, "strategy.batch": batch, "teacher.kind": "live",
    }  # fmt: skip
    config = solve_config(strategy, list(settings.items()), tasks=["q0", "q1"], limits={"budget": 2 * batch}, keep=True)
    solve(config, out=out)
    return out / "001-q1"


@pytest.mark.parametrize("strategy", ["self-distill", "hybrid"])
def test_a_rollout_of_a_search_is_read_as_it_was_learned_from(model_dir, tmp_path: Path, strategy: str) -> None:
    """An attempt of a hybrid had read another one's feedback: the student reads the question alone all the same."""
    path = a_search(strategy, model_dir, tmp_path / "search")
    record = next(r for r in read_run(path).rollouts() if r.step == 2 and r.log_ratio)
    found = credit_of_rollout(path, record.uid, no_callback, model=str(path / "checkpoints" / "step-000001"))
    assert [message.content for message in found.question] == ["Say yes or no."]
    assert (record.prompt == "Say yes or no.") == (strategy == "self-distill")
    assert found.context.feedback == record.feedback
    assert [token.log_ratio for token in found.tokens] == pytest.approx(list(record.log_ratio), abs=1e-3)


def test_where_nothing_was_learned_a_rollout_is_read_as_it_was_asked(model_dir, tmp_path: Path) -> None:
    path = a_search("multi-turn", model_dir, tmp_path / "search", batch=1)
    *_, last = read_run(path).rollouts()
    found = credit_of_rollout(path, last.uid, no_callback)
    assert [message.content for message in found.question] == [last.prompt]
    assert len(last.prompt) > len("Say yes or no."), "it had read the feedback on the first"
    assert found.context == Context("feedback", feedback=last.feedback)
    with pytest.raises(RunError, match=r"each of its tasks is a run of its own[\s\S]*000-q0, 001-q1"):
        credit_of_rollout(tmp_path / "search", last.uid, no_callback)
