"""Supports: the outcomes on which student and teacher are compared at a position, and distributions cut into them.

Legend: N positions, V vocabulary, K ≥ 0 tokens with a bucket of their own, B = K + 1 buckets; z logits.

A support maps both distributions onto the same outcomes, evaluates a divergence there, and places its logit-gradient
numerator in the vocabulary. Summing p (log p − log q) over the top K tokens alone is not offered: at p = q its gradient
still moves mass out of those tokens (its advantage is u − 1 inside and 0 outside).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, Ranged, check_choice, option
from selfdistill.losses.clipping import Clipping
from selfdistill.losses.divergences import Divergence, GradientNumerator
from selfdistill.losses.head import LOWEST_LOGIT

_DEPTH = 64  # tokens in a column of `likeliest`

Whose = Literal["student", "teacher", "both"]


@dataclass(frozen=True, slots=True)
class BucketedDistribution:
    """softmax(`logits_NV`) on B buckets, the last of which holds all tokens without a bucket of their own.

    `rest_NV` is the distribution inside that bucket times `rest_sum_N1`, and 0 at the tokens outside it. A token's
    log-probability is (z − `top_N1`) − `log_z_N1`, in this order: one that is nearly certain keeps its digits.

    One pass of exponentials, over the last bucket and relative to its largest logit, gives the mass of that bucket to
    full precision however small it is, with the K other logits the normaliser, and the entropy by its chain rule.
    """

    logits_NV: Tensor
    ids_NK: Tensor
    log_p_NB: Tensor
    rest_NV: Tensor
    rest_sum_N1: Tensor
    top_N1: Tensor
    log_z_N1: Tensor
    entropy_N: Tensor

    @staticmethod
    def of(logits_NV: Tensor, ids_NK: Tensor | None = None, repeated_NK: Tensor | None = None) -> BucketedDistribution:
        """The tokens `ids_NK` get buckets; where `repeated_NK` the position has that token before: an impossible
        outcome. Each operation reads one position alone, so equal logits give bit-identical numbers."""
        if ids_NK is None:
            ids_NK = torch.empty(logits_NV.shape[0], 0, dtype=torch.long, device=logits_NV.device)
        logits_NK, others_NV = logits_NV.gather(-1, ids_NK), logits_NV
        if repeated_NK is not None:
            logits_NK = logits_NK.masked_fill_(repeated_NK, LOWEST_LOGIT)
        if ids_NK.shape[-1]:
            others_NV = logits_NV.scatter(-1, ids_NK, LOWEST_LOGIT)
        largest_N1 = others_NV.amax(-1, keepdim=True)
        below_NV = others_NV - largest_N1
        rest_NV = below_NV.exp()
        rest_sum_N1 = rest_NV.sum(-1, keepdim=True)
        top_N1 = torch.cat([logits_NK, largest_N1], -1).amax(-1, keepdim=True)
        outcomes_NB = torch.cat([logits_NK - top_N1, (largest_N1 - top_N1) + rest_sum_N1.log()], -1)
        log_z_N1 = outcomes_NB.logsumexp(-1, keepdim=True)
        log_p_NB = outcomes_NB - log_z_N1
        inside_N = rest_sum_N1.log()[:, 0] - torch.linalg.vecdot(rest_NV, below_NV) / rest_sum_N1[:, 0]
        entropy_N = log_p_NB[:, -1].exp() * inside_N - torch.linalg.vecdot(log_p_NB.exp(), log_p_NB)
        return BucketedDistribution(logits_NV, ids_NK, log_p_NB, rest_NV, rest_sum_N1, top_N1, log_z_N1, entropy_N)

    def unnormalised(self) -> BucketedDistribution:
        """With the logits themselves in place of log-probabilities of tokens."""
        nothing_N1 = torch.zeros_like(self.top_N1)
        return replace(self, top_N1=nothing_N1, log_z_N1=nothing_N1)

    def logprobs(self, tokens_N: Tensor) -> Tensor:
        """log p of one token per position."""
        return (self.logits_NV.gather(-1, tokens_N[:, None]) - self.top_N1 - self.log_z_N1)[:, 0]

    def log_p(self) -> Tensor:
        """log_p_NV, a fresh tensor."""
        return (self.logits_NV - self.top_N1).sub_(self.log_z_N1)

    def over_vocabulary(self, buckets_NB: Tensor) -> Tensor:
        """A number per bucket as one per token [N, V]: that of the last bucket in proportion to p. A fresh tensor."""
        over_NV = self.rest_NV * (buckets_NB[:, -1:] / self.rest_sum_N1)
        return over_NV.scatter_add_(-1, self.ids_NK, buckets_NB[:, :-1]) if self.ids_NK.shape[-1] else over_NV

    def logit_gradient(self, numerators: Sequence[tuple[GradientNumerator, Tensor]]) -> Tensor:
        """∂L/∂z [N, V] = p ΣF − F for the sum of at least one numerator, each times its weight_N1. Overwrites their
        values. Only a numerator over the whole vocabulary needs a matrix."""
        totals = [f.values_NE.sum(-1, keepdim=True) if f.total_N1 is None else f.total_N1 for f, _ in numerators]
        total_N1 = torch.stack([t * weight_N1 for t, (_, weight_N1) in zip(totals, numerators, strict=True)]).sum(0)
        weighted = [(f, f.values_NE.mul_(weight_N1)) for f, weight_N1 in numerators]
        buckets_NB = self.log_p_NB.exp() * total_N1
        for f, values_NE in weighted:
            if f.on_buckets:
                buckets_NB = buckets_NB - values_NE
        gradient_NV = self.over_vocabulary(buckets_NB)
        for f, values_NE in weighted:
            if f.ids_NE is not None:
                gradient_NV = gradient_NV.scatter_add_(-1, f.ids_NE, -values_NE)
            elif not f.on_buckets:
                gradient_NV = gradient_NV.sub_(values_NE)
        return gradient_NV


class Comparison(NamedTuple):
    """Of N positions: the divergence in nats, Σ |F| before any clipping, and the numerator F after it."""

    divergence_N: Tensor
    magnitude_N: Tensor
    numerator: GradientNumerator


class Support(Ranged, ABC):
    """The outcomes of a comparison."""

    __slots__ = ()
    is_sample: ClassVar[bool] = False  # whether the only outcome is a token drawn from p

    def own_buckets(self, student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, ...]:
        """Arguments of `BucketedDistribution.of` for both sides, from their logits (up to a constant per position):
        none, `ids_NK`, or also `repeated_NK`."""
        return ()

    @abstractmethod
    def outcomes(self, side: BucketedDistribution, tokens_N: Tensor) -> Tensor:
        """Log-probabilities of student or teacher on the outcomes; `tokens_N` are the sampled tokens."""

    @abstractmethod
    def place(self, numerator: Tensor, log_p: Tensor, ids_NK: Tensor, tokens_N: Tensor) -> GradientNumerator:
        """F on the outcomes, as entries of the vocabulary. `log_p` is the student on the outcomes, `ids_NK` are the
        tokens with a bucket of their own."""

    def compare(
        self,
        student: BucketedDistribution,
        teacher: BucketedDistribution,
        tokens_N: Tensor,
        divergence: Divergence,
        clipping: Clipping | None,
    ) -> Comparison:
        """The divergence on this support."""
        log_p, log_q = self.outcomes(student, tokens_N), self.outcomes(teacher, tokens_N)
        evaluate = divergence.evaluate_sampled if self.is_sample else divergence.evaluate
        divergence_N, numerator = evaluate(log_p, log_q)
        magnitude_N = torch.linalg.vector_norm(numerator, ord=1, dim=-1)
        if clipping is not None:
            numerator = clipping.clip_(numerator, torch.ones_like(log_p) if self.is_sample else log_p.exp())
        return Comparison(divergence_N, magnitude_N, self.place(numerator, log_p, student.ids_NK, tokens_N))


@dataclass(frozen=True, slots=True)
class FullVocabulary(Support):
    """Every token: exact."""

    def outcomes(self, side: BucketedDistribution, tokens_N: Tensor) -> Tensor:
        """Every token's."""
        return side.log_p()

    def place(self, numerator: Tensor, log_p: Tensor, ids_NK: Tensor, tokens_N: Tensor) -> GradientNumerator:
        """On every token."""
        return GradientNumerator(numerator)


