"""Gates: a condition of the whole batch that switches the teacher's part off. Its state is a plain `Memory`.

A memory is a flat dict of numbers, so that a checkpoint keeps it as JSON; nothing here changes one in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from selfdistill.losses.refusal import refusal
from selfdistill.losses.table import TokenTable

Memory: TypeAlias = dict[str, float]


class Gate(ABC):
    """Reads one number off each generation batch and decides whether λ passes or is 0."""

    __slots__ = ()

    @abstractmethod
    def reading(self, table: TokenTable) -> float | None:
        """What is watched; None when this batch does not show it."""

    @abstractmethod
    def decide(self, reading: float | None, memory: Mapping[str, float]) -> tuple[bool, Memory]:
        """Whether the gate is open for this batch, and what to remember for the next."""


@dataclass(frozen=True, slots=True)
class EntropyGate(Gate):
    """A Schmitt trigger on the median entropy of the teacher: the teacher's part stops when the entropy collapses.

    The first `warmup` readings are averaged into a reference H and pass nothing. After them the gate is open; it closes
    when a reading falls below `off` · H and opens again at H, not before, so that it does not flicker. A batch without
    a teacher changes nothing.

    Raises `ValueError` unless 0 < off <= 1 and warmup >= 1. Source: arXiv 2605.11609 (0.93, 5 batches).
    """

    off: float = 0.93
    warmup: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.off <= 1:
            raise refusal(
                "the gate must close at a share of the reference in (0, 1]",
                got=self.off,
                why="at 0 it never closes, above 1 it closes where it should open",
                do="use 0.93 as published, or gate=None for no gate",
            )
        if self.warmup < 1:
            raise refusal(
                "the gate needs at least one batch to warm up",
                got=self.warmup,
                why="the reference entropy is measured there",
                do="use 5 as published, or gate=None for no gate",
            )

    def reading(self, table: TokenTable) -> float | None:
        """The median of the teacher's entropy over the distilled tokens it read; of an even number the lower one."""
        seen = table.teacher_entropy_N[table.distilled_N & ~table.teacher_entropy_N.isnan()]
        return float(seen.median()) if len(seen) else None

    def decide(self, reading: float | None, memory: Mapping[str, float]) -> tuple[bool, Memory]:
        """Closed while warming up, then by the two thresholds."""
        seen, reference, is_open = (memory.get(name, 0.0) for name in ("gate_seen", "gate_reference", "gate_open"))
        if reading is None:
            return bool(is_open), dict(memory)
        if seen < self.warmup:
            reference += (reading - reference) / (seen + 1)
            opens_next = float(seen + 1 == self.warmup)
            return False, {**memory, "gate_seen": seen + 1, "gate_reference": reference, "gate_open": opens_next}
        is_open = float(reading >= (self.off * reference if is_open else reference))
        return bool(is_open), {**memory, "gate_open": is_open}
