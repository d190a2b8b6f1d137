from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from core_parts import QUESTION
from selfdistill.envs.base import HANGING, TIME_LIMIT_S, Fault, Scored, score_all, tasks_of
from selfdistill.envs.rewards import FunctionEnvironment
from selfdistill.errors import DataError, EnvError
from selfdistill.types import Completion, DropReason, Outcome, Task


def scored_by(
    function: Callable[[Task, Completion], Any], texts: list[str], time_limit_s: float = TIME_LIMIT_S
) -> list[Scored]:
    env = FunctionEnvironment(function, "own")
    env.time_limit_s = time_limit_s  # type: ignore[attr-defined]
    return score_all(env, [(QUESTION, Completion(f"r{index}", text)) for index, text in enumerate(texts)])


class Together:
    """An environment that scores many at once, or does what a test needs."""

    name = "together"

    def __init__(self, score_batch: Callable[[Any], Any]) -> None:
        self.score_batch = score_batch


def test_outcomes_come_in_the_order_of_the_pairs_however_long_each_takes() -> None:
    def env(task: Task, done: Completion) -> Outcome:
        time.sleep(0.02 * (3 - int(done.text)))
        return Outcome(int(done.text) / 3, feedback=done.text)

    assert scored_by(env, ["0", "1", "2", "3"]) == [Outcome(n / 3, str(n)) for n in range(4)]


def test_an_exception_is_kept_with_its_traceback_and_harms_no_other_answer() -> None:
    def env(task: Task, done: Completion) -> Outcome:
        return Outcome(1 / int(done.text))

    first, second = scored_by(env, ["0", "1"])
    assert isinstance(first, Fault)
    assert first.drop is DropReason.ENV_RAISED
    assert "in env" in first.text
    assert first.text.endswith("ZeroDivisionError: division by zero\n")
    assert second == Outcome(1.0)


def test_an_environment_that_exits_has_raised_and_not_hung() -> None:
    began = time.monotonic()
    (found,) = scored_by(lambda task, done: sys.exit(3), ["x"], time_limit_s=30)
    assert isinstance(found, Fault)
    assert found.drop is DropReason.ENV_RAISED
    assert "SystemExit: 3" in found.text
    assert time.monotonic() - began < 5


def test_a_call_that_hangs_is_given_up_and_the_others_count() -> None:
    released = threading.Event()

    def env(task: Task, done: Completion) -> Outcome:
        if done.text == "hang":
            released.wait(30)
        return Outcome(1.0)

    first, second = scored_by(env, ["hang", "x"], time_limit_s=1)
    released.set()
    assert first == Fault(DropReason.ENV_TIMEOUT, "no outcome after 1 s")
    assert second == Outcome(1.0)


def test_an_environment_that_always_hangs_is_not_called_for_ever() -> None:
    released, calls = threading.Event(), []

    def env(task: Task, done: Completion) -> Outcome:
        calls.append(done.uid)
        released.wait(30)
        return Outcome(1.0)

    found = scored_by(env, ["x"] * 100, time_limit_s=0.05)
    released.set()
    assert len(calls) == HANGING
    assert {entry.drop for entry in found if isinstance(entry, Fault)} == {DropReason.ENV_TIMEOUT}
    assert len(found) == 100


def test_an_environment_may_set_its_time_limit() -> None:
    env = FunctionEnvironment(lambda task, done: time.sleep(1) or Outcome(1.0), "slow")
    env.time_limit_s = 0.05  # type: ignore[attr-defined]
    assert score_all(env, [(QUESTION, Completion("r", "x"))]) == [
        Fault(DropReason.ENV_TIMEOUT, "no outcome after 0.05 s")
    ]


