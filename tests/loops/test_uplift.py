"""The test before training: paired gains, honest controls, and a rule that says go or no go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core_parts import QUESTION, group, rollout
from selfdistill.config import RunConfig, from_settings
from selfdistill.errors import WorldError
from selfdistill.loops.uplift import (
    KINDS,
    Gain,
    Uplift,
    bootstrap_mean,
    copied,
    measure_uplift,
    other_contexts,
    paired,
    same_text,
)
from selfdistill.runs import Estimate, Quiet, read_run, share
from selfdistill.types import Context, Task

FENCED = "Sure:\n```python\ndef f(x):\n    return x\n```"


WORLDS = Path(__file__).with_name("uplift_worlds.py")


def letters(model: Path, world: str, **changes: object) -> RunConfig:
    """A tiny model in a world of letters."""
    base = {
        "model": str(model), "world": f"{WORLDS}:{world}", "device": "cpu", "rollouts_per_task": 4,
        "sampling": {"max_new_tokens": 8}, "evaluation": {"rollouts": 2},
    }  # fmt: skip
    return from_settings({**base, **changes})


def told(name: str) -> Context:
    return Context("feedback", feedback=name)


def gain_of(value: float, low: float, shuffled: float | None = 0.0, tasks: int = 16, kind: str = "feedback") -> Gain:
    other = None if shuffled is None else Estimate(shuffled, tasks, shuffled, shuffled)
    return Gain(kind, tasks, 0.1, 0.1 + value, Estimate(value, tasks, low, value + 0.1), other)


@pytest.mark.parametrize(
    ("gain", "against"),
    [
        (gain_of(0.5, 0.3), ""),
        (gain_of(0.5, 0.0), "no gain that is sure"),
        (gain_of(-0.5, -0.7), "no gain that is sure"),
        (gain_of(0.5, 0.3, shuffled=0.4), "another task's context does as well"),
        (gain_of(0.5, 0.3, shuffled=0.39), ""),
        (gain_of(1.0, 1.0, tasks=5), "fewer than 6 tasks"),
        (gain_of(0.5, 0.3, shuffled=None), "no other context to compare with"),
    ],
)
def test_go_needs_a_sure_gain_that_another_context_does_not_give(gain: Gain, against: str) -> None:
    assert gain.against == against
    verdict = Uplift(share(1, 10), (gain,)).verdict
    assert verdict.startswith("No go" if against else "Go: the model is better when it is told more, with feedback (+")


def test_copies_are_said() -> None:
    copies = Gain("solution", 9, 0.0, 1.0, Estimate(1.0, 9, 1.0, 1.0), None, copied=0.6)
    assert "told by solution are copies" in Uplift(share(1, 10), (copies,)).caveat
    assert Uplift(share(1, 10), (gain_of(0.5, 0.3),)).caveat == ""


def test_the_interval_is_of_the_paired_differences() -> None:
    """Task by task 1 − 0, 0.5 − 0.5, 1 − 0.5 and 0 − 0: a mean of 3/8 over four tasks, also when tasks differ a lot."""
    bare = {"a": [0.0], "b": [1.0, 0.0], "c": [0.0, 1.0], "d": [0.0]}
    better = {"a": [1.0], "b": [0.0, 1.0], "c": [1.0], "d": [0.0]}
    made = [
        {name: [rollout(n, r) for n, r in enumerate(rewards)] for name, rewards in side.items()}
        for side in (bare, better)
    ]
    found = paired(*made, list("abcd"), seed=0)
    assert (found.value, found.n) == (0.375, 4)
    assert found.low == pytest.approx(0.0, abs=0.13)
    assert found.high == pytest.approx(0.75, abs=0.13)


def test_the_bootstrap_agrees_with_theory_and_with_itself() -> None:
    """50 ones among 100: the mean's standard error is 0.05, its interval 0.5 ± 0.098."""
    values = [1.0] * 50 + [0.0] * 50
    found = bootstrap_mean(values, seed=3)
    assert (found.low, found.high) == (pytest.approx(0.402, abs=0.02), pytest.approx(0.598, abs=0.02))
    assert bootstrap_mean(values, seed=3) == found
    assert bootstrap_mean([0.25] * 9, 0) == Estimate(0.25, 9, 0.25, 0.25)
    assert bootstrap_mean([], 0).n == 0


