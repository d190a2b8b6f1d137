"""Advantage shaping: how the teacher's log-ratio about a token meets the verdict on its answer.

Legend: N tokens; A the verdict, e the log-ratio, s the direction, λ the strength of a token: schedule · gate · credit ·
allocation.

All but `Separate` turn the log-ratio on the sampled token into an advantage, so that one policy gradient carries both
and the teacher needs no pass during the update. Where λ is 0 or the log-ratio unknown (NaN) they leave A exactly alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfdistill.losses.clipping import ClippedDivergence, Clipping, Relative, unresolved
from selfdistill.losses.divergences import Divergence, ReverseKL
from selfdistill.losses.refusal import refusal
from selfdistill.losses.table import TokenTable

_LARGEST_EVIDENCE = 20.0  # nats, as for importance weights: a token that became impossible must not make inf or NaN


@dataclass(frozen=True, slots=True)
class ShapedWeights:
    """What each token weighs in the distillation, and its advantage in the policy gradient; before any reduction."""

    distil_N: Tensor
    advantage_N: Tensor


class AdvantageShaping(ABC):
    """One way for log-ratio and verdict to meet."""

    __slots__ = ()

    @property
    def needs_log_ratio(self) -> bool:
        """Whether the log-ratio of the table is read."""
        return True

    @abstractmethod
    def shape_advantages(self, table: TokenTable, strength_N: Tensor, direction_N: Tensor) -> ShapedWeights:
        """`strength_N` is λ ≥ 0, `direction_N` is s; `table` counts kept tokens only."""


@dataclass(frozen=True, slots=True)
class Separate(AdvantageShaping):
    """Two terms: the distillation weighs λ·s and is measured by the kernel on its support, the advantage stays A."""

    @property
    def needs_log_ratio(self) -> bool:
        """No: the kernel measures its own."""
        return False

    def shape_advantages(self, table: TokenTable, strength_N: Tensor, direction_N: Tensor) -> ShapedWeights:
        """distil = λ s, advantage = A."""
        return ShapedWeights(strength_N * direction_N, table.advantage_N.to(strength_N))


@dataclass(frozen=True, slots=True)
class Additive(AdvantageShaping):
    """A + r with r = λ s Φ(h(e)) where |r| > `threshold`, else A; no distillation term.

    divergence: whose h maps the log-ratio, h(e) = e by default. bound: Φ; None leaves h as it is.
    keep_sign: A + r is cut at 0 where it would change the sign of A; where A is 0 the advantage then stays 0.
    two_path: η. Tokens that were changed and tokens that were not are averaged apart and the means added, 1 to η: with
    M of N kept tokens changed, these are multiplied by η·N/M and the others by N/(N−M). Exact under the reduction
    "token-mean" over the kept tokens alone: where dropped answers count in it (`count_dropped`), or tokens that are not
    kept, both means are diluted. None averages over all tokens together.

    With λ = 0.5: RLCSD is `Additive(clipping=Tanh(0.02), threshold=0.02, keep_sign=True, two_path=1.0)` on raw
    contrast; AntiSD is `Additive(JensenShannon(0.5))` with the direction `Repel()`, as ½(softplus(e) − log 2) is that
    shape's h.

    Raises `ValueError` for a negative threshold or η, and for a `Relative` bound: a table has no mean to relate it to.
    Source: arXiv 2606.11709 (RLCSD), 2605.11609 (AntiSD).
    """

    divergence: Divergence = field(default_factory=ReverseKL)
    clipping: Clipping | None = None
    threshold: float = 0.0
    keep_sign: bool = False
    two_path: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.clipping, Relative):
            raise unresolved(self.clipping)
        for name, value in (("threshold", self.threshold), ("two_path", self.two_path)):
            if value is not None and not 0 <= value < float("inf"):
                raise refusal(
                    f"{name} must be 0 or positive, and finite",
                    got=value,
                    why="it is compared with an absolute value, or weighs a mean",
                    do="use threshold 0 to change every token, two_path None for one mean",
                )

    def shape_advantages(self, table: TokenTable, strength_N: Tensor, direction_N: Tensor) -> ShapedWeights:
        """advantage = A + r."""
        verdict_N, (known_N, log_ratio_N) = table.advantage_N.to(strength_N), _evidence(table, strength_N)
        student_N = table.logprobs_N.to(strength_N)
        push_N = ClippedDivergence(self.divergence, self.clipping).advantage(student_N, student_N + log_ratio_N)
        push_N = strength_N * direction_N * push_N
        changed_N = known_N & (push_N.abs() > self.threshold)
        advantage_N = verdict_N + push_N
        if self.keep_sign:
            advantage_N = torch.where(advantage_N.sign() == verdict_N.sign(), advantage_N, 0)
        advantage_N = torch.where(changed_N, advantage_N, verdict_N)
        if self.two_path is not None:
            kept, changed = int(table.counted_N.sum()), int(changed_N.sum())
            weight_N = torch.full_like(advantage_N, kept / max(kept - changed, 1))
            advantage_N = advantage_N * weight_N.masked_fill(changed_N, self.two_path * kept / max(changed, 1))
        return _alone(advantage_N)


@dataclass(frozen=True, slots=True)
class Multiplicative(AdvantageShaping):
    """A · ((1 − λ) + λ · clip(e^{s e}, 1 ± `clip`)): log-ratio scales the verdict. The factor is never negative.

    With the direction `AdvantageSign()` this is RLSD, with `OppositeAdvantageSign()` and credit for solved answers
    alone RLRT. No distillation term. Raises `ValueError` unless 0 < clip <= 1. Source: arXiv 2604.03128, 2605.10781.
    """

    clip: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1:
            raise refusal(
                "the clip of a factor around 1 must lie in (0, 1]",
                got=self.clip,
                why="at 0 log-ratio does nothing, above 1 it could turn an advantage around",
                do="use 0.2 as RLSD does, 0.5 or 1.0 as RLRT does",
            )

    def shape_advantages(self, table: TokenTable, strength_N: Tensor, direction_N: Tensor) -> ShapedWeights:
        """advantage = A · factor."""
        verdict_N, (known_N, log_ratio_N) = table.advantage_N.to(strength_N), _evidence(table, strength_N)
        ratio_N = torch.exp(direction_N * log_ratio_N).clamp(1 - self.clip, 1 + self.clip)
        factor_N = (1 + strength_N * (ratio_N - 1)).clamp(min=0)
        return _alone(torch.where(known_N, verdict_N * factor_N, verdict_N))


@dataclass(frozen=True, slots=True)
class Centred(AdvantageShaping):
    """A + λ s (e − mean of e over its answer): which tokens of an answer, never whether the answer; no distillation.

    The mean is over the tokens of the answer that have strength and log-ratio. Without an advantage (A = 0) and with λ
    = 1 this is the advantage for learning from a user's reply. Source: arXiv 2603.12273.
    """

    def shape_advantages(self, table: TokenTable, strength_N: Tensor, direction_N: Tensor) -> ShapedWeights:
        """advantage = A + λ s (e − mean)."""
        verdict_N, (known_N, log_ratio_N) = table.advantage_N.to(strength_N), _evidence(table, strength_N)
        centred_N = log_ratio_N - table.answer_means(log_ratio_N, known_N)
        return _alone(torch.where(known_N, verdict_N + strength_N * direction_N * centred_N, verdict_N))


@dataclass(frozen=True, slots=True)
class Pooled(AdvantageShaping):
    """A + λ s · (mean of h(e) over its answer): one advantage for all tokens of an answer; no distillation term.

    What is left of the teacher's opinion when it may only say how good the answer is: the comparison by which credit
    for tokens is measured. Source: arXiv 2601.20802, the ablation of sequence-level credit.
    """

    divergence: Divergence = field(default_factory=ReverseKL)

    def shape_advantages(self, table: TokenTable, strength_N: Tensor, direction_N: Tensor) -> ShapedWeights:
        """advantage = A + λ s mean h(e)."""
        verdict_N, (known_N, log_ratio_N) = table.advantage_N.to(strength_N), _evidence(table, strength_N)
        student_N = table.logprobs_N.to(strength_N)
        pooled_N = table.answer_means(self.divergence.advantage(student_N, student_N + log_ratio_N), known_N)
        return _alone(torch.where(known_N, verdict_N + strength_N * direction_N * pooled_N, verdict_N))


def _evidence(table: TokenTable, strength_N: Tensor) -> tuple[Tensor, Tensor]:
    """known_N: tokens at which log-ratio acts; and the log-ratio, 0 elsewhere."""
    known_N = ~table.log_ratio_N.isnan() & (strength_N != 0)
    held_N = table.log_ratio_N.to(strength_N).clamp(-_LARGEST_EVIDENCE, _LARGEST_EVIDENCE)
    return known_N, torch.where(known_N, held_N, 0)


def _alone(advantage_N: Tensor) -> ShapedWeights:
    return ShapedWeights(torch.zeros_like(advantage_N), advantage_N)