@dataclass(frozen=True, slots=True)
class TopK(Support):
    """The K most likely tokens of the student (from the forward pass that carries the gradient), the teacher, or both
    together; a token that both name counts once.

    `tail` adds one bucket for all other tokens: up to K + 1 outcomes (2K + 1 of both) on which both distributions sum
    to 1. The value is then a lower bound of the full divergence, and exact at K = V − 1, to which K is capped. Without
    `tail` both sides are renormalised inside the K tokens, and their mass is not compared.

    Raises `ConfigError` also for an unknown `of`, and for K = 1 without `tail`. Source: arXiv 2601.20802, §2 and Table
    12.
    """

    k: int = option(MISSING, "tokens with an outcome of their own; FullVocabulary() compares all of them", least=1)
    of: Whose = "student"
    tail: bool = True

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        check_choice("side of a top-k support", self.of, get_args(Whose))
        if self.k == 1 and not self.tail:
            what = "one renormalised token cannot be compared: loss and gradient are identically 0"
            raise ConfigError(what, got=self, do="keep the tail, or raise k")

    def own_buckets(self, student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, ...]:
        """The top tokens. Of both sides, a token's second mention is an outcome that is impossible for both, which
        weighs nothing."""
        size = min(self.k, student_NV.shape[-1] - self.tail)
        ranked = {"student": [student_NV], "teacher": [teacher_NV], "both": [student_NV, teacher_NV]}[self.of]
        top = [likeliest(logits_NV, size) for logits_NV in ranked]
        if len(top) == 1:
            return (top[0],)
        ids_NK = torch.cat(top, -1).sort(dim=-1).values
        repeated_NK = torch.zeros_like(ids_NK, dtype=torch.bool)
        repeated_NK[:, 1:] = ids_NK[:, 1:] == ids_NK[:, :-1]
        return ids_NK, repeated_NK

    def outcomes(self, side: BucketedDistribution, tokens_N: Tensor) -> Tensor:
        """Of the buckets, or of the K tokens renormalised."""
        return side.log_p_NB if self.tail else side.log_p_NB[:, :-1].log_softmax(-1)

    def place(self, numerator: Tensor, log_p: Tensor, ids_NK: Tensor, tokens_N: Tensor) -> GradientNumerator:
        """On the buckets: inside the tail every token has the tail's advantage. Without a tail F is centred on the K
        tokens, so that tokens outside do not move."""
        if self.tail:
            return GradientNumerator(numerator, on_buckets=True)
        total_N1 = numerator.sum(-1, keepdim=True)
        centred_NK = numerator - log_p.exp() * total_N1
        return GradientNumerator(centred_NK, ids_NK, total_N1=torch.zeros_like(total_N1))


