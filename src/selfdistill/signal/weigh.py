"""Weighing: what each answer token of a generation batch weighs in each term, decided before the first update.

    keep → (direction, allocation) → schedule · gate → coupling

Legend: N tokens; A the verdict, e the evidence, s the direction, λ schedule · gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selfdistill.signal.allocation import Allocation
from selfdistill.signal.coupling import Coupled, Coupling
from selfdistill.signal.direction import Direction
from selfdistill.signal.gate import Gate, Memory
from selfdistill.signal.schedule import Schedule
from selfdistill.signal.table import TokenTable


class Weighing(Protocol):
    """The part of a `Signal` that weighs tokens."""

    @property
    def direction(self) -> Direction:
        """Toward the teacher, or away."""
        ...

    @property
    def allocation(self) -> Allocation:
        """Which tokens, how much."""
        ...

    @property
    def coupling(self) -> Coupling:
        """How evidence meets the verdict."""
        ...

    @property
    def schedule(self) -> Schedule:
        """How strong, by step."""
        ...

    @property
    def gate(self) -> Gate | None:
        """Whether at all."""
        ...


@dataclass(frozen=True, slots=True)
class Weighed:
    """Weights per token without any reduction: multiply them by `token_weights`. `memory` is for the next batch.

    numbers, as far as this batch has them: "lambda" (schedule · gate), "gate_open", "gate_reading", "kept_share" (of
    the counted tokens), "distilled_share" (of all tokens, those that distil), "changed_share" (of the kept tokens,
    those whose advantage is not A), "sign_disagree" (where both a verdict and evidence act: how often s·e opposes A).
    """

    distil_N: Tensor
    advantage_N: Tensor
    memory: Memory
    numbers: dict[str, float]


@torch.no_grad()
def weigh(signal: Weighing, table: TokenTable, step: int, memory: Mapping[str, float]) -> Weighed:
    """Weights of every token of the table at generation batch `step` (from 0), given what earlier batches left.

    Tokens that are not kept weigh 0 in both terms, and no median or mean includes them. `memory` is not
    changed; start with an empty one. What needs a teacher and finds NaN leaves the verdict as it is.
    """
    kept = table.only(signal.allocation.kept(table))
    strength, gate_numbers, memory = _strength(signal, kept, step, memory)
    strength_N = strength * kept.distil_N.abs() * signal.allocation.factors(kept)
    direction_N = signal.direction.signs(kept) * kept.distil_N.sign()
    coupled = signal.coupling.couple(kept, strength_N, direction_N)
    advantage_N = torch.where(kept.counted_N, coupled.advantage_N, 0)
    numbers = gate_numbers | _numbers(table, kept, strength_N, direction_N, Coupled(coupled.distil_N, advantage_N))
    return Weighed(coupled.distil_N, advantage_N, dict(memory), numbers)


def _strength(
    signal: Weighing, table: TokenTable, step: int, memory: Mapping[str, float]
) -> tuple[float, dict[str, float], Mapping[str, float]]:
    """λ, what to say of it, and the memory after this batch."""
    strength = signal.schedule.at(step)
    if signal.gate is None:
        return strength, {"lambda": strength}, memory
    reading = signal.gate.reading(table)
    is_open, memory = signal.gate.decide(reading, memory)
    strength = strength if is_open else 0.0
    numbers = {"lambda": strength, "gate_open": float(is_open)}
    return strength, numbers if reading is None else numbers | {"gate_reading": reading}, memory


def _numbers(
    table: TokenTable, kept: TokenTable, strength_N: Tensor, direction_N: Tensor, coupled: Coupled
) -> dict[str, float]:
    pull_N = direction_N * kept.evidence_N
    both_N = (strength_N * kept.advantage_N != 0) & ~pull_N.isnan()
    shares = {
        "kept_share": (kept.counted_N, table.counted_N),
        "distilled_share": (coupled.distil_N != 0, torch.ones_like(table.counted_N)),
        "changed_share": (coupled.advantage_N != kept.advantage_N, kept.counted_N),
        "sign_disagree": (pull_N * kept.advantage_N < 0, both_N),
    }
    return {name: float(part_N[of_N].float().mean()) for name, (part_N, of_N) in shares.items() if bool(of_N.any())}
