"""The test before training: paired gains, honest controls, and a rule that says go or no go."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from core_parts import QUESTION, group, rollout
from selfdistill.analysis.context_gain import (
    KINDS,
    ContextGain,
    ContextGainReport,
    copied,
    decided,
    measure_context_gain,
    other_contexts,
    paired,
    same_text,
)
from selfdistill.config import RunConfig, from_settings
from selfdistill.errors import EnvError
from selfdistill.runs import Estimate, read_run
from selfdistill.runs.events import no_callback
from selfdistill.runs.stats import paired_difference, share
from selfdistill.types import Context, Task

FENCED = "Sure:\n```python\ndef f(x):\n    return x\n```"


ENVIRONMENTS = Path(__file__).with_name("gain_envs.py")


def letters(model: Path, env: str, **changes: object) -> RunConfig:
    """A tiny model in an environment of letters."""
    base = {
        "model": str(model), "env": f"{ENVIRONMENTS}:{env}", "device": "cpu", "rollouts_per_task": 4,
        "sampling": {"max_new_tokens": 8}, "evaluation": {"rollouts": 2, "temperature": 1.0},
    }  # fmt: skip
    return from_settings({**base, **changes})


def document_of(name: str) -> Context:
    return Context("feedback", feedback=name)


def gain_of(more: Sequence[int], than_control: Sequence[int], kind: str = "feedback") -> ContextGain:
    """From how many more answers were right, task by task, than without context and than with another task's."""
    gain = paired_difference([max(-1.0, min(1.0, d)) for d in more])
    return ContextGain(
        kind, len(more), 0.1, 0.1 + gain.value, gain, more=tuple(more), more_than_control=tuple(than_control)
    )


@pytest.mark.parametrize(
    ("gain", "against"),
    [
        (gain_of([1] * 6 + [0] * 4, [1] * 6 + [0] * 4), ""),
        (gain_of([1] * 4 + [0] * 6, [1] * 6 + [0] * 4), "the gain is not significant (p = 0.06)"),
        (gain_of([-1] * 6, [1] * 6), "the gain is not significant (p = 1.00)"),
        (gain_of([1] * 6, [1] * 3 + [-1] * 3), "not significantly better than another task's context (p = 0.66)"),
        (gain_of([1] * 5, [1] * 5), "cannot decide: it needs 6 tasks, and there are 5"),
        (gain_of([1] * 9, [1] * 5), "cannot decide: it needs 6 tasks, and there are 5"),
        (gain_of([1] * 9, []), "no other context to compare with"),
    ],
)
def test_go_needs_a_significant_gain_over_no_context_and_over_another_tasks(gain: ContextGain, against: str) -> None:
    gains = decided([gain])
    assert gains[0].against == against
    decision = ContextGainReport(share(1, 10), gains).decision
    go = "Go: the model answers significantly better with feedback (+"
    assert decision.startswith(go if not against else "No go" if "significant" in against else "Cannot decide")


def test_every_kind_that_is_tried_costs_the_others_what_it_could_have_won() -> None:
    """p = 1/64 on six tasks; another kind that wins as much as often doubles it, one that changes nothing does not."""
    six = [1] * 6 + [0, 0]
    assert [gain.p for gain in decided([gain_of(six, six)])] == [1 / 64]
    assert [gain.p for gain in decided([gain_of(six, six, kind) for kind in "ab"])] == [2 / 64] * 2
    assert decided([gain_of(six, six, "a"), gain_of([0] * 8, [0] * 8, "b")])[0].p == 1 / 64
    assert decided([gain_of(six, six, "a"), gain_of([1] * 3, [1] * 3, "b")])[0].p == 1 / 64, "too few to be tried"
    four = decided([gain_of([1] * 6, [1] * 6, kind) for kind in "abcd"])
    assert {gain.against for gain in four} == {"cannot decide: it needs 7 tasks, and there are 6"}, "4 / 64 > 0.05"


