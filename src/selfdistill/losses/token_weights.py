"""The weight of every answer token of a generation batch in each term, decided before the first update.

Legend: N tokens; A the advantage, u the log-ratio, s the distillation sign, λ the strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfdistill.losses.schedules import Memory
from selfdistill.losses.shaping import Separate, TokenTable
from selfdistill.losses.spec import LossSpec


@dataclass(frozen=True, slots=True)
class WeighedTokens:
    """Weights per token without any reduction: multiply them by `reduction_weights`. `memory` is for the next batch.

    numbers, as far as this batch has them: "lambda" (schedule · gate), "gate_open", "gate_reading", "kept_share" (of
    the counted tokens), "distilled_share" (of all tokens, those that distil), "changed_share" (of the kept tokens,
    those whose advantage is not A), "sign_disagree" (where both an advantage and a log-ratio act: how often s·u opposes
    A).
    """

    distil_N: Tensor
    advantage_N: Tensor
    memory: Memory
    numbers: dict[str, float]


@torch.no_grad()
def weigh_tokens(loss_spec: LossSpec, table: TokenTable, step: int, memory: Mapping[str, float]) -> WeighedTokens:
    """Weights of every token of the table at generation batch `step` (from 0), given the memory of earlier batches.

    Tokens that the mask does not keep weigh 0 in both terms, and no median or mean includes them. `memory` is not
    changed; start with an empty one. Where a part needs a teacher and finds NaN the advantage stays as it is.
    """
    mask, like = loss_spec.token_mask, table.logprobs_N
    kept_N = table.counted_N & (table.position_N >= mask.skip_first) & (table.logprobs_N >= mask.min_logprob)
    advantage_N, credit_N = table.advantage_R[table.answer_N], table.distil_R[table.answer_N]
    distilled_N = kept_N & (credit_N != 0)
    known_N = distilled_N & ~table.teacher_entropy_N.isnan()

    strength, numbers, memory = loss_spec.schedule.at(step), {}, dict(memory)
    if loss_spec.gate is not None:
        reading = loss_spec.gate.reading(table.teacher_entropy_N[known_N])
        is_open, memory = loss_spec.gate.decide(reading, memory)
        strength = strength if is_open else 0.0
        numbers = {"gate_open": float(is_open)} | ({} if reading is None else {"gate_reading": reading})

    factor_N = (known_N if mask.teacher_confidence else distilled_N).to(like)
    if mask.teacher_confidence and bool(known_N.any()):
        above_N = table.teacher_entropy_N - table.teacher_entropy_N[known_N].min()  # so that not all weights underflow
        confidence_N = torch.exp(-mask.teacher_confidence * above_N)
        factor_N = torch.where(known_N, confidence_N / confidence_N[known_N].mean(), 0)

    strength_N = strength * credit_N.abs() * factor_N
    sign_N = loss_spec.distil_sign.signs(advantage_N).to(like) * credit_N.sign()
    shaped_N = loss_spec.shaping.advantages(replace(table, counted_N=kept_N), strength_N, sign_N)
    shaped_N = torch.where(kept_N, shaped_N, 0)
    distil_N = strength_N * sign_N if isinstance(loss_spec.shaping, Separate) else torch.zeros_like(strength_N)

    signed_N = sign_N * table.log_ratio_N
    both_N = (strength_N * advantage_N != 0) & ~signed_N.isnan()
    shares = {
        "kept_share": (kept_N, table.counted_N),
        "distilled_share": (distil_N != 0, torch.ones_like(kept_N)),
        "changed_share": (shaped_N != advantage_N, kept_N),
        "sign_disagree": (signed_N * advantage_N < 0, both_N),
    }
    numbers |= {name: float(part_N[of_N].float().mean()) for name, (part_N, of_N) in shares.items() if of_N.any()}
    return WeighedTokens(distil_N, shaped_N, memory, {"lambda": strength} | numbers)