def test_after_more_than_half_has_failed_the_rest_is_not_tried() -> None:
    calls: list[str] = []

    def env(task: Task, done: Completion) -> Outcome:
        calls.append(done.uid)
        raise RuntimeError("broken")

    found = scored_by(env, ["x"] * 40)
    assert 20 < len(calls) < 40
    assert len(found) == 40
    assert all(isinstance(entry, Fault) and entry.drop is DropReason.ENV_RAISED for entry in found)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, "expected a number, (number, feedback) or an Outcome, got NoneType: None"),
        ("1", "expected a number, (number, feedback) or an Outcome, got str: '1'"),
        ({"reward": 1}, "expected a number, (number, feedback) or an Outcome, got dict"),
        ((1.0, "a", "b"), "expected a number, (number, feedback) or an Outcome, got tuple"),
        (torch.tensor([1.0, 2.0]), "expected a number, (number, feedback) or an Outcome, got Tensor"),
        ((1.0, None), "feedback is not text: None"),
        (math.nan, "not a finite number: nan"),
        (10**400, "not a finite number: 1000"),
        (Outcome(float("nan")), "not a finite number: nan"),
        (Outcome(float("inf")), "not a finite number: inf"),
        (Outcome("1"), "got Outcome: Outcome(reward='1'"),  # type: ignore[arg-type]
        (Outcome(None), "got Outcome: Outcome(reward=None"),  # type: ignore[arg-type]
        (Outcome(torch.tensor(1.0)), "got Outcome: Outcome(reward=tensor(1.)"),  # type: ignore[arg-type]
        (Outcome(0.0, feedback=None), "feedback is not text: None"),  # type: ignore[arg-type]
        (Outcome(0.0, feedback=b"x"), "feedback is not text"),  # type: ignore[arg-type]
        (Outcome(0.0, feedback="half a pair: \ud83d"), "feedback is not text"),
        (Outcome(0.0, reply=3), "reply is not text: 3"),  # type: ignore[arg-type]
        (Outcome(0.0, details={"seen": [1, 2]}), "details are not names with numbers or words"),  # type: ignore[dict-item]
        (Outcome(0.0, details=[1]), "details are not names with numbers or words"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_outcome_is_dropped_under_that_reason(outcome: Any, message: str) -> None:
    (alone,) = scored_by(lambda task, done: outcome, ["x"])
    (together,) = score_all(Together(lambda pairs: [outcome]), [(QUESTION, Completion("r", "x"))])
    for found in (alone, together):
        assert isinstance(found, Fault)
        assert found.drop is DropReason.BAD_OUTCOME
        assert message in found.text


@pytest.mark.parametrize("reward", [True, 1, 2.5, -3, 1e300, numpy.float32(1.0), numpy.float64(1.0)])
def test_any_number_will_do_as_a_reward_and_becomes_a_float(reward: Any) -> None:
    (found,) = scored_by(lambda task, done: Outcome(reward), ["x"])
    assert isinstance(found, Outcome)
    assert type(found.reward) is float
    assert found.reward == reward


def test_details_of_numbers_and_words_are_kept() -> None:
    outcome = Outcome(0.5, "no", {"passed": 1, "share": 0.5, "why": "slow", "late": True})
    assert scored_by(lambda task, done: outcome, ["x"]) == [outcome]
    written = Outcome(0.5, "", {"mean": "nan", "most": "inf"})  # a record is JSON, which has neither
    assert scored_by(lambda task, done: Outcome(0.5, "", {"mean": math.nan, "most": math.inf}), ["x"]) == [written]


def test_errors_of_ours_pass_through() -> None:
    def refuse(task: Task, done: Completion) -> Outcome:
        raise DataError("a task without tests")

    with pytest.raises(DataError, match="without tests"):
        scored_by(refuse, ["x", "y"])
    with pytest.raises(DataError, match="without tests"):
        score_all(Together(lambda pairs: refuse(*pairs[0])), [(QUESTION, Completion("r", "x"))])


@pytest.mark.parametrize("returned", [None, [], [Outcome(1.0)], [Outcome(1.0)] * 3, iter([])])
def test_score_batch_has_to_give_one_outcome_each(returned: Any) -> None:
    found = score_all(Together(lambda pairs: returned), [(QUESTION, Completion("r", "x"))] * 2)
    assert [entry.drop for entry in found if isinstance(entry, Fault)] == [DropReason.BAD_OUTCOME] * 2


def test_score_batch_may_drop_one_answer_alone() -> None:
    given = [Outcome(1.0), Fault(DropReason.SCORING_FAILED, "no luck"), Outcome(0.0)]
    assert score_all(Together(lambda pairs: given), [(QUESTION, Completion("r", "x"))] * 3) == given


def test_score_batch_may_raise_and_all_are_dropped() -> None:
    def broken(pairs: Any) -> Any:
        raise RuntimeError("no luck")

    found = score_all(Together(broken), [(QUESTION, Completion("r", "x"))] * 2)
    assert [entry.drop for entry in found if isinstance(entry, Fault)] == [DropReason.ENV_RAISED] * 2
    assert "RuntimeError: no luck" in found[1].text  # type: ignore[union-attr]


def test_nothing_to_score_is_no_outcome() -> None:
    assert scored_by(lambda task, done: Outcome(1.0), []) == []


def test_tasks_of_a_function_may_be_a_list_or_a_function_and_are_for_training() -> None:
    def score(task: Task, done: Completion) -> Outcome:
        return Outcome(1.0)

    for tasks in ([QUESTION], lambda: [QUESTION]):
        env = FunctionEnvironment(score, "own", tasks)
        assert tasks_of(env, "train") == [QUESTION]
        assert tasks_of(env, "held_out") == []
    assert tasks_of(FunctionEnvironment(score, "own"), "train") == []


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: ["What?"], "tasks of another type"),
        ([QUESTION, QUESTION], "two tasks with one id"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(tasks: Any, message: str) -> None:
    env = FunctionEnvironment(lambda task, done: Outcome(1.0), "own", tasks)
    with pytest.raises(EnvError, match=message):
        tasks_of(env, "train")


@pytest.mark.parametrize("limit", [0, -1, math.inf, math.nan, 1e9, "30", None])
def test_a_time_limit_that_is_none_is_refused(limit):
    env = FunctionEnvironment(lambda task, done: Outcome(1.0), "mine")
    env.time_limit_s = limit  # type: ignore[attr-defined]
    with pytest.raises(EnvError, match="time_limit_s of the environment 'mine'"):
        score_all(env, [(Task("t", ()), Completion("u", "x"))])