def simulated(rng: random.Random, n: int, samples: int, shares: Sequence[tuple[float, float, float]]) -> bool:
    """Whether any kind is a go in one drawn experiment: shares without, with, and with another task's context."""

    def right(share: float) -> list[int]:
        return [sum(rng.random() < share for _ in range(samples)) for _ in range(n)]

    bare, gains = right(shares[0][0]), []
    for number, (_, with_it, control) in enumerate(shares):
        own, other = right(with_it), right(control)
        differences = [[a - b for a, b in zip(own, than, strict=True)] for than in (bare, other)]
        gains.append(gain_of(*differences, kind=str(number)))
    return any(not gain.against for gain in decided(gains))


NOTHING = {
    "no context changes anything": lambda share: (share, share, share),
    "any context helps as much": lambda share: (share, min(1.0, share + 0.4), min(1.0, share + 0.4)),
    "another task's context misleads": lambda share: (share, share, 0.0),
}


@pytest.mark.parametrize("effect", NOTHING)
@pytest.mark.parametrize("n", [6, 7, 9, 12, 24])
def test_without_an_effect_there_is_a_false_go_once_in_20_at_most(n: int, effect: str) -> None:
    """One kind and five, one answer and four, rare, even and frequent successes; five kinds share the bare answers."""
    rng, repeats, found = random.Random(f"{n} {effect}"), 900 // n, []
    for kinds, samples, rate in itertools.product((1, 5), (1, 4), (0.03, 0.3, 0.5, 0.95)):
        go = sum(simulated(rng, n, samples, [NOTHING[effect](rate)] * kinds) for _ in range(repeats))
        found.append(go / repeats)
        assert go / repeats <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5, (kinds, samples, rate)
    assert sum(found) / len(found) <= 0.05


@pytest.mark.parametrize("kinds", [1, 3, 5])
def test_a_true_gain_is_seen_with_24_tasks(kinds: int) -> None:
    """Of several kinds one has an effect of .3: four answers a task, as where nothing is set; one is enough where none
    is right without context."""
    rng, repeats = random.Random(f"power {kinds}"), 100
    for samples, bare in ((4, 0.05), (4, 0.2), (4, 0.3), (4, 0.6), (1, 0.0)):
        shares = [(bare, bare + 0.3, bare), *[(bare, bare, bare)] * (kinds - 1)]
        assert sum(simulated(rng, 24, samples, shares) for _ in range(repeats)) / repeats >= 0.8, (samples, bare)


def test_copies_are_said() -> None:
    copies = ContextGain("solution", 9, 0.0, 1.0, Estimate(1.0, 9, 1.0, 1.0), copied=0.6)
    assert "Most answers with solution are copies" in ContextGainReport(share(1, 10), (copies,)).caveat
    assert ContextGainReport(share(1, 10), (gain_of([1], [1]),)).caveat == ""


def test_differences_are_paired_by_task_with_as_many_answers_on_each_side() -> None:
    """Task by task 1 − 0, 1 − 1 of two, 1 − 0 (the first answer of two) and 0 − 0."""
    bare = {"a": [0.0], "b": [1.0, 0.0], "c": [0.0, 1.0], "d": [0.0]}
    better = {"a": [1.0], "b": [0.0, 1.0], "c": [1.0], "d": [0.0]}
    one, other = (
        {name: [rollout(n, r) for n, r in enumerate(rewards)] for name, rewards in side.items()}
        for side in (better, bare)
    )
    found, more = paired(one, other, list("abcd"))
    assert more == (1, 0, 1, 0)
    assert found == paired_difference([1.0, 0.0, 1.0, 0.0])
    assert paired(one, other, [])[1] == ()


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
    known = {
        "a": [document_of("x")],
        "b": [document_of("x")],
        "c": [document_of("y"), document_of("z")],
        "d": [document_of("w")],
    }
    found = other_contexts(tasks, known, seed=1)
    assert set(found) == set("abcd")
    assert all(not set(found[name]) & set(known[name]) for name in found)
    assert other_contexts(tasks, known, seed=1) == found
    assert other_contexts(tasks[:2], {name: known[name] for name in "ab"}, seed=1) == {}
    assert other_contexts(tasks[:1], {"a": [document_of("x")], "d": [document_of("w")]}, seed=1) == {
        "a": [document_of("w")]
    }


