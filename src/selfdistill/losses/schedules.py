"""The strength λ of the teacher's part over training: schedules by step, and gates that switch it off. A step is a
generation batch, counted from 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from selfdistill.errors import Ranged, option

Memory: TypeAlias = dict[str, float]
"""What a gate keeps between steps: plain numbers, which a checkpoint holds as JSON. Nothing changes one in place."""


class Schedule(Ranged, ABC):
    """λ ≥ 0 by step."""

    __slots__ = ()

    @abstractmethod
    def at(self, step: int) -> float:
        """λ of this generation batch."""


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The same at every step."""

    value: float = option(1.0, "λ; Repel() is the way to move away from the teacher", least=0)

    def at(self, step: int) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """From `start` at step 0 straight to `end` at step `steps`, which then holds: 0.5 → 0 over 50 is 0.25 at step 25.

    Source: arXiv 2604.03128.
    """

    start: float = option(0.5, "λ at step 0", least=0)
    end: float = option(0.0, "λ from step `steps` on", least=0)
    steps: int = option(50, "generation batches from one to the other", least=1)

    def at(self, step: int) -> float:
        """On the line, or `end` beyond it."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class Trapezoid(Schedule):
    """0 up to `peak` over `warmup` steps, there for `hold`, back to 0 over `decay`: then 0 for good.

    With warm-up 2, hold 1, decay 4 and peak 1 the steps 0, 1, 2 … have 0, ½, 1, 1, ¾, ½, ¼, 0. A warm-up of 0 starts at
    the peak. Source: arXiv 2606.04036 (warm-up 50, decay 350, peak 1e-3).
    """

    peak: float = option(1e-3, "the largest λ", least=0)
    warmup: int = option(50, "generation batches over which λ rises", least=0)
    hold: int = option(0, "generation batches at the peak", least=0)
    decay: int = option(350, "generation batches over which λ falls to 0", least=1)

    def at(self, step: int) -> float:
        """The lower of the two slopes, at most the peak, at least 0."""
        rise = step / self.warmup if self.warmup else 1.0
        fall = (self.warmup + self.hold + self.decay - step) / self.decay
        return self.peak * max(0.0, min(rise, fall, 1.0))


@dataclass(frozen=True, slots=True)
class EntropyGate(Ranged):
    """A Schmitt trigger on the median entropy of the teacher: the teacher's part stops when the entropy collapses.

    It reads one number off each generation batch and decides whether λ passes or is 0.

    The first `warmup` readings are averaged into a reference H, with the gate closed. After them it is open; it closes
    when a reading falls below `off` · H and opens again at H, not before, so that it does not flicker. A batch without
    a teacher changes nothing. Source: arXiv 2605.11609 (0.93, 5 batches).
    """

    off: float = option(0.93, "share of the reference entropy below which the gate closes", above=0, most=1)
    warmup: int = option(5, "batches over which the reference entropy is measured", least=1)

    def reading(self, teacher_entropy_N: Tensor) -> float | None:
        """The median of the teacher's entropy at the distilled tokens, of an even number the lower one; None where
        there are none."""
        return float(teacher_entropy_N.median()) if len(teacher_entropy_N) else None

    def decide(self, reading: float | None, memory: Mapping[str, float]) -> tuple[bool, Memory]:
        """Whether the gate is open for this batch (closed while warming up, then by the two thresholds), and the memory
        for the next."""
        seen, reference, is_open = (memory.get(name, 0.0) for name in ("gate_seen", "gate_reference", "gate_open"))
        if reading is None:
            return bool(is_open), dict(memory)
        if seen < self.warmup:
            reference += (reading - reference) / (seen + 1)
            opens_next = float(seen + 1 == self.warmup)
            return False, {**memory, "gate_seen": seen + 1, "gate_reference": reference, "gate_open": opens_next}
        is_open = float(reading >= (self.off * reference if is_open else reference))
        return bool(is_open), {**memory, "gate_open": is_open}
