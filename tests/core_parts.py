"""Small values from which the tests of the training core are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from selfdistill.types import Completion, DropReason, Message, Outcome, Rollout, RolloutGroup, Task, TrainingSample

QUESTION = Task("sum", (Message("user", "What is seven plus five?"),))


def rollout(
    number: int,
    reward: float | None = 0.0,
    feedback: str = "",
    *,
    text: str = "",
    task: Task = QUESTION,
    drop: DropReason | None = None,
    token_ids: tuple[int, ...] = (7, 8),
    prompt_ids: tuple[int, ...] = (5, 6),
) -> Rollout:
    """Attempt `number`; a reward of None stands for an environment that could not judge it."""
    done = Completion(f"r{number}", text or f"answer {number}", token_ids, (-1.0,) * len(token_ids))
    if reward is None:
        return Rollout(task, prompt_ids, done, drop=drop or DropReason.ENV_RAISED)
    return Rollout(task, prompt_ids, done, outcome=Outcome(reward, feedback))


def group(rewards: Sequence[float | None], feedback: str = "", *, task: Task = QUESTION) -> RolloutGroup:
    """One attempt per reward; those that failed get `feedback` and their own number."""
    attempts = [
        rollout(number, reward, f"{feedback} {number}" if feedback and reward == 0 else "", task=task)
        for number, reward in enumerate(rewards)
    ]
    return RolloutGroup(task, tuple(attempts))


def sample_of(
    uid: str,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    teacher: Sequence[int] | None = None,
    logprobs: Sequence[float] | None = None,
    **weights: float,
) -> TrainingSample:
    """A training sample; without `logprobs` the sampler's are unknown and written as zeros."""
    told = tuple(logprobs) if logprobs is not None else (0.0,) * len(answer)
    read = () if teacher is None else (tuple(teacher),)
    return TrainingSample(uid, tuple(prompt), read, tuple(answer), told, **weights)


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def soon(holds: Callable[[], object], patience_s: float = 20.0) -> bool:
    """Whether a condition holds, now or soon."""
    deadline = time.monotonic() + patience_s
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(found)


def gone(pids: Sequence[int]) -> bool:
    """Whether all of these processes have ended, now or soon."""
    return soon(lambda: not any(map(alive, pids)))
