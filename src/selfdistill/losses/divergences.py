"""Shapes: what a difference of opinion about a token is worth. One class per divergence; nothing else knows them.

Legend: N positions, V outcomes (the vocabulary, or the buckets of a support); p student, q teacher.

For every divergence D(p, q) with q held fixed, the gradient with respect to the student's logits z is

    ∂D/∂z_v = −p_v (a_v − Σ_w p_w a_w)        a_v = h(u_v),  u_v = log q_v − log p_v  (the log-ratio)

so a divergence is its value and its pointwise shape h, which acts as an advantage for every token of the vocabulary
(Hübotter et al., arXiv 2601.20802v2, Prop. 2.1, for h(u) = u). To add one, derive from `Divergence` here. A number that
is the same for all outcomes, such as the divergence itself, is no advantage: its expected gradient is 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses.refusal import refusal

_LARGEST_EVIDENCE = 80.0  # e^80 still fits float32; beyond it p < 1e-34 q, and the terms it enters are constant or 0


@dataclass(frozen=True, slots=True)
class DivergenceValue:
    """What one term says of N positions: its value, and its flow F_v = p_v a_v.

    Flows of several terms add up, and ∂L/∂z = p ΣF − F turns their sum into a gradient on the logits. The tensors are
    fresh: whoever asked for them may overwrite them. `magnitude_N` is Σ |F| before any bound.
    """

    divergence_N: Tensor
    numerator_NV: Tensor
    magnitude_N: Tensor | None = None


class Divergence(ABC):
    """A divergence D(p, q) ≥ 0 and its shape h. Arguments are log-probabilities whose last axis sums to 1."""

    __slots__ = ()

    @abstractmethod
    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """a = h(u), entry by entry."""

    @abstractmethod
    def compare(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """The value per position, and p · a without overflow where p is tiny. Both are exactly 0 when p is q."""

    def sampled(self, log_p_N1: Tensor, log_q_N1: Tensor) -> DivergenceValue:
        """On one token drawn from p: flow h(u), and the term of that token in D over p, for the reverse KL
        log p − log q. Both are unbiased estimates of what `compare` gives."""
        evidence_N1 = (log_q_N1 - log_p_N1).clamp(max=_LARGEST_EVIDENCE)
        return DivergenceValue(
            self.divergence(torch.zeros_like(evidence_N1), evidence_N1), self.advantage(log_p_N1, log_q_N1)
        )

    def divergence(self, log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        """D(p, q) in nats, summed over the last axis."""
        return self.compare(log_p_NV, log_q_NV).divergence_N


@dataclass(frozen=True, slots=True)
class ReverseKL(Divergence):
    """KL(p‖q) = Σ p (log p − log q), student first, mode seeking: h(u) = u. Unbounded where the teacher says "never".

    Source: arXiv 2601.20802, Eq. 1.
    """

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = u."""
        return log_q - log_p

    def compare(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """Flow p·u; the value is minus its sum."""
        numerator_NV = log_p_NV.exp().mul_(log_q_NV - log_p_NV)
        return DivergenceValue(-numerator_NV.sum(-1), numerator_NV)


@dataclass(frozen=True, slots=True)
class ForwardKL(Divergence):
    """KL(q‖p) = Σ q (log q − log p), teacher first, mass covering: h(u) = e^u − 1."""

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = e^u − 1, with u held to 80: further out it would not fit the number format."""
        return torch.expm1((log_q - log_p).clamp_(max=_LARGEST_EVIDENCE))

    def compare(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """Flow p·(e^u − 1) = q − p."""
        q_NV = log_q_NV.exp()
        numerator_NV = q_NV - log_p_NV.exp()
        return DivergenceValue(q_NV.mul_(log_q_NV - log_p_NV).sum(-1), numerator_NV)


@dataclass(frozen=True, slots=True)
class JensenShannon(Divergence):
    """(1−α) KL(p‖m) + α KL(q‖m) with m = (1−α)p + αq: h(u) = (1−α) log((1−α) + α e^u). Bounded by H(α) ≤ log 2.

    α is the teacher's share of the mixture m, strictly between 0 and 1. The scale depends on it: JSD_α/α → KL(q‖p)
    as α → 0 and JSD_α/(1−α) → KL(p‖q) as α → 1, so changing α also changes the effective learning rate.

    Source: Lin 1991; arXiv 2601.20802, §2, with α = 0.5.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise refusal(
                "alpha of a Jensen-Shannon divergence must lie strictly between 0 and 1",
                got=self.alpha,
                why="at the ends the mixture is one of the two distributions and the divergence is 0",
                do="use ForwardKL() or ReverseKL(), or divergence(alpha), which accepts the ends",
            )

    def _log_ratio(self, mixture: Tensor) -> Tensor:
        """log(m/p) = log((1−α) + α e^u), exactly 0 at u = 0. Overwrites its argument."""
        return mixture.expm1_().mul_(self.alpha).log1p_()

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = (1−α) log((1−α) + α e^u)."""
        mixture = log_q - log_p
        beyond = (mixture - _LARGEST_EVIDENCE).clamp(min=0)
        return (1 - self.alpha) * (self._log_ratio(mixture.clamp(max=_LARGEST_EVIDENCE)) + beyond)

    def compare(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """Flow (1−α) p log(m/p); the value is Σ α q (u − log(m/p)) minus its sum."""
        evidence_NV = (log_q_NV - log_p_NV).clamp_(max=_LARGEST_EVIDENCE)
        log_ratio_NV = self._log_ratio(evidence_NV.clone())
        teacher_N = log_q_NV.exp().mul_(evidence_NV.sub_(log_ratio_NV)).sum(-1)
        numerator_NV = log_ratio_NV.mul_(log_p_NV.exp()).mul_(1 - self.alpha)
        return DivergenceValue(self.alpha * teacher_N - numerator_NV.sum(-1), numerator_NV)


@dataclass(frozen=True, slots=True)
class ClippedForwardKL(Divergence):
    """Σ min(q (log q − log p), limit): the forward KL with each token's share cut. h(u) = e^u − 1, or −1 where cut.

    A cut token has no gradient of its own, so the others *push it down*, however much the teacher wants it. That is a
    pressure against the few tokens, often of style, on which a teacher insists; it is not a gentler forward KL. The
    value may be negative, as only positive entries are cut.

    Raises `ValueError` unless the limit is positive. Source: arXiv 2601.18734.
    """

    limit: float = 0.05

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise refusal(
                "the limit of a clipped forward KL must be positive",
                got=self.limit,
                why="every token that the teacher wants more of would be cut, and pushed down",
                do="0.05 as published; ForwardKL() has no limit",
            )

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = e^u − 1, or −1 where cut."""
        cut = log_q.exp().mul_(log_q - log_p) > self.limit
        return ForwardKL().advantage(log_p, log_q).masked_fill_(cut, -1.0)

    def compare(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """Flow q − p, or −p where cut."""
        q_NV = log_q_NV.exp()
        entries_NV = (log_q_NV - log_p_NV).mul_(q_NV)
        numerator_NV = q_NV.masked_fill_(entries_NV > self.limit, 0.0).sub_(log_p_NV.exp())
        return DivergenceValue(entries_NV.clamp_(max=self.limit).sum(-1), numerator_NV)

    def sampled(self, log_p_N1: Tensor, log_q_N1: Tensor) -> DivergenceValue:
        """The limit is one of the token's whole term, so that its estimate has limit/p."""
        plain = ForwardKL().sampled(log_p_N1, log_q_N1)
        held_N = torch.minimum(plain.divergence_N, self.limit * (-log_p_N1[:, 0]).clamp(max=_LARGEST_EVIDENCE).exp())
        return DivergenceValue(held_N, self.advantage(log_p_N1, log_q_N1))


def divergence(alpha: float) -> Divergence:
    """The paper's switch: 0 is KL(teacher‖student), 1 is KL(student‖teacher), between is the Jensen-Shannon
    divergence whose mixture is (1−alpha)·student + alpha·teacher.

    The switch is discontinuous in scale: as alpha goes to 0 the divergence goes to 0, but at 0 it is the full forward
    KL (JSD_α ≈ α KL(q‖p)); at 1 likewise with the reverse KL. A sweep over alpha therefore also sweeps the effective
    learning rate. Raises `ValueError` outside [0, 1]. Source: arXiv 2601.20802, released settings.
    """
    if not 0 <= alpha <= 1 or math.isnan(alpha):
        raise refusal(
            "alpha must lie in [0, 1]",
            got=alpha,
            why="it is the teacher's share of a mixture with the student",
            do="0 for KL(teacher‖student), 1 for KL(student‖teacher), between for Jensen-Shannon",
        )
    if alpha in (0, 1):
        return ReverseKL() if alpha else ForwardKL()
    return JensenShannon(alpha)
