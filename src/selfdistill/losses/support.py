"""Supports: on which outcomes student and teacher are compared at a position.

Legend: N positions, V vocabulary, K tokens kept.

A support maps both distributions onto the same outcomes, lets a shape compare them there, and says where in the
vocabulary the flow goes. Summing p (log p − log q) over the top K tokens alone is not offered: at p = q its gradient
still moves mass out of those tokens (its advantage is u − 1 inside and 0 outside).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from selfdistill.losses.divergences import Divergence, DivergenceValue
from selfdistill.losses.flow import GradientNumerator
from selfdistill.losses.refusal import refusal
from selfdistill.losses.split import BucketedDistribution, OwnBuckets, likeliest

Whose = Literal["student", "teacher", "both"]
Compared: TypeAlias = tuple[DivergenceValue, GradientNumerator]


class Support(ABC):
    """The outcomes of a comparison."""

    __slots__ = ()

    def apart(self, student_NV: Tensor, teacher: Tensor) -> OwnBuckets | None:
        """The tokens that are outcomes of their own while all others are one; None if it is not to be cut like that.
        Both sides are logits, up to a constant per position."""
        return None

    @abstractmethod
    def compare(
        self, shape: Divergence, student: BucketedDistribution, teacher: BucketedDistribution, tokens_N: Tensor
    ) -> Compared:
        """The value on this support, and its flow. Both sides are split at `apart`; `tokens_N` are the sampled
        tokens."""


@dataclass(frozen=True, slots=True)
class FullVocabulary(Support):
    """Every token: exact."""

    def compare(
        self, shape: Divergence, student: BucketedDistribution, teacher: BucketedDistribution, tokens_N: Tensor
    ) -> Compared:
        """As the shape says."""
        compared = shape.compare(student.log_p(), teacher.log_p())
        return compared, GradientNumerator.on_all(compared.numerator_NV)


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

    def apart(self, student_NV: Tensor, teacher: Tensor) -> OwnBuckets:
        """The kept tokens. Of both, a token's second mention becomes an outcome that is impossible for both, which
        weighs nothing."""
        size = self.size(student_NV.shape[-1])
        ranked = {"student": [student_NV], "teacher": [teacher], "both": [student_NV, teacher]}[self.of]
        named = [likeliest(logits_NV, size) for logits_NV in ranked]
        if len(named) == 1:
            return OwnBuckets(named[0])
        ids_NK = torch.cat(named, -1).sort(dim=-1).values
        again_NK = torch.zeros_like(ids_NK, dtype=torch.bool)
        again_NK[:, 1:] = ids_NK[:, 1:] == ids_NK[:, :-1]
        return OwnBuckets(ids_NK, again_NK)

    def compare(
        self, shape: Divergence, student: BucketedDistribution, teacher: BucketedDistribution, tokens_N: Tensor
    ) -> Compared:
        """On the buckets: inside the tail every token has the tail's advantage."""
        if not self.tail:
            return self._renormalised(shape, student, teacher)
        compared = shape.compare(student.log_p_NB, teacher.log_p_NB)
        return compared, GradientNumerator.on_buckets(compared.numerator_NV)

    def size(self, vocabulary: int) -> int:
        """How many tokens of one side are kept."""
        return min(self.k, vocabulary - self.tail)

    def _renormalised(
        self, shape: Divergence, student: BucketedDistribution, teacher: BucketedDistribution
    ) -> Compared:
        """Both sides renormalised inside the kept tokens; the flow is centred there, so that tokens outside stay
        put."""
        inside_NK, teacher_NK = (side.log_p_NB[:, :-1].log_softmax(-1) for side in (student, teacher))
        kept = shape.compare(inside_NK, teacher_NK)
        total_N1 = kept.numerator_NV.sum(-1, keepdim=True)
        centred_NK = kept.numerator_NV - inside_NK.exp() * total_N1
        return kept, GradientNumerator(torch.zeros_like(total_N1), ids_NE=student.ids_NK, tokens_NE=centred_NK)


@dataclass(frozen=True, slots=True)
class SampledToken(Support):
    """Only the token that was said: the score-function form.

    The gradient is −h(u(y)) ∇log p(y) with h(u) held fixed. Averaged over y ~ p it is the gradient of the divergence
    over the full vocabulary, with far more noise. The value, y's own term of the divergence over p(y), averages to the
    divergence itself: log p(y) − log q(y) for the reverse KL.

    Source: arXiv 2601.20802, Prop. 2.1 (the estimate of its expectation).
    """

    def compare(
        self, shape: Divergence, student: BucketedDistribution, teacher: BucketedDistribution, tokens_N: Tensor
    ) -> Compared:
        """Flow h(u(y)) on y: the one-sample form of p · h(u)."""
        said = shape.sampled(student.at(tokens_N)[:, None], teacher.at(tokens_N)[:, None])
        return said, GradientNumerator.on_tokens(tokens_N[:, None], said.numerator_NV)