@dataclass(frozen=True, slots=True)
class SampledToken(Support):
    """Only the sampled token y: the score-function form.

    The gradient is −h(u(y)) ∇log p(y) with h(u) held fixed. Averaged over y ~ p it is the gradient of the divergence
    over the full vocabulary, with far more noise. The value, y's own term of the divergence over p(y), averages to the
    divergence itself: log p(y) − log q(y) for the reverse KL.

    Source: arXiv 2601.20802, Prop. 2.1 (the estimate of its expectation).
    """

    is_sample: ClassVar[bool] = True

    def outcomes(self, side: BucketedDistribution, tokens_N: Tensor) -> Tensor:
        """Of y [N, 1]."""
        return side.logprobs(tokens_N)[:, None]

    def place(self, numerator: Tensor, log_p: Tensor, ids_NK: Tensor, tokens_N: Tensor) -> GradientNumerator:
        """F = h(u(y)) on y: the one-sample form of p · h(u)."""
        return GradientNumerator(numerator, tokens_N[:, None])


def likeliest(logits_NV: Tensor, k: int) -> Tensor:
    """ids_NK of the K largest logits, the largest first.

    The vocabulary is laid out in columns of 64 tokens. Whatever lies outside the K columns with the largest maxima is
    exceeded or equalled by K tokens inside them, so that only 64 K candidates need be sorted: exact, and a fraction of
    the time.
    """
    positions, vocabulary = logits_NV.shape
    columns = vocabulary // _DEPTH
    if columns < 4 * k:
        return logits_NV.topk(k, dim=-1).indices
    laid_out = columns * _DEPTH
    best_NK = logits_NV[:, :laid_out].reshape(positions, _DEPTH, columns).amax(1).topk(k, dim=-1).indices
    firsts = torch.arange(0, laid_out, columns, device=logits_NV.device)[:, None]
    left_over = torch.arange(laid_out, vocabulary, device=logits_NV.device).expand(positions, -1)
    candidates = torch.cat([(best_NK[:, None] + firsts).flatten(1), left_over], -1)
    return candidates.gather(-1, logits_NV.gather(-1, candidates).topk(k, dim=-1).indices)
