"""Small token tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch

from selfdistill.losses import TokenTable


def table(
    lengths: Sequence[int],
    *,
    advantage: Sequence[float] | None = None,
    distil: Sequence[float] | None = None,
    log_ratio: Sequence[float] | None = None,
    logprobs: Sequence[float] | None = None,
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
        log_ratio_N=column(log_ratio, tokens, nan),
        teacher_entropy_N=column(teacher_entropy, tokens, nan),
        counted_N=torch.tensor([True] * tokens if counted is None else counted, dtype=torch.bool),
        advantage_R=column(advantage, answers, 1.0),
        distil_R=column(distil, answers, 1.0),
    )
