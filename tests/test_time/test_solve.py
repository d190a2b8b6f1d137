"""Searches of a tiny model in environments of hashes: what is attempted, what is learned, when it ends, how it goes
on."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from search_facts import facts

from selfdistill.errors import EnvError
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.runs import Event, Phase, RolloutRecord, read_run
from selfdistill.runs.events import Interrupted
from selfdistill.runs.solving import read_result
from selfdistill.test_time import search
from selfdistill.test_time.solve import solve
from selfdistill.test_time.strategies import STRATEGIES


def rollouts(path: Path) -> list[RolloutRecord]:
    return list(read_run(path).rollouts())


def weights(path: Path) -> dict[str, torch.Tensor]:
    latest = latest_checkpoint(path / "checkpoints")
    assert latest is not None
    return {name: value for file in sorted(latest.glob("*.safetensors")) for name, value in load_file(file).items()}


def recount(path: Path) -> tuple[int | None, int | None]:
    """The numbers of the first attempt that is right and of the first that passed, from the records alone."""
    found = rollouts(path)
    right = [number for number, rollout in enumerate(found, start=1) if rollout.right]
    passed = [number for number, rollout in enumerate(found, start=1) if rollout.right is not None]
    return min(right, default=None), min(passed, default=None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_stops_with_its_first_right_attempt(search_of, tmp_path: Path, strategy: str) -> None:
    out = tmp_path / "out"
    (result,) = solve(search_of(strategy, "rare", 200), out=out)
    path = out / "000-q1"
    found = rollouts(path)
    assert result == read_result(path)
    assert result.solved_at is not None
    assert (result.solved_at, result.passed_at) == recount(path)
    assert found[result.solved_at - 1].completion == result.solution
    assert not any(rollout.right for rollout in found if rollout.step < result.rounds), "no round after a right one"
    assert result.solved_round == result.rounds == found[-1].step
    assert result.attempts == len(found)
    assert result.tokens == sum(len(rollout.token_ids) for rollout in found)
    learned = [step.samples for step in read_run(path).steps]
    assert learned[-1] == 0, "nothing is learned from the round that ends the search"
    uses = {"self-distill": 1, "hybrid": 2}.get(strategy, 0)  # a hybrid distils a failure, and pushes it away
    assert not uses or all(samples == uses * STRATEGIES[strategy]().batch for samples in learned[:-1])


def test_what_passes_and_is_not_right_is_a_failure_to_learn_from(search_of, tmp_path) -> None:
    """As a solution for its group members it would be all that is attempted from then on."""
    solve(search_of("self-distill", "Strict", 96, settings={"seed": 1}), out=tmp_path)
    found = rollouts(tmp_path / "000-q1")
    learned = [rollout for rollout in found if rollout.step < found[-1].step]
    shallow = [rollout for rollout in learned if rollout.right is False]
    assert shallow
    assert {rollout.drop for rollout in shallow} == {"no_context"}
    assert not any("solution" in (rollout.context or {}) for rollout in learned)


def test_what_passes_must_also_be_right_by_tests_that_training_does_not_show(search_of, tmp_path, recorder) -> None:
    (result,) = solve(search_of("best-of-k", "Strict", 200, settings={"seed": 1}), recorder, out=tmp_path)
    found = rollouts(tmp_path / "000-q1")
    assert (result.solved_at, result.passed_at) == recount(tmp_path / "000-q1")
    assert result.passed_at is not None
    assert result.solved_at is not None
    assert result.passed_at < result.solved_at, "the search went on"
    passed = [rollout for rollout in found if rollout.right is not None]
    assert len(passed) == result.passed < len(found)
    assert [rollout.reward for rollout in passed] == [float(rollout.right) for rollout in passed]
    assert not any(rollout.feedback for rollout in passed)
    assert any("passed the tests that training sees, but not the private ones" in note for note in recorder.notes)


@pytest.mark.parametrize(("strategy", "rounds"), [("self-distill", [16, 5]), ("hybrid", [8, 8, 5])])
def test_a_budget_of_attempts_is_used_to_the_last_one_and_no_further(search_of, tmp_path, strategy, rounds) -> None:
    (result,) = solve(search_of(strategy, "hints", 21), out=tmp_path)
    assert (result.attempts, result.solved_at, result.rounds) == (21, None, len(rounds))
    made = [rollout.step for rollout in rollouts(tmp_path / "000-q1")]
    assert [made.count(step) for step in range(1, len(rounds) + 1)] == rounds


def test_a_budget_of_tokens_ends_after_the_round_that_uses_it_up(search_of, tmp_path) -> None:
    config = search_of("best-of-k", "hints", 300, limits={"unit": "tokens"}, settings={"strategy.batch": 4})
    (result,) = solve(config, out=tmp_path)
    steps = read_run(tmp_path / "000-q1").steps
    assert steps[-2].tokens < 300 <= steps[-1].tokens == result.tokens


def test_a_budget_of_seconds_ends(search_of, tmp_path) -> None:
    (result,) = solve(search_of("multi-turn", "hints", 1, limits={"unit": "seconds"}), out=tmp_path)
    *before, last = (step.wall_s for step in read_run(tmp_path / "000-q1").steps)
    assert all(seconds < 1 for seconds in before)
    assert result.wall_s >= last >= 1


def test_best_of_k_may_go_on_to_count_all_right_attempts(search_of, tmp_path) -> None:
    config = search_of("best-of-k", "rare", 100, limits={"exhaust_budget": True})
    (result,) = solve(config, out=tmp_path)
    assert result.attempts == 100
    assert result.right == sum(bool(rollout.right) for rollout in rollouts(tmp_path / "000-q1")) > 1


def test_attempts_of_a_hybrid_read_the_feedback_of_the_last_round(search_of, tmp_path) -> None:
    solve(search_of("hybrid", "hints", 16), out=tmp_path)
    found = rollouts(tmp_path / "000-q1")
    question = found[0].prompt
    assert all(rollout.prompt == question for rollout in found[:8])
    for before, after in zip(found[:8], found[8:], strict=True):
        assert before.feedback in after.prompt
        assert after.context == {"feedback": after.feedback}
        assert after.policy_version == 1


def test_every_task_begins_with_the_weights_of_the_model(search_of, tmp_path) -> None:
    """The second task of a search is what it would have been alone."""
    both = tmp_path / "both"
    solve(search_of("self-distill", "hints", 48, tasks=["q0", "q1"], keep=True), out=both)
    alone = tmp_path / "alone"
    solve(search_of("self-distill", "hints", 48, tasks=["q1"], keep=True), out=alone)
    assert rollouts(both / "001-q1") == rollouts(alone / "000-q1")
    left, right = weights(both / "001-q1"), weights(alone / "000-q1")
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert not all(torch.equal(left[name], weights(both / "000-q0")[name]) for name in left)


@pytest.mark.parametrize("keep", [False, True])
def test_weights_are_thrown_away_unless_they_are_to_be_kept(search_of, tmp_path, keep: bool) -> None:
    solve(search_of("self-distill", "hints", 64, keep=keep), out=tmp_path)
    assert (tmp_path / "000-q1" / "checkpoints").exists() == keep


def test_under_lora_the_adapter_is_learned_and_kept(search_of, tmp_path) -> None:
    config = search_of("hybrid", "hints", 24, keep=True, settings={"lora.rank": 2}, tasks=["q0", "q1"])
    solve(config, out=tmp_path)
    first, second = (latest_checkpoint(path / "checkpoints") for path in sorted(tmp_path.glob("0*")))
    assert first is not None
    assert second is not None
    adapters = [load_file(place / "adapter_model.safetensors") for place in (first, second)]
    assert not (first / "model.safetensors").exists()
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


class Killed(RuntimeError):
    """Stands for a kill: nothing is saved, nothing is closed."""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("moment", ["sampling", "records"])
def test_a_search_that_was_killed_goes_on_to_the_same_bits(
    search_of, tmp_path, monkeypatch, strategy: str, moment: str
) -> None:
    """Two tasks of six rounds, read-first seven. Learning, killed late in the second: before it is sampled, or when
    only its rollouts are written. Without learning both go on together, and are killed in the fifth: before it is
    sampled, or when the first task has its records of it and the second not all of them."""
    settings = {"strategy.batch": 4, **({"strategy.patience": 1} if strategy == "read-first" else {})}
    config = search_of(strategy, "hints", 24, tasks=["q0", "q2"], settings=settings, keep=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    solve(config, out=whole)
    owner, name = (search, "session_groups") if moment == "sampling" else (search.RunDir, "append")
    real, calls = getattr(owner, name), [0]

    def dying(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == (10 if config.strategy.learns or moment == "records" else 5):
            if moment == "records":
                real(*arguments[:3], **options)
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(Killed):
        solve(config, out=cut)
    monkeypatch.undo()
    before = (cut / "000-q0" / "rollouts.jsonl").read_bytes()
    solve(config, out=cut, resume=True)
    assert facts(cut) == facts(whole)
    if config.strategy.learns:
        assert (cut / "000-q0" / "rollouts.jsonl").read_bytes() == before, "a task that is done is not repeated"
        left, right = weights(cut / "001-q2"), weights(whole / "001-q2")
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize("strategy", ["self-distill", "multi-turn"])
def test_ctrl_c_ends_the_round_saves_it_and_the_search_goes_on_to_the_same_bits(search_of, tmp_path, strategy) -> None:
    """Ctrl-C is pressed while the second round is scored; of this environment about half of all answers are right."""
    config = search_of(
        strategy,
        "CtrlC",
        40,
        tasks=["q0", "q1"],
        keep=True,
        limits={"exhaust_budget": True},
        settings={"strategy.batch": 10},
    )
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="after step 2") as stopped:
        solve(config, out=out)
    assert (stopped.value.path, stopped.value.command) == (out, "solve")
    assert [step.step for step in read_run(out / "000-q0").steps] == [1, 2]
    if config.strategy.learns:  # the environment is loaded anew, and presses again: in the second task
        with pytest.raises(Interrupted):
            solve(config, out=out, resume=True)
    solve(config, out=out, resume=True)
    env = str(config.run.env.name).replace("CtrlC", "hashed")
    quiet = replace(config, run=replace(config.run, env=replace(config.run.env, name=env)))
    solve(quiet, out=tmp_path / "whole")
    assert [r.token_ids for r in rollouts(out / "001-q1")] == [
        r.token_ids for r in rollouts(tmp_path / "whole" / "001-q1")
    ]


class Presses:
    """Ctrl-C is pressed when the model is loaded, or when a task is done."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def __call__(self, event: Event) -> None:
        if (event.name if isinstance(event, Phase) else type(event).__name__) == self.moment:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_between_tasks_leaves_what_can_go_on_and_before_them_nothing(search_of, tmp_path) -> None:
    config, out = search_of("self-distill", "hints", 8, tasks=["q0", "q1"]), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as stopped:
        solve(config, Presses("loading the model"), out=out)
    assert not isinstance(stopped.value, Interrupted)
    assert not out.exists()
    with pytest.raises(Interrupted) as left:
        solve(config, Presses("RunEnd"), out=out)
    assert (left.value.path, left.value.step, left.value.command) == (out, None, "solve")
    assert not (out / "001-q1").exists()
    assert [result.attempts for result in solve(config, out=out, resume=True)] == [8, 8]


