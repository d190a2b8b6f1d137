"""Allocation: which tokens count, and how much of the distillation each of them gets.

Legend: N tokens; H_T the teacher's entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses.refusal import refusal
from selfdistill.losses.table import TokenTable


@dataclass(frozen=True, slots=True)
class TokenMask:
    """What each token gets. The defaults give every counted token the same.

    Of both terms, distillation and policy gradient, are taken: tokens not counted, the first `skip_first` tokens of an
    answer, and tokens with log π(y) < `min_logprob` (arXiv 2602.02482 uses −5). Of the distillation alone:

    teacher_confidence: β in weights exp(−β H_T), scaled to mean 1 over the distilled tokens that remain, 0 where the
    teacher's entropy is unknown (arXiv 2604.02288 uses 1).

    Raises `ValueError` for values out of range.
    """

    skip_first: int = 0
    teacher_confidence: float = 0.0
    min_logprob: float = float("-inf")

    def __post_init__(self) -> None:
        if self.skip_first < 0:
            raise refusal(
                "skip_first must be 0 or more tokens",
                got=self.skip_first,
                why="it counts tokens at the beginning of an answer that are left out",
                do="use 0 for none, 3 as published for SDFT",
            )
        if not 0 <= self.teacher_confidence < float("inf"):
            raise refusal(
                "teacher_confidence must be 0 or positive, and finite",
                got=self.teacher_confidence,
                why="a negative one would favour what the teacher does not know",
                do="use 0 to weigh all tokens alike, 1 as published",
            )
        if not self.min_logprob < 0:
            raise refusal(
                "min_logprob must be negative",
                got=self.min_logprob,
                why="no token has a log-probability above 0, so all would be dropped",
                do="use −5, or −inf to keep every token",
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's entropy is read."""
        return self.teacher_confidence > 0

    def kept(self, table: TokenTable) -> Tensor:
        """kept_N, bool: tokens that take part in both terms."""
        return table.counted_N & (table.position_N >= self.skip_first) & (table.logprobs_N >= self.min_logprob)

    def factors(self, table: TokenTable) -> Tensor:
        """factor_N of the distillation, 0 outside the distilled tokens. `table` counts kept tokens only."""
        factor_N = table.distilled_N.to(table.logprobs_N)
        return factor_N * self._confidence(table) if self.teacher_confidence else factor_N

    def _confidence(self, table: TokenTable) -> Tensor:
        """exp(−β H_T) over its mean. The lowest entropy is taken off first, so that not all of them underflow."""
        known_N = table.distilled_N & ~table.teacher_entropy_N.isnan()
        if not bool(known_N.any()):
            return torch.zeros_like(table.logprobs_N)
        lowest = table.teacher_entropy_N[known_N].min()
        weight_N = torch.exp(-self.teacher_confidence * (table.teacher_entropy_N - lowest))
        return torch.where(known_N, weight_N / weight_N[known_N].mean(), 0)