def test_each_kind_of_context_is_found_where_it_is() -> None:
    task = Task("t", QUESTION.messages, demonstration="shown", document="known")
    mixed = group([0.0, 1.0, 0.0], "wrong", task=task)
    texts = {kind: [c.feedback or c.solution or c.demonstration or c.document for c in find(mixed)]
             for kind, find in KINDS.items()}  # fmt: skip
    assert texts == {
        "feedback": ["wrong 0", "wrong 2"], "solution": ["answer 1"], "demonstration": ["shown"],
        "document": ["known"], "reply": [],
    }  # fmt: skip
    assert [len(find(group([1.0]))) for find in KINDS.values()] == [0] * 5, "a lone success teaches nobody"


def test_another_tasks_context_is_never_the_own_one_nor_equal_to_it() -> None:
    tasks = [Task(name, QUESTION.messages) for name in "abcd"]
    known = {"a": [told("x")], "b": [told("x")], "c": [told("y"), told("z")], "d": [told("w")]}
    found = other_contexts(tasks, known, seed=1)
    assert set(found) == set("abcd")
    assert all(not set(found[name]) & set(known[name]) for name in found)
    assert other_contexts(tasks, known, seed=1) == found
    assert other_contexts(tasks[:2], {name: known[name] for name in "ab"}, seed=1) == {}
    assert other_contexts(tasks[:1], {"a": [told("x")], "d": [told("w")]}, seed=1) == {"a": [told("w")]}


def test_a_copy_is_the_same_program_whatever_stands_around_it() -> None:
    assert same_text(FENCED, FENCED.removeprefix("Sure:\n").replace("    ", "\t"))
    assert same_text("the answer ", "the\nanswer")
    assert not same_text(FENCED, FENCED.replace("return x", "return y"))
    shown = Context("solution", solution="answer 1")
    pairs = [(rollout(1), shown), (rollout(2), shown), (rollout(3), told("wrong"))]
    assert copied(pairs) == 0.5
    assert copied(pairs[2:]) is None


def test_the_sapling_is_better_told_and_not_by_another_tasks_context(tmp_path: Path, heard) -> None:
    """Six coined verbs: it guesses none of them, and reads all of their dictionary entries."""
    settings = {"model": "sapling", "device": "cpu", "rollouts_per_task": 1, "out": str(tmp_path / "run")}
    world = {"name": "verbs", "verbs": 6, "steps": [1], "holdout": 1}
    found = measure_uplift(from_settings({**settings, "world": world}), heard)
    gains = {gain.kind: gain for gain in found.gains}
    assert found.bare.n == 6
    document = gains["document"]
    assert document.tasks == 6
    assert document.told > 0.8 > 0.3 > document.bare
    assert document.against == ""
    assert document.shuffled is not None
    assert document.shuffled.value < 0.3
    assert gains["demonstration"].copied is not None
    assert gains["demonstration"].copied > 0.8
    assert document.copied is None
    assert found.verdict.startswith("Go: ")
    run = read_run(tmp_path / "run")
    records = list(run.rollouts())
    assert len({record.uid for record in records}) == len(records)
    asked = {record.context_kind for record in records if record.stage == "informed"}
    assert {"feedback", "shuffled-feedback", "document", "shuffled-document"} <= asked
    assert run.evals_of("train")[0].accuracy == found.bare
    kept = json.loads((tmp_path / "run" / "uplift.json").read_text())
    assert kept["gains"][0]["kind"] == "feedback"


def test_a_world_that_says_nothing_of_use_is_no_go_and_one_that_breaks_an_error(model_dir: Path, heard) -> None:
    found = measure_uplift(letters(model_dir, "wordy"), heard)
    assert found.verdict.startswith("No go")
    assert {gain.kind for gain in found.gains} == {"feedback", "solution"}
    assert all(gain.against == "fewer than 6 tasks" for gain in found.gains)
    assert any("document: no task has any" in note for note in heard.notes)
    assert measure_uplift(letters(model_dir, "wordy"), Quiet()) == found, "it can be done again"
    assert measure_uplift(letters(model_dir, "silent"), Quiet()).gains == ()
    with pytest.raises(WorldError, match="more than half"):
        measure_uplift(letters(model_dir, "broken"), Quiet())


def test_contexts_that_do_not_fit_are_cut_and_said(model_dir: Path, heard) -> None:
    found = measure_uplift(letters(model_dir, "wordy", context={"max_teacher_tokens": 150}), heard)
    feedback = next(gain for gain in found.gains if gain.kind == "feedback")
    assert feedback.cut > 0
    assert any(f"feedback: {feedback.cut} contexts were cut to fit" in note for note in heard.notes)
    assert measure_uplift(letters(model_dir, "wordy", context={"max_teacher_tokens": 20}), heard).gains[0].left_out > 0
