"""Weighing: what each answer token of a generation batch weighs in each term, decided before the first update.

    keep → (direction, allocation) → schedule · gate → advantage shaping

Legend: N tokens; A the verdict, e the log-ratio, s the direction, λ schedule · gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selfdistill.losses.distil_sign import DistillationSign
from selfdistill.losses.gate import Gate, Memory
from selfdistill.losses.schedules import Schedule
from selfdistill.losses.shaping import AdvantageShaping, ShapedWeights
from selfdistill.losses.table import TokenTable
from selfdistill.losses.token_mask import TokenMask


class Weighing(Protocol):
    """The part of a `LossSpec` that weighs tokens."""

    @property
    def distil_sign(self) -> DistillationSign:
        """Toward the teacher, or away."""
        ...

    @property
    def token_mask(self) -> TokenMask:
        """Which tokens, how much."""
        ...

    @property
    def shaping(self) -> AdvantageShaping:
        """How log-ratio meets the verdict."""
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
class WeighedTokens:
    """Weights per token without any reduction: multiply them by `reduction_weights`. `memory` is for the next batch.

    numbers, as far as this batch has them: "lambda" (schedule · gate), "gate_open", "gate_reading", "kept_share" (of
    the counted tokens), "distilled_share" (of all tokens, those that distil), "changed_share" (of the kept tokens,
    those whose advantage is not A), "sign_disagree" (where both an advantage and log-ratio act: how often s·e opposes
    A).
    """

    distil_N: Tensor
    advantage_N: Tensor
    memory: Memory
    numbers: dict[str, float]


@torch.no_grad()
def weigh_tokens(loss_spec: Weighing, table: TokenTable, step: int, memory: Mapping[str, float]) -> WeighedTokens:
    """Weights of every token of the table at generation batch `step` (from 0), given what earlier batches left.

    Tokens that are not kept weigh 0 in both terms, and no median or mean includes them. `memory` is not
    changed; start with an empty one. What needs a teacher and finds NaN leaves the verdict as it is.
    """
    kept = table.only(loss_spec.token_mask.kept(table))
    strength, gate_numbers, memory = _strength(loss_spec, kept, step, memory)
    strength_N = strength * kept.distil_N.abs() * loss_spec.token_mask.factors(kept)
    direction_N = loss_spec.distil_sign.signs(kept) * kept.distil_N.sign()
    coupled = loss_spec.shaping.shape_advantages(kept, strength_N, direction_N)
    advantage_N = torch.where(kept.counted_N, coupled.advantage_N, 0)
    numbers = gate_numbers | _numbers(
        table, kept, strength_N, direction_N, ShapedWeights(coupled.distil_N, advantage_N)
    )
    return WeighedTokens(coupled.distil_N, advantage_N, dict(memory), numbers)


def _strength(
    loss_spec: Weighing, table: TokenTable, step: int, memory: Mapping[str, float]
) -> tuple[float, dict[str, float], Mapping[str, float]]:
    """λ, what to say of it, and the memory after this batch."""
    strength = loss_spec.schedule.at(step)
    if loss_spec.gate is None:
        return strength, {"lambda": strength}, memory
    reading = loss_spec.gate.reading(table)
    is_open, memory = loss_spec.gate.decide(reading, memory)
    strength = strength if is_open else 0.0
    numbers = {"lambda": strength, "gate_open": float(is_open)}
    return strength, numbers if reading is None else numbers | {"gate_reading": reading}, memory


def _numbers(
    table: TokenTable, kept: TokenTable, strength_N: Tensor, direction_N: Tensor, coupled: ShapedWeights
) -> dict[str, float]:
    pull_N = direction_N * kept.log_ratio_N
    both_N = (strength_N * kept.advantage_N != 0) & ~pull_N.isnan()
    shares = {
        "kept_share": (kept.counted_N, table.counted_N),
        "distilled_share": (coupled.distil_N != 0, torch.ones_like(table.counted_N)),
        "changed_share": (coupled.advantage_N != kept.advantage_N, kept.counted_N),
        "sign_disagree": (pull_N * kept.advantage_N < 0, both_N),
    }
    return {name: float(part_N[of_N].float().mean()) for name, (part_N, of_N) in shares.items() if bool(of_N.any())}
