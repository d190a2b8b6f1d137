"""Allocation: which tokens count, and how much of the distillation each of them gets.

Legend: N tokens; t position in an answer, T its length, H_T the teacher's entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.signal.refusal import refusal
from selfdistill.signal.table import TokenTable, quantile

_STEEPEST_GROWTH = 4.0  # (t/T)^±4 of a million tokens still fits float32


@dataclass(frozen=True, slots=True)
class Allocation:
    """What each token gets. The defaults give every counted token the same.

    Of both terms, distillation and policy gradient, are taken: tokens not counted, the first `skip_first` tokens of an
    answer, and tokens with log π(y) < `min_logprob` (arXiv 2602.02482 uses −5). Of the distillation alone:

    last: only the first `last` tokens of an answer; 0 is no limit.
    entropy_top: only this share of the distilled tokens, those of highest student entropy; ties stay.
    teacher_confidence: β in weights exp(−β H_T), scaled to mean 1 over the distilled tokens that remain, 0 where the
    teacher's entropy is unknown (arXiv 2604.02288 uses 1).
    position_growth: g in weights ((t+1)/T)^g, scaled to mean 1 within every answer; negative favours the beginning.

    Raises `ValueError` for values out of range.
    """

    skip_first: int = 0
    last: int = 0
    entropy_top: float = 1.0
    teacher_confidence: float = 0.0
    min_logprob: float = float("-inf")
    position_growth: float = 0.0

    def __post_init__(self) -> None:
        self._check_positions()
        if not 0 < self.entropy_top <= 1:
            raise refusal(
                "entropy_top must lie in (0, 1]",
                got=self.entropy_top,
                why="it is the share of tokens that are distilled",
                do="use 1.0 for all, 0.2 for the fifth of highest entropy",
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

    def _check_positions(self) -> None:
        if self.skip_first < 0 or self.last < 0 or 0 < self.last <= self.skip_first:
            raise refusal(
                "tokens from skip_first up to last must leave something",
                got=f"skip_first {self.skip_first}, last {self.last}",
                why="no position would be distilled",
                do="use skip_first >= 0 and last > skip_first, or last = 0 for no limit",
            )
        if not abs(self.position_growth) <= _STEEPEST_GROWTH:
            raise refusal(
                f"position_growth must lie in [−{_STEEPEST_GROWTH:g}, {_STEEPEST_GROWTH:g}]",
                got=self.position_growth,
                why="a steeper growth leaves one token per answer",
                do="use 0 for no growth, 1 for weights proportional to the position",
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
        chosen_N = table.distilled_N
        if self.last:
            chosen_N = chosen_N & (table.position_N < self.last)
        if self.entropy_top < 1 and bool(chosen_N.any()):
            chosen_N = chosen_N & (table.entropy_N >= quantile(table.entropy_N[chosen_N], 1 - self.entropy_top))
        factor_N = chosen_N.to(table.logprobs_N)
        if self.teacher_confidence:
            factor_N = factor_N * self._confidence(table, chosen_N)
        if self.position_growth:
            factor_N = factor_N * self._growth(table, chosen_N)
        return factor_N

    def _confidence(self, table: TokenTable, chosen_N: Tensor) -> Tensor:
        """exp(−β H_T) over its mean. The lowest entropy is taken off first, so that not all of them underflow."""
        known_N = chosen_N & ~table.teacher_entropy_N.isnan()
        if not bool(known_N.any()):
            return torch.zeros_like(table.logprobs_N)
        lowest = table.teacher_entropy_N[known_N].min()
        weight_N = torch.exp(-self.teacher_confidence * (table.teacher_entropy_N - lowest))
        return torch.where(known_N, weight_N / weight_N[known_N].mean(), 0)

    def _growth(self, table: TokenTable, chosen_N: Tensor) -> Tensor:
        """((t+1)/T)^g over its mean in the answer; the length T cancels."""
        growth_N = (table.position_N + 1).to(table.logprobs_N) ** self.position_growth
        return torch.where(chosen_N, growth_N / table.answer_means(growth_N, chosen_N), 0)
