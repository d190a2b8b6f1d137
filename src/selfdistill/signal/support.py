"""Supports: on which outcomes student and teacher are compared at a position.

Legend: N positions, V vocabulary, K tokens kept.

A support maps both distributions onto the same outcomes, lets a shape compare them there, and spreads the flow back
over the vocabulary. Summing p (log p − log q) over the top K tokens alone is not offered: at p = q its gradient still
moves mass out of those tokens (its advantage is u − 1 inside and 0 outside).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.signal.head import LOWEST_LOGIT
from selfdistill.signal.refusal import refusal
from selfdistill.signal.shape import Comparison, ReverseKL, Shape


class Support(ABC):
    """The outcomes of a comparison."""

    __slots__ = ()

    @abstractmethod
    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """The value on this support, and its flow over the whole vocabulary. `tokens_N` are the sampled tokens."""

    def check(self, shape: Shape) -> None:
        """Raises `ValueError` when the shape cannot be measured on this support. Most can."""
        del shape


@dataclass(frozen=True, slots=True)
class FullVocabulary(Support):
    """Every token: exact."""

    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """As the shape says."""
        return shape.compare(log_p_NV, log_q_NV)


@dataclass(frozen=True, slots=True)
class StudentTopK(Support):
    """The student's K most likely tokens, from the forward pass that carries the gradient.

    `tail` adds one bucket for all other tokens: K + 1 outcomes on which both distributions sum to 1. The value is then
    a lower bound of the full divergence, and exact at K = V − 1, to which K is capped. Without `tail` both sides are
    renormalised inside the K tokens, and nothing is said about how much mass they hold.

    Raises `ValueError` for K ≤ 0 and for K = 1 without `tail`. Source: arXiv 2601.20802, §2 and Table 12.
    """

    k: int
    tail: bool = True

    def __post_init__(self) -> None:
        if self.k <= 0:
            raise refusal(
                "k must be a positive number of tokens",
                got=self.k,
                why="no token would be compared",
                do="use FullVocabulary() to compare all of them",
            )
        if self.k == 1 and not self.tail:
            raise refusal(
                "one renormalised token cannot be compared",
                got="k=1, tail=False",
                why="both sides are 1 there: the loss and its gradient are identically 0",
                do="keep the tail bucket, or raise k",
            )

    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """On the buckets, then back: inside a bucket every token has the bucket's advantage."""
        vocabulary = log_p_NV.shape[-1]
        log_p_NK, top_NK = log_p_NV.topk(min(self.k, vocabulary - self.tail), dim=-1)
        log_q_NK = log_q_NV.gather(-1, top_NK)
        if not self.tail:
            return _renormalised(shape, log_p_NK, log_q_NK, top_NK, vocabulary)
        tail_p_N1, tail_q_N1 = _mass_outside(log_p_NV, top_NK), _mass_outside(log_q_NV, top_NK)
        buckets = shape.compare(torch.cat([log_p_NK, tail_p_N1], -1), torch.cat([log_q_NK, tail_q_N1], -1))
        flow_NV = (log_p_NV - tail_p_N1).exp_().mul_(buckets.flow_NV[:, -1:])
        return Comparison(buckets.divergence_N, flow_NV.scatter_(-1, top_NK, buckets.flow_NV[:, :-1]))


@dataclass(frozen=True, slots=True)
class SampledToken(Support):
    """Only the token that was said: the score-function form of the reverse KL.

    The value is the one-sample estimate log p(y) − log q(y); the gradient −u(y) ∇log p(y) with u = log q − log p held
    fixed. Averaged over y ~ p it is the gradient of KL(p‖q), with far more noise than the full vocabulary.

    Source: arXiv 2601.20802, Prop. 2.1 (the estimate of its expectation).
    """

    def check(self, shape: Shape) -> None:
        """Reverse KL only."""
        if not isinstance(shape, ReverseKL):
            raise refusal(
                "the sampled-token support measures the reverse KL only",
                got=shape,
                why="log p(y) − log q(y) at the student's own token estimates KL(student‖teacher) and nothing else; "
                "other divergences weigh what the teacher would say and the student did not",
                do="use ReverseKL() / alpha = 1, or the full or top-K support",
            )

    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """Flow u(y) on y: the one-sample form of p·u."""
        tokens_N1 = tokens_N[:, None]
        evidence_N1 = shape.advantage(log_p_NV.gather(-1, tokens_N1), log_q_NV.gather(-1, tokens_N1))
        return Comparison(-evidence_N1[:, 0], torch.zeros_like(log_p_NV).scatter_(-1, tokens_N1, evidence_N1))


def _mass_outside(log_p_NV: Tensor, top_NK: Tensor) -> Tensor:
    """log of the probability outside the kept tokens [N, 1], summed directly: 1 − Σ kept would lose small tails."""
    outside_NV = log_p_NV.scatter(-1, top_NK, -torch.inf)
    return outside_NV.logsumexp(-1, keepdim=True).clamp_(min=LOWEST_LOGIT)


def _renormalised(shape: Shape, log_p_NK: Tensor, log_q_NK: Tensor, top_NK: Tensor, vocabulary: int) -> Comparison:
    """Both sides renormalised inside the kept tokens; the flow is centred there, so that tokens outside stay put."""
    inside_NK = log_p_NK.log_softmax(-1)
    kept = shape.compare(inside_NK, log_q_NK.log_softmax(-1))
    centred_NK = kept.flow_NV - inside_NK.exp() * kept.flow_NV.sum(-1, keepdim=True)
    flow_NV = log_p_NK.new_zeros(log_p_NK.shape[0], vocabulary)
    return Comparison(kept.divergence_N, flow_NV.scatter_(-1, top_NK, centred_NK))
