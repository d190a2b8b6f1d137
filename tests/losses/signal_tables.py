"""Small token tables, and a signal that holds only what weighs tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan

import torch

from selfdistill.losses.distil_sign import Attract, DistillationSign
from selfdistill.losses.gate import Gate
from selfdistill.losses.schedules import Constant, Schedule
from selfdistill.losses.shaping import AdvantageShaping, Separate
from selfdistill.losses.table import TokenTable
from selfdistill.losses.token_mask import TokenMask


@dataclass(frozen=True)
class Weights:
    """The part of a signal that `weigh_tokens` reads, all at its defaults."""

    distil_sign: DistillationSign = field(default_factory=Attract)
    token_mask: TokenMask = field(default_factory=TokenMask)
    shaping: AdvantageShaping = field(default_factory=Separate)
    schedule: Schedule = field(default_factory=Constant)
    gate: Gate | None = None


def table(
    lengths: Sequence[int],
    *,
    advantage: Sequence[float] | None = None,
    distil: Sequence[float] | None = None,
    mixture: Sequence[float] | None = None,
    logprobs: Sequence[float] | None = None,
    entropy: Sequence[float] | None = None,
    teacher_entropy: Sequence[float] | None = None,
    counted: Sequence[bool] | None = None,
    dtype: torch.dtype = torch.float64,
) -> TokenTable:
    """Answers of these lengths. Left out: advantages and credits of 1, log-probabilities of −1, and no teacher."""
    tokens, answers = sum(lengths), len(lengths)

    def column(values: Sequence[float] | None, size: int, otherwise: float) -> torch.Tensor:
        return torch.tensor([otherwise] * size if values is None else values, dtype=dtype)

    return TokenTable(
        answer_N=torch.tensor([answer for answer, length in enumerate(lengths) for _ in range(length)]).long(),
        position_N=torch.tensor([position for length in lengths for position in range(length)]).long(),
        logprobs_N=column(logprobs, tokens, -1.0),
        entropy_N=column(entropy, tokens, 1.0),
        log_ratio_N=column(mixture, tokens, nan),
        teacher_entropy_N=column(teacher_entropy, tokens, nan),
        counted_N=torch.tensor([True] * tokens if counted is None else counted, dtype=torch.bool),
        advantage_R=column(advantage, answers, 1.0),
        distil_R=column(distil, answers, 1.0),
    )
