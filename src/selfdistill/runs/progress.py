"""What a long job tells whoever watches it. The loops know nothing of terminals; the command line draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from selfdistill.runs.records import EvalRecord, StepRecord, Summary

Event: TypeAlias = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What is about to run. `first_step` is the number of steps already made (more than 0 after a resume).

    `completions_sampled` are the answers to be sampled and `given` those that are there already, 0 where there are none
    or nobody can know; `more` says that others will follow from what becomes of these.
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


class Reporter(Protocol):
    """Receives the events of one run, in order. Every method returns at once and never raises.

    phase: what is being done now; `done` of `total` where that is known, else both 0.
    note: a sentence worth reading once (which device, a weaker sandbox).
    """

    def started(self, info: RunInfo) -> None: ...
    def note(self, text: str) -> None: ...
    def phase(self, name: str, done: int = 0, total: int = 0) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def evaluated(self, record: EvalRecord) -> None: ...
    def finished(self, summary: Summary) -> None: ...


class Quiet:
    """The reporter of a library call: says nothing."""

    def started(self, info: RunInfo) -> None: ...
    def note(self, text: str) -> None: ...
    def phase(self, name: str, done: int = 0, total: int = 0) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def evaluated(self, record: EvalRecord) -> None: ...
    def finished(self, summary: Summary) -> None: ...


class Relay:
    """Sends its events on as (method, arguments), for example into a queue that another process draws from.

    Each event is a method's name and its arguments, all of them picklable; `deliver` calls it on the other side.
    """

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send

    def started(self, info: RunInfo) -> None:
        self._send(("started", (info,)))

    def note(self, text: str) -> None:
        self._send(("note", (text,)))

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        self._send(("phase", (name, done, total)))

    def step(self, record: StepRecord) -> None:
        self._send(("step", (record,)))

    def evaluated(self, record: EvalRecord) -> None:
        self._send(("evaluated", (record,)))

    def finished(self, summary: Summary) -> None:
        self._send(("finished", (summary,)))


def deliver(event: Event, reporter: Reporter) -> None:
    """Gives an event that a `Relay` sent to `reporter`."""
    name, arguments = event
    getattr(reporter, name)(*arguments)


class Interrupted(KeyboardInterrupt):
    """The user asked a run to stop: the step was finished and saved, and the run can go on from there, by `command`.
    `step` is None where several runs stopped, each after its own."""

    def __init__(self, path: Path, step: int | None, command: str = "train") -> None:
        self.path, self.step, self.command = path, step, command
        super().__init__(f"stopped{self.after}; saved in {path}")

    @property
    def after(self) -> str:
        """After which step, in words that follow "stopped"."""
        return "" if self.step is None else f" after step {self.step}"
