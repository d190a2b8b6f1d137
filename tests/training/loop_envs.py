"""Environments for runs of a tiny model, whose answers mean nothing: what they earn follows from their letters
alone."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy
import torch

from selfdistill import Completion, Message, Outcome, Task

QUESTIONS = ["What is seven plus five?", "Say yes or no.", "Write f(xs) that sorts the list.", "The answer is twelve."]


def tasks() -> list[Task]:
    return [Task(f"q{number}", (Message("user", text),)) for number, text in enumerate(QUESTIONS)]


def hashed(task: Task, completion: Completion) -> Outcome:
    """About half of all answers are right; the others hear what they were."""
    right = crc32(completion.text.encode()) % 2
    return Outcome(float(right), "" if right else f"Not {completion.text!r}.", {"length": len(completion.text)})


def never(task: Task, completion: Completion) -> Outcome:
    return Outcome(0.0)


def always(task: Task, completion: Completion) -> Outcome:
    return Outcome(1.0)


def nearly(task: Task, completion: Completion) -> Outcome:
    """All are equally good, and none is right."""
    return Outcome(0.4)


def _training_step(completion: Completion) -> int:
    """Rollouts of a step are named `step-task-number`; those of measurements begin with a word."""
    first = completion.uid.partition("-")[0]
    return int(first) if first.isdigit() else 0


class Moody:
    """Fails in four ways on some answers of every step: about half of each batch stays."""

    name = "moody"
    time_limit_s = 1.0

    def score(self, task: Task, completion: Completion) -> Outcome:
        number = int(completion.uid.rpartition("-")[2])
        if _training_step(completion) == 0 or number % 8 > 3:
            return hashed(task, completion)
        if number % 8 == 0:
            raise KeyError("the environment's own mistake")
        if number % 8 == 1:
            return Outcome(float("nan"))
        if number % 8 == 2:
            return "well done"
        threading.Event().wait(5.0)
        return Outcome(1.0)

    def tasks(self, split: str) -> list[Task]:
        return tasks() if split == "train" else []


class BreaksLater:
    """Works in the first step, and never again."""

    name = "breaks later"

    def score(self, task: Task, completion: Completion) -> Outcome:
        if _training_step(completion) > 1:
            raise ConnectionError("the server is gone")
        return hashed(task, completion)

    def tasks(self, split: str) -> list[Task]:
        return tasks() if split == "train" else []


class Falls(BreaksLater):
    """All is right until forty answers were scored, and wrong from then on."""

    name = "falls"
    scored = 0

    def score(self, task: Task, completion: Completion) -> Outcome:
        self.scored += 1
        return Outcome(float(self.scored <= 40))


class CtrlC(BreaksLater):
    """Ctrl-C is pressed while the second step is scored."""

    name = "ctrl-c"
    pressed = False

    def score(self, task: Task, completion: Completion) -> Outcome:
        if _training_step(completion) == 2 and not CtrlC.pressed:
            CtrlC.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return hashed(task, completion)


class FullDisk(BreaksLater):
    """From the second step on, no file may grow beyond what FULL_AT says."""

    name = "full disk"

    def score(self, task: Task, completion: Completion) -> Outcome:
        if _training_step(completion) == 2:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FULL_AT"]), hard))
        return hashed(task, completion)


class Splits(BreaksLater):
    """Has all that an environment can have, and another judge for measurements."""

    name = "splits"

    def score(self, task: Task, completion: Completion) -> Outcome:
        return hashed(task, completion)

    def for_evaluation(self) -> Splits:
        return Measuring()

    def tasks(self, split: str) -> list[Task]:
        kept = {"train": slice(0, 2), "held_out": slice(2, 3), "forgetting": slice(3, 4), "replay": slice(2, 4)}
        return tasks()[kept[split]]


class NeverSplits(Splits):
    """All that an environment can have, and nothing to learn."""

    def score(self, task: Task, completion: Completion) -> Outcome:
        return Outcome(0.0)


class Measuring(Splits):
    """Everything is right here."""

    def score(self, task: Task, completion: Completion) -> Outcome:
        return Outcome(1.0)


class Remembered(Splits):
    """Four tasks, all right in evaluations."""

    def tasks(self, split: str) -> list[Task]:
        return tasks() if split == "train" else []


class Log:
    """Four turns of a log, to which no answer is right. Sixteen known questions, whose first answers are the right
    ones."""

    name, row_kind = "log", "conversations"

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    def tasks(self, split: str) -> list[Task]:
        if split == "forgetting":
            return [Task(f"known-{n}", (Message("user", f"What is {n} + 1?"),)) for n in range(16)]
        said = [replace(task, logged_answer=f"No. {task.id}", user_reply="Please say yes.") for task in tasks()]
        return said if split == "train" else []

    def has_reward(self, task: Task) -> bool:
        return not task.user_reply

    def score(self, task: Task, completion: Completion) -> Outcome:
        return Outcome(float(self.first.setdefault(task.id, completion.text) == completion.text))


def broken(task: Task, completion: Completion) -> Outcome:
    raise RuntimeError("always broken")


def dicing(task: Task, completion: Completion) -> Outcome:
    """Rewards are drawn from the global generators."""
    first, second = random.random(), float(numpy.random.rand())
    return Outcome(float(first < 0.5), f"{first} {second} {float(torch.rand(())):.6f}")


class Dicing:
    """Draws its tasks as well, and scores a batch at once."""

    name = "dicing"

    def score_batch(self, pairs: Sequence[tuple[Task, Completion]]) -> list[Outcome]:
        return [dicing(*pair) for pair in pairs]

    def score(self, task: Task, completion: Completion) -> Outcome:
        return dicing(task, completion)

    def tasks(self, split: str) -> list[Task]:
        return random.sample(tasks(), 2) if split == "train" else []
