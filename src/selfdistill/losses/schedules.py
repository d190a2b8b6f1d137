"""Schedules: how strong the teacher's part is, λ, as training goes on. A step is a generation batch, counted from 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from selfdistill.losses.refusal import refusal


class Schedule(ABC):
    """λ ≥ 0 by step."""

    __slots__ = ()

    @abstractmethod
    def at(self, step: int) -> float:
        """λ of this generation batch."""


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The same at every step. Raises `ValueError` for a negative value."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _check_strengths(self.value)

    def at(self, step: int) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """From `start` at step 0 straight to `end` at step `steps`, which then holds: 0.5 → 0 over 50 is 0.25 at step 25.

    Raises `ValueError` for a negative strength or fewer than one step. Source: arXiv 2604.03128.
    """

    start: float = 0.5
    end: float = 0.0
    steps: int = 50

    def __post_init__(self) -> None:
        _check_strengths(self.start, self.end)
        _check_steps("steps", self.steps, 1)

    def at(self, step: int) -> float:
        """On the line, or `end` beyond it."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class Trapezoid(Schedule):
    """0 up to `peak` over `warmup` steps, there for `hold`, back to 0 over `decay`: then 0 for good.

    With warm-up 2, hold 1, decay 4 and peak 1 the steps 0, 1, 2 … have 0, ½, 1, 1, ¾, ½, ¼, 0. A warm-up of 0 starts at
    the peak. Raises `ValueError` for a negative peak or length, and without a decay. Source: arXiv 2606.04036
    (warm-up 50, decay 350, peak 1e-3).
    """

    peak: float = 1e-3
    warmup: int = 50
    hold: int = 0
    decay: int = 350

    def __post_init__(self) -> None:
        _check_strengths(self.peak)
        _check_steps("warmup", self.warmup, 0)
        _check_steps("hold", self.hold, 0)
        _check_steps("decay", self.decay, 1)

    def at(self, step: int) -> float:
        """The lower of the two slopes, at most the peak, at least 0."""
        rise = step / self.warmup if self.warmup else 1.0
        fall = (self.warmup + self.hold + self.decay - step) / self.decay
        return self.peak * max(0.0, min(rise, fall, 1.0))


def _check_strengths(*strengths: float) -> None:
    for strength in strengths:
        if not 0 <= strength < float("inf"):
            raise refusal(
                "a strength must be 0 or positive, and finite",
                got=strength,
                why="a negative one would silently turn the direction around",
                do="use Away() to move away from the teacher, and a strength around 1e-3 to 1",
            )


def _check_steps(name: str, steps: int, least: int) -> None:
    if steps < least:
        raise refusal(
            f"{name} must be at least {least}",
            got=steps,
            why="it is a number of generation batches",
            do="use Constant(value) for a strength that does not change",
        )
