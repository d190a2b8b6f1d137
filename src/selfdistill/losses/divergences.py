"""Divergences D(p, q) of the student p from the teacher q. One class each; nothing else in this package knows them.

Legend: N positions, V outcomes (the vocabulary, or the buckets of a support); E entries that a numerator covers.

With q held fixed, the gradient of every divergence with respect to the student's logits z is

    ∂D/∂z_v = p_v ΣF − F_v        F_v = p_v a_v,  a_v = h(u_v),  u_v = log q_v − log p_v  (the log-ratio)

so a divergence is its value and a pointwise h, which acts as an advantage for every token of the vocabulary (Hübotter
et al., arXiv 2601.20802v2, Prop. 2.1, for h(u) = u). F is the logit-gradient numerator; those of several terms add up.
To add a divergence, derive from `Divergence` here. A number that is the same for all outcomes, such as the divergence
itself, is no advantage: its expected gradient is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, Range, Ranged, option

_LARGEST_EXPONENT = 80.0  # e^80 still fits float32; beyond it p < 1e-34 q, and the terms it enters are constant or 0


class DivergenceValue(NamedTuple):
    """The divergence of N positions in nats, and its numerator F = p · a. Fresh tensors: the caller may overwrite
    them."""

    divergence_N: Tensor
    numerator_NV: Tensor


@dataclass(frozen=True, slots=True)
class GradientNumerator:
    """F on some entries: on the tokens `ids_NE`, `on_buckets` on the student's buckets, else on the whole vocabulary.

    Inside the last bucket F is proportional to p. `total_N1` is ΣF where it is not the sum of the values.
    """

    values_NE: Tensor
    ids_NE: Tensor | None = None
    on_buckets: bool = False
    total_N1: Tensor | None = None


class Divergence(Ranged, ABC):
    """A divergence D(p, q) ≥ 0 and its h. Arguments are log-probabilities whose last axis sums to 1."""

    __slots__ = ()

    @abstractmethod
    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """a = h(u), entry by entry."""

    @abstractmethod
    def evaluate(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """The value per position, and F without overflow where p is tiny. Both are exactly 0 when p is q."""

    def evaluate_sampled(self, log_p_N1: Tensor, log_q_N1: Tensor) -> DivergenceValue:
        """Unbiased estimates of both from one token drawn from p: F = h(u), and that token's term of D over p, for the
        reverse KL log p − log q."""
        log_ratio_N1 = (log_q_N1 - log_p_N1).clamp(max=_LARGEST_EXPONENT)
        term_N = self.evaluate(torch.zeros_like(log_ratio_N1), log_ratio_N1).divergence_N
        return DivergenceValue(term_N, self.advantage(log_p_N1, log_q_N1))


@dataclass(frozen=True, slots=True)
class ReverseKL(Divergence):
    """KL(p‖q) = Σ p (log p − log q), student first, mode seeking: h(u) = u. Unbounded where q is 0.

    Source: arXiv 2601.20802, Eq. 1.
    """

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = u."""
        return log_q - log_p

    def evaluate(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """F = p·u; the value is minus its sum."""
        numerator_NV = log_p_NV.exp().mul_(log_q_NV - log_p_NV)
        return DivergenceValue(-numerator_NV.sum(-1), numerator_NV)


@dataclass(frozen=True, slots=True)
class ForwardKL(Divergence):
    """KL(q‖p) = Σ q (log q − log p), teacher first, mass covering: h(u) = e^u − 1."""

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = e^u − 1, with u clamped to 80: further out it would not fit the number format."""
        return torch.expm1((log_q - log_p).clamp_(max=_LARGEST_EXPONENT))

    def evaluate(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """F = p·(e^u − 1) = q − p."""
        q_NV = log_q_NV.exp()
        numerator_NV = q_NV - log_p_NV.exp()
        return DivergenceValue(q_NV.mul_(log_q_NV - log_p_NV).sum(-1), numerator_NV)


@dataclass(frozen=True, slots=True)
class JensenShannon(Divergence):
    """(1−α) KL(p‖m) + α KL(q‖m) with m = (1−α)p + αq: h(u) = (1−α) log((1−α) + α e^u). At most H(α) ≤ log 2.

    Its scale depends on α: JSD_α/α → KL(q‖p) as α → 0 and JSD_α/(1−α) → KL(p‖q) as α → 1, so changing α also changes
    the effective learning rate. Source: Lin 1991; arXiv 2601.20802, §2, with α = 0.5.
    """

    alpha: float = option(0.5, "the teacher's share; ForwardKL() and ReverseKL() are the ends", above=0, below=1)

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = (1−α) log((1−α) + α e^u), which grows linearly far out."""
        log_ratio = log_q - log_p
        mixture = log_ratio.clamp(max=_LARGEST_EXPONENT).expm1_().mul_(self.alpha).log1p_()
        return (1 - self.alpha) * (mixture + (log_ratio - _LARGEST_EXPONENT).clamp(min=0))

    def evaluate(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """F = (1−α) p log(m/p); the value is Σ α q (u − log(m/p)) minus its sum. log(m/p) is exactly 0 at u = 0."""
        log_ratio_NV = (log_q_NV - log_p_NV).clamp_(max=_LARGEST_EXPONENT)
        mixture_NV = log_ratio_NV.clone().expm1_().mul_(self.alpha).log1p_()
        teacher_N = log_q_NV.exp().mul_(log_ratio_NV.sub_(mixture_NV)).sum(-1)
        numerator_NV = mixture_NV.mul_(log_p_NV.exp()).mul_(1 - self.alpha)
        return DivergenceValue(self.alpha * teacher_N - numerator_NV.sum(-1), numerator_NV)


@dataclass(frozen=True, slots=True)
class ClippedForwardKL(Divergence):
    """Σ min(q (log q − log p), limit): the forward KL with each token's share cut. h(u) = e^u − 1, or −1 where cut.

    A cut token has no gradient of its own, so the others *lower its probability*, however likely it is under the
    teacher: a pressure against few tokens, often of style, with a large share; not a gentler forward KL. The value may
    be negative, as only positive entries are cut. Source: arXiv 2601.18734.
    """

    limit: float = option(0.05, "of one token's share; near 0 all that the teacher prefers is cut", above=0, most=inf)

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """h(u) = e^u − 1, or −1 where cut."""
        cut = log_q.exp().mul_(log_q - log_p) > self.limit
        return ForwardKL().advantage(log_p, log_q).masked_fill_(cut, -1.0)

    def evaluate(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """F = q − p, or −p where cut."""
        q_NV = log_q_NV.exp()
        entries_NV = (log_q_NV - log_p_NV).mul_(q_NV)
        numerator_NV = q_NV.masked_fill_(entries_NV > self.limit, 0.0).sub_(log_p_NV.exp())
        return DivergenceValue(entries_NV.clamp_(max=self.limit).sum(-1), numerator_NV)

    def evaluate_sampled(self, log_p_N1: Tensor, log_q_N1: Tensor) -> DivergenceValue:
        """The limit cuts the token's whole term, so its estimate is cut at limit/p."""
        plain = ForwardKL().evaluate_sampled(log_p_N1, log_q_N1)
        limit_N = self.limit * (-log_p_N1[:, 0]).clamp(max=_LARGEST_EXPONENT).exp()
        return DivergenceValue(torch.minimum(plain.divergence_N, limit_N), self.advantage(log_p_N1, log_q_N1))


def divergence(alpha: float) -> Divergence:
    """The paper's switch: 0 is KL(teacher‖student), 1 is KL(student‖teacher), between is the Jensen-Shannon
    divergence whose mixture is (1−alpha)·student + alpha·teacher.

    The switch is discontinuous in scale: as alpha goes to 0 the divergence goes to 0, but at 0 it is the full forward
    KL (JSD_α ≈ α KL(q‖p)); at 1 likewise with the reverse KL. A sweep over alpha therefore also sweeps the effective
    learning rate. Raises `ConfigError` outside [0, 1]. Source: arXiv 2601.20802, released settings.
    """
    if not Range(0, 1).holds(alpha):
        raise ConfigError("alpha must lie in [0, 1]", got=alpha, why="it is the teacher's share of a mixture")
    if alpha in (0, 1):
        return ReverseKL() if alpha else ForwardKL()
    return JensenShannon(alpha)
