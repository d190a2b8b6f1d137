"""Supports: on which outcomes student and teacher are compared at a position.

Legend: N positions, V vocabulary, K tokens kept.

A support maps both distributions onto the same outcomes, lets a shape compare them there, and spreads the flow back
over the vocabulary. Summing p (log p − log q) over the top K tokens alone is not offered: at p = q its gradient still
moves mass out of those tokens (its advantage is u − 1 inside and 0 outside).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from selfdistill.signal.head import LOWEST_LOGIT
from selfdistill.signal.kept import KeptTopK, mass_outside
from selfdistill.signal.refusal import refusal
from selfdistill.signal.shape import Comparison, Shape

Whose = Literal["student", "teacher", "both"]


class Support(ABC):
    """The outcomes of a comparison."""

    __slots__ = ()

    @abstractmethod
    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """The value on this support, and its flow over the whole vocabulary. `tokens_N` are the sampled tokens."""


@dataclass(frozen=True, slots=True)
class FullVocabulary(Support):
    """Every token: exact."""

    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """As the shape says."""
        return shape.compare(log_p_NV, log_q_NV)


@dataclass(frozen=True, slots=True)
class TopK(Support):
    """The K most likely tokens of the student (from the forward pass that carries the gradient), the teacher, or both
    together; a token that both name counts once.

    `tail` adds one bucket for all other tokens: up to K + 1 outcomes (2K + 1 of both) on which both distributions sum
    to 1. The value is then a lower bound of the full divergence, and exact at K = V − 1, to which K is capped. Without
    `tail` both sides are renormalised inside the kept tokens, and nothing is said about how much mass they hold.

    Raises `ValueError` for K ≤ 0, an unknown `of`, and for K = 1 without `tail`. Source: arXiv 2601.20802, §2 and
    Table 12.
    """

    k: int
    of: Whose = "student"
    tail: bool = True

    def __post_init__(self) -> None:
        if self.k <= 0:
            raise refusal(
                "k must be a positive number of tokens",
                got=self.k,
                why="no token would be compared",
                do="use FullVocabulary() to compare all of them",
            )
        if self.of not in get_args(Whose):
            raise refusal(
                "the most likely tokens of whom?",
                got=repr(self.of),
                why="student and teacher may disagree about them",
                do=f"one of {', '.join(get_args(Whose))}",
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
        if self.of == "both":
            return self._compare_both(shape, log_p_NV, log_q_NV)
        ranked_NV, other_NV = (log_p_NV, log_q_NV) if self.of == "student" else (log_q_NV, log_p_NV)
        ranked_NK, top_NK = ranked_NV.topk(self.size(log_p_NV.shape[-1]), dim=-1)
        other_NK = other_NV.gather(-1, top_NK)
        log_p_NK, log_q_NK = (ranked_NK, other_NK) if self.of == "student" else (other_NK, ranked_NK)
        tail_q_N1 = mass_outside(log_q_NV, top_NK) if self.tail else None
        return _bucketed(shape, log_p_NV, log_p_NK, log_q_NK, top_NK, tail_q_N1)

    def compare_kept(self, shape: Shape, log_p_NV: Tensor, kept: KeptTopK) -> Comparison:
        """With a teacher that is known on its own K tokens only."""
        assert self.of == "teacher"
        assert kept.k == self.size(log_p_NV.shape[-1])
        tail_q_N1 = kept.tail_N[:, None] if self.tail else None
        return _bucketed(shape, log_p_NV, log_p_NV.gather(-1, kept.ids_NK), kept.logprobs_NK, kept.ids_NK, tail_q_N1)

    def size(self, vocabulary: int) -> int:
        """How many tokens of one side are kept."""
        return min(self.k, vocabulary - self.tail)

    def _compare_both(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor) -> Comparison:
        """A token's second mention becomes an outcome that is impossible for both, which weighs nothing."""
        size = self.size(log_p_NV.shape[-1])
        named_N2K = torch.cat([log_p_NV.topk(size, dim=-1).indices, log_q_NV.topk(size, dim=-1).indices], -1)
        top_NK = named_N2K.sort(dim=-1).values
        again_NK = torch.zeros_like(top_NK, dtype=torch.bool)
        again_NK[:, 1:] = top_NK[:, 1:] == top_NK[:, :-1]
        log_p_NK, log_q_NK = (x.gather(-1, top_NK).masked_fill_(again_NK, LOWEST_LOGIT) for x in (log_p_NV, log_q_NV))
        tail_q_N1 = mass_outside(log_q_NV, top_NK) if self.tail else None
        return _bucketed(shape, log_p_NV, log_p_NK, log_q_NK, top_NK, tail_q_N1)


@dataclass(frozen=True, slots=True)
class SampledToken(Support):
    """Only the token that was said: the score-function form.

    The gradient is −h(u(y)) ∇log p(y) with h(u) held fixed. Averaged over y ~ p it is the gradient of the divergence
    over the full vocabulary, with far more noise. For the reverse KL the value log p(y) − log q(y) averages to the
    divergence too; for other shapes it is the surrogate −h(u(y)), whose average is not the divergence.

    Source: arXiv 2601.20802, Prop. 2.1 (the estimate of its expectation).
    """

    def compare(self, shape: Shape, log_p_NV: Tensor, log_q_NV: Tensor, tokens_N: Tensor) -> Comparison:
        """Flow h(u(y)) on y: the one-sample form of p · h(u)."""
        tokens_N1 = tokens_N[:, None]
        said = shape.sampled(log_p_NV.gather(-1, tokens_N1), log_q_NV.gather(-1, tokens_N1))
        return replace(said, flow_NV=torch.zeros_like(log_p_NV).scatter_(-1, tokens_N1, said.flow_NV))


def _bucketed(
    shape: Shape, log_p_NV: Tensor, log_p_NK: Tensor, log_q_NK: Tensor, top_NK: Tensor, tail_q_N1: Tensor | None
) -> Comparison:
    """Compares the kept tokens and the rest, or without the teacher's rest the renormalised kept tokens."""
    if tail_q_N1 is None:
        return _renormalised(shape, log_p_NK, log_q_NK, top_NK, log_p_NV.shape[-1])
    tail_p_N1 = mass_outside(log_p_NV, top_NK)
    buckets = shape.compare(torch.cat([log_p_NK, tail_p_N1], -1), torch.cat([log_q_NK, tail_q_N1], -1))
    flow_NV = (log_p_NV - tail_p_N1).exp_().mul_(buckets.flow_NV[:, -1:])
    return replace(buckets, flow_NV=_put_(flow_NV, top_NK, buckets.flow_NV[:, :-1]))


def _renormalised(shape: Shape, log_p_NK: Tensor, log_q_NK: Tensor, top_NK: Tensor, vocabulary: int) -> Comparison:
    """Both sides renormalised inside the kept tokens; the flow is centred there, so that tokens outside stay put."""
    inside_NK = log_p_NK.log_softmax(-1)
    kept = shape.compare(inside_NK, log_q_NK.log_softmax(-1))
    centred_NK = kept.flow_NV - inside_NK.exp() * kept.flow_NV.sum(-1, keepdim=True)
    flow_NV = log_p_NK.new_zeros(log_p_NK.shape[0], vocabulary)
    return replace(kept, flow_NV=_put_(flow_NV, top_NK, centred_NK))


def _put_(flow_NV: Tensor, top_NK: Tensor, flow_NK: Tensor) -> Tensor:
    """Writes the flow of the kept tokens; second mentions of a token add their nothing."""
    return flow_NV.scatter_(-1, top_NK, 0.0).scatter_add_(-1, top_NK, flow_NK)