def test_tasks_that_are_searched_together_make_the_attempts_they_make_alone(search_of, tmp_path) -> None:
    """Nothing is learned, so one model serves all; a task that is solved leaves the others."""
    chosen = {"settings": {"strategy.batch": 3}, "limits": {"exhaust_budget": False}}
    every = solve(search_of("multi-turn", "rare", tasks=["q0", "q1", "q2"], **chosen), out=tmp_path)
    assert len({result.rounds for result in every}) > 1
    for number, result in enumerate(every):
        alone = tmp_path / f"alone-{result.task}"
        [single] = solve(search_of("multi-turn", "rare", tasks=[result.task], **chosen), out=alone)
        assert replace(single, wall_s=0.0) == replace(result, wall_s=0.0)
        together = rollouts(tmp_path / f"{number:03d}-{result.task}")
        assert [r.token_ids for r in together] == [r.token_ids for r in rollouts(alone / f"000-{result.task}")]


@pytest.mark.parametrize("strategy", ["best-of-k", "read-first"])
def test_a_unique_attempt_repeats_no_failure_and_what_was_drawn_in_between_is_counted(
    search_of, tmp_path, monkeypatch, strategy: str
) -> None:
    """Texts of one token at a low temperature: the model repeats itself."""
    few = {"sampling.max_new_tokens": 1, "sampling.temperature": 0.5, "seed": 1, "strategy.batch": 4}
    if strategy == "read-first":
        few["strategy.patience"] = 4
    (plain,) = solve(search_of(strategy, "hints", 12, settings=few), out=tmp_path / "plain")
    assert len({rollout.completion for rollout in rollouts(tmp_path / "plain" / "000-q1")}) < 12
    config = search_of(strategy, "hints", 12, settings={**few, "strategy.unique": True})
    (result,) = solve(config, out=tmp_path / "whole")
    found = rollouts(tmp_path / "whole" / "000-q1")
    assert len({rollout.completion for rollout in found}) == len(found) == 12
    assert result.redrawn > 0 == plain.redrawn
    assert result.tokens == result.redrawn + len(found), "one token each, also of those not submitted"

    name, calls = "learn" if strategy == "read-first" else "record_round", []
    real = getattr(search, name)

    def killed_in_the_second_round(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(search, name, killed_in_the_second_round)
    with pytest.raises(KeyboardInterrupt):
        solve(config, out=tmp_path / "cut")
    monkeypatch.undo()
    solve(config, out=tmp_path / "cut", resume=True)
    assert facts(tmp_path / "cut") == facts(tmp_path / "whole")


def test_a_task_solved_at_once_is_said_to_be(search_of, tmp_path, recorder) -> None:
    (result,) = solve(search_of("self-distill", "always"), recorder, out=tmp_path)
    assert (result.solved_at, result.solved_round, result.attempts) == (1, 1, 16)
    assert any("in the first round: before any feedback was read or learned from" in note for note in recorder.notes)


@pytest.mark.parametrize(
    ("strategy", "env", "said"),
    [
        ("self-distill", "mute", "no failed attempt has feedback: attempts are independent until"),
        ("hybrid", "mute", "no failed attempt has feedback: nothing can be distilled until"),
        ("multi-turn", "mute", "no failed attempt has feedback: every attempt reads"),
        ("grpo", "hints", "round 1 produced no training samples (16 zero_advantage): attempts are independent until"),
    ],
)
def test_an_environment_without_feedback_is_noted_once_with_what_can_still_happen(
    search_of, tmp_path, recorder, strategy, env, said
) -> None:
    (result,) = solve(search_of(strategy, env, 48), recorder, out=tmp_path)
    assert sum(said in note for note in recorder.notes) == 1
    assert result.attempts == 48, "it goes on as independent attempts"
    assert any("not solved: 48 attempts" in note for note in recorder.notes)


def test_feedback_that_finds_no_room_is_counted(search_of, tmp_path) -> None:
    """The tiny model reads 256 tokens."""
    (result,) = solve(search_of("multi-turn", "hints", 40), out=tmp_path)
    assert result.left_out > 0
    assert result.prompts_cut == 0


@pytest.mark.parametrize("strategy", ["multi-turn", "hybrid"])
def test_feedback_of_which_none_finds_room_is_said_once(search_of, tmp_path, recorder, strategy: str) -> None:
    config = search_of(strategy, "hints", 24, settings={"strategy.batch": 4, "strategy.window": 20})
    (result,) = solve(config, recorder, out=tmp_path / "narrow")
    assert result.left_out > 0
    assert len({rollout.prompt for rollout in rollouts(tmp_path / "narrow" / "000-q1")}) == 1
    assert sum("no feedback fits a prompt" in note for note in recorder.notes) == 1
    recorder.events.clear()
    solve(search_of(strategy, "hints", 24), recorder, out=tmp_path / "wide")
    assert not [note for note in recorder.notes if "no feedback fits" in note]


def test_a_teacher_prompt_that_is_too_long_is_cut_and_counted(search_of, tmp_path) -> None:
    config = search_of("self-distill", "wordy", 16, settings={"context.max_teacher_tokens": 150})
    (result,) = solve(config, out=tmp_path)
    assert result.contexts_cut == 16
    assert not [rollout.drop for rollout in rollouts(tmp_path / "000-q1") if rollout.drop]


@pytest.mark.parametrize(
    ("strategy", "budget", "tasks", "made"),
    [
        ("best-of-k", 24, ["q1"], 16),
        ("multi-turn", 24, ["q1"], 9),  # more than half of any 16
        ("multi-turn", 24, ["q0", "q1", "q2"], 9),  # three a round
        ("multi-turn", 2, ["q1"], 2),
    ],
)
def test_a_world_that_breaks_stops_the_search_and_keeps_the_records(
    search_of, tmp_path, strategy, budget, tasks, made
) -> None:
    with pytest.raises(EnvError, match="more than half of a batch"):
        solve(search_of(strategy, "broken", budget, tasks=tasks), out=tmp_path)
    found = [rollout for path in sorted(tmp_path.glob("0*")) for rollout in rollouts(path)]
    assert len(found) == made
    assert all("always broken" in rollout.fault for rollout in found)


def test_a_world_that_fails_now_and_then_costs_the_attempts_it_fails_on(search_of, tmp_path) -> None:
    (result,) = solve(search_of("multi-turn", "flaky", 20), out=tmp_path)
    assert (result.attempts, result.solved_at) == (20, None)
    lost = [step.step for step in read_run(tmp_path / "000-q1").steps if step.dropped]
    assert lost == [4, 8, 12, 16, 20]
    assert {rollout.drop for rollout in rollouts(tmp_path / "000-q1")} == {None, "env_raised"}