def test_a_copy_is_the_same_program_whatever_stands_around_it() -> None:
    assert same_text(FENCED, FENCED.removeprefix("Sure:\n").replace("    ", "\t"))
    assert same_text("the answer ", "the\nanswer")
    assert not same_text(FENCED, FENCED.replace("return x", "return y"))
    shown = Context("solution", solution="answer 1")
    pairs = [(rollout(1), shown), (rollout(2), shown), (rollout(3), document_of("wrong"))]
    assert copied(pairs) == 0.5
    assert copied(pairs[2:]) is None


def test_the_sapling_is_better_told_and_not_by_another_tasks_context(tmp_path: Path, recorder) -> None:
    """Eight coined verbs: it guesses hardly any of them, and reads all of their dictionary entries."""
    settings = {"model": "sapling", "device": "cpu", "rollouts_per_task": 1, "out": str(tmp_path / "run")}
    env = {"name": "verbs", "verbs": 8, "steps": [1], "held_out": 1}
    found = measure_context_gain(from_settings({**settings, "env": env}), recorder)
    gains = {gain.kind: gain for gain in found.gains}
    assert found.bare.n == 8
    document = gains["document"]
    assert document.tasks == 8
    assert document.with_context > 0.8 > 0.3 > document.bare
    assert document.against == ""
    assert document.shuffled is not None
    assert document.shuffled.value < 0.3 < 0.6 < document.over_control.value
    assert len(document.more) == len(document.more_than_control) == 8
    assert gains["demonstration"].copied is not None
    assert gains["demonstration"].copied > 0.8
    assert document.copied is None
    assert found.decision.startswith("Go: ")
    run = read_run(tmp_path / "run")
    records = list(run.rollouts())
    assert len({record.uid for record in records}) == len(records)
    asked = {record.context_kind for record in records if record.stage == "informed"}
    assert {"feedback", "shuffled-feedback", "document", "shuffled-document"} <= asked
    assert run.evals_of("train")[0].accuracy == found.bare
    kept = json.loads((tmp_path / "run" / "context_gain.json").read_text())
    assert kept["gains"][0]["kind"] == "feedback"


def test_a_world_that_says_nothing_of_use_is_no_go_and_one_that_breaks_an_error(model_dir: Path, recorder) -> None:
    found = measure_context_gain(letters(model_dir, "wordy"), recorder)
    assert found.decision.startswith("Cannot decide: it needs 6 tasks")
    assert {gain.kind for gain in found.gains} == {"feedback", "solution"}
    assert all(gain.against.startswith("cannot decide: it needs 6 tasks, and there are ") for gain in found.gains)
    assert any("document: no task has any" in note for note in recorder.notes)
    assert measure_context_gain(letters(model_dir, "wordy"), no_callback) == found, "it can be done again"
    assert measure_context_gain(letters(model_dir, "no_signal_steps"), no_callback).gains == ()
    with pytest.raises(EnvError, match="more than half"):
        measure_context_gain(letters(model_dir, "broken"), no_callback)


def test_greedy_answers_are_sampled_once_with_and_without_context(model_dir: Path, recorder) -> None:
    often, once = (letters(model_dir, "wordy", evaluation={"rollouts": count, "temperature": 0.0}) for count in (5, 1))
    assert measure_context_gain(often, recorder) == measure_context_gain(once, no_callback)
    assert any("sample 1 per task, not 5" in note for note in recorder.notes)


def test_contexts_that_do_not_fit_are_cut_and_said(model_dir: Path, recorder) -> None:
    found = measure_context_gain(letters(model_dir, "wordy", context={"max_teacher_tokens": 150}), recorder)
    feedback = next(gain for gain in found.gains if gain.kind == "feedback")
    assert feedback.cut > 0
    assert any(f"feedback: {feedback.cut} contexts were cut to fit" in note for note in recorder.notes)
    narrow = letters(model_dir, "wordy", context={"max_teacher_tokens": 20})
    assert measure_context_gain(narrow, recorder).gains[0].left_out > 0
