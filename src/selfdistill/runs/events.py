"""What a run reports while it runs: small frozen values, passed in order to one callable.

    def print_rewards(event: Event) -> None:
        if isinstance(event, StepEnd):
            print(event.record.step, event.record.reward)

    train(config, print_rewards)

A callback runs inside the loop and should return at once. One that raises is called no more, and the run continues
(`training/callbacks.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from selfdistill.runs.records import EvalRecord, GuardRecord, StepRecord, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`run` names the run among several that share a callback (a task of a search, a directory of a comparison)."""

    run: str = ""


@dataclass(frozen=True, slots=True)
class RunStart(Event):
    """A run is about to begin, or to resume after `first_step` steps.

    `completions_sampled` and `given` count the answers to be sampled and those read from the data, 0 where there are
    none or the count is unknown; with `more`, later stages add answers that depend on these.
    """

    path: Path
    method: str
    model: str
    env: str
    device: str
    steps: int
    completions_sampled: int
    first_step: int = 0
    given: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class Phase(Event):
    """The current activity; `done` of `total` where a total is known, else both 0."""

    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Note(Event):
    """A sentence for the user, such as a weaker sandbox or skipped tasks."""

    text: str


@dataclass(frozen=True, slots=True)
class StepEnd(Event):
    """A step was recorded."""

    record: StepRecord


@dataclass(frozen=True, slots=True)
class EvalEnd(Event):
    """An evaluation was recorded."""

    record: EvalRecord


@dataclass(frozen=True, slots=True)
class Guard(Event):
    """The guards decided something else than after the step before."""

    record: GuardRecord

    @property
    def text(self) -> str:
        """The action, and a line for each finding."""
        return str(self.record)


@dataclass(frozen=True, slots=True)
class RunEnd(Event):
    """The run is complete."""

    summary: Summary


Callback: TypeAlias = Callable[[Event], None]


def no_callback(event: Event) -> None:
    """Ignores every event."""


def named(callback: Callback, run: str) -> Callback:
    """A callback that passes events on under the name of their run."""
    return lambda event: callback(replace(event, run=run))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run after its step was saved; `selfdistill COMMAND --resume PATH` resumes it. `step` is None where
    several runs stopped, each after its own step."""

    def __init__(self, path: Path, step: int | None, command: str = "train") -> None:
        self.path, self.step, self.command = path, step, command
        super().__init__(f"stopped{self.after}; saved in {path}")

    @property
    def after(self) -> str:
        """ " after step N", empty where `step` is None."""
        return "" if self.step is None else f" after step {self.step}"
