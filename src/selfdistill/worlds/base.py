"""What a world is, and how one that somebody else wrote is kept from stopping a run.

    def world(task: Task, completion: Completion) -> Outcome:      # a function is a world
        right = completion.text.strip() == task.spec["answer"]
        return Outcome(reward=float(right), feedback="" if right else f"The answer is not {completion.text}.")

An object with `name` and `judge` is one too. It may also have

    judge_many(pairs) -> list[Outcome]     to judge many answers at once
    tasks(split) -> list[Task]             "train", "holdout" (never trained on), "retained" (known before)
    for_evaluation() -> World              the same world, judging by what training never shows
    isolation: str                         how untrusted programs are shut in
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from selfdistill.errors import SelfDistillError
from selfdistill.types import Completion, Drop, Outcome, Task

PARALLEL = 8  # calls of a world's function at a time

Pair: TypeAlias = tuple[Task, Completion]


class World(Protocol):
    """Judges answers; see the module's docstring for what else it may offer."""

    name: str

    def judge(self, task: Task, completion: Completion) -> Outcome:
        """What became of one answer."""
        ...


class FunctionWorld:
    """A plain function as a world, with tasks of its own if it has any."""

    def __init__(
        self,
        function: Callable[[Task, Completion], Outcome],
        name: str,
        tasks: Callable[[], Sequence[Task]] | None = None,
    ) -> None:
        self.name, self._function, self._tasks = name, function, tasks

    def judge(self, task: Task, completion: Completion) -> Outcome:
        """Calls the function."""
        return self._function(task, completion)

    def tasks(self, split: str) -> list[Task]:
        """The tasks to train on; there are no others."""
        return list(self._tasks()) if self._tasks and split == "train" else []


@dataclass(frozen=True, slots=True)
class Fault:
    """A world that did not judge: why the rollout is dropped, and the traceback or what was returned."""

    drop: Drop
    text: str


Judged: TypeAlias = Outcome | Fault


def judge_all(world: World, pairs: Sequence[Pair], *, time_limit_s: float = 60.0) -> list[Judged]:
    """One entry per pair, in order. Whatever a world's own code raises or returns becomes a `Fault`.

    Calls run `PARALLEL` at a time and may take `time_limit_s` seconds each. Once more than half have failed, the rest
    is not tried. Our own errors (no sandbox, a task without tests) are the user's to see and pass through.
    """
    together = getattr(world, "judge_many", None)
    if together is not None:
        return _judge_together(together, pairs)
    judged: list[Judged] = []
    for start in range(0, len(pairs), PARALLEL):
        if 2 * sum(isinstance(entry, Fault) for entry in judged) > len(pairs):
            rest = len(pairs) - start
            return judged + [Fault(Drop.WORLD_RAISED, "not tried: more than half had failed")] * rest
        judged += _judge_some(world, pairs[start : start + PARALLEL], time_limit_s)
    return judged


def _judge_together(judge_many: Callable[[Sequence[Pair]], list[Outcome]], pairs: Sequence[Pair]) -> list[Judged]:
    try:
        outcomes = judge_many(pairs)
    except SelfDistillError:
        raise
    except Exception:  # noqa: BLE001 (code of the user's; the traceback is kept)
        return [Fault(Drop.WORLD_RAISED, traceback.format_exc())] * len(pairs)
    if not isinstance(outcomes, list) or len(outcomes) != len(pairs):
        return [Fault(Drop.BAD_OUTCOME, f"judge_many returned {outcomes!r:.200} for {len(pairs)} pairs")] * len(pairs)
    return [_checked(outcome) for outcome in outcomes]


def _judge_some(world: World, pairs: Sequence[Pair], time_limit_s: float) -> list[Judged]:
    """Each call in a thread that may outlive us: Python cannot stop a call that hangs."""
    results: dict[int, Judged | SelfDistillError] = {}

    def call(index: int) -> None:
        try:
            results[index] = _checked(world.judge(*pairs[index]))
        except SelfDistillError as error:
            results[index] = error
        except Exception:  # noqa: BLE001 (code of the user's; the traceback is kept)
            results[index] = Fault(Drop.WORLD_RAISED, traceback.format_exc())

    threads = [threading.Thread(target=call, args=(index,), daemon=True) for index in range(len(pairs))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + time_limit_s
    judged: list[Judged] = []
    for index, thread in enumerate(threads):
        thread.join(max(0.0, deadline - time.monotonic()))
        result = results.get(index, Fault(Drop.WORLD_TIMEOUT, f"no outcome after {time_limit_s:g} s"))
        if isinstance(result, SelfDistillError):
            raise result
        judged.append(result)
    return judged


def _checked(outcome: Any) -> Judged:
    if not isinstance(outcome, Outcome):
        return Fault(Drop.BAD_OUTCOME, f"expected an Outcome, got {type(outcome).__name__}: {outcome!r:.200}")
    reward: Any = outcome.reward
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        return Fault(Drop.BAD_OUTCOME, f"the reward is not a finite number: {reward!r}")
    if not 0 <= reward <= 1:
        return Fault(Drop.BAD_OUTCOME, f"the reward is outside [0, 1]: {reward!r}")
    if not isinstance(outcome.feedback, str):
        return Fault(Drop.BAD_OUTCOME, f"the feedback is not text: {outcome.feedback!r:.200}")
    return outcome
