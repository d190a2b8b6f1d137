from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy
import torch

from core_parts import QUESTION
from selfdistill.envs.base import Scored, score_all
from selfdistill.envs.rewards import FunctionEnvironment
from selfdistill.plugins import seed_global
from selfdistill.types import Completion, Outcome, Task


def draws() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_every_global_generator_repeats_under_the_same_names_and_no_others() -> None:
    seed_global(0, "step", 3)
    first = draws()
    seed_global(0, "step", 3)
    assert draws() == first
    for names in ((1, "step", 3), (0, "step", 4), (0,)):
        seed_global(*names)
        assert all(one != other for one, other in zip(draws(), first, strict=True))


def dice(task: Task, completion: Completion) -> Outcome:
    return Outcome(0.0, " ".join(map(str, draws())))


def judged(function: Callable[[Task, Completion], Outcome], count: int = 24, **options: int) -> list[Scored]:
    pairs = [(QUESTION, Completion(f"r{number}", "x")) for number in range(count)]
    return score_all(FunctionEnvironment(function, "own"), pairs, **options)


def test_what_a_quick_world_draws_follows_from_the_seed_and_the_completion(unhurried: None) -> None:
    first = judged(dice, seed=3)
    random.random()
    assert judged(dice, seed=3) == first
    assert judged(dice, 5, seed=3) == first[:5], "whatever else is scored"
    assert len({outcome.feedback for outcome in (*first, *judged(dice, seed=4))}) == 48


def test_calls_that_take_long_run_side_by_side() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def slow(task: Task, completion: Completion) -> Outcome:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.3)
        with lock:
            running[0] -= 1
        return Outcome(1.0)

    assert judged(slow, 16) == [Outcome(1.0)] * 16
    assert 4 <= most[0] <= 8
