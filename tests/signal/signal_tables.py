"""Small token tables, and a signal that holds only what weighs tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan

import torch

from selfdistill.signal.allocation import Allocation
from selfdistill.signal.coupling import Coupling, Separate
from selfdistill.signal.direction import Direction, Toward
from selfdistill.signal.gate import Gate
from selfdistill.signal.schedule import Constant, Schedule
from selfdistill.signal.table import TokenTable


@dataclass(frozen=True)
class Weights:
    """The part of a signal that `weigh` reads, all at its defaults."""

    direction: Direction = field(default_factory=Toward)
    allocation: Allocation = field(default_factory=Allocation)
    coupling: Coupling = field(default_factory=Separate)
    schedule: Schedule = field(default_factory=Constant)
    gate: Gate | None = None


def table(
    lengths: Sequence[int],
    *,
    advantage: Sequence[float] | None = None,
    distil: Sequence[float] | None = None,
    evidence: Sequence[float] | None = None,
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
        evidence_N=column(evidence, tokens, nan),
        teacher_entropy_N=column(teacher_entropy, tokens, nan),
        counted_N=torch.tensor([True] * tokens if counted is None else counted, dtype=torch.bool),
        advantage_R=column(advantage, answers, 1.0),
        distil_R=column(distil, answers, 1.0),
    )
