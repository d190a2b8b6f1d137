"""Distributions over the vocabulary as the kernel reads them: a few tokens set apart, and all others as one.

Legend: N positions, V vocabulary, K tokens set apart (none is a number too), B = K + 1 buckets; z logits.

One pass of exponentials, over the tokens that are *not* set apart and relative to the largest of them, gives all there
is to know about a distribution: the mass of the rest to full precision however small it is, with the K logits the
normaliser, and the entropy by its chain rule. Whole log-probabilities are formed for those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfdistill.losses.head import LOWEST_LOGIT

_DEPTH = 64  # tokens in a column of `likeliest`


@dataclass(frozen=True, slots=True)
class OwnBuckets:
    """`ids_NK` are set apart; `again_NK` marks those that the same position named before: impossible outcomes."""

    ids_NK: Tensor
    again_NK: Tensor | None = None


@dataclass(frozen=True, slots=True)
class BucketedDistribution:
    """softmax(`logits_NV`) on B buckets, the last of which holds all tokens that are not set apart.

    `rest_NV` is the distribution inside that bucket times `rest_sum_N1`, and 0 at the tokens set apart. A token's
    log-probability is (z − `top_N1`) − `log_z_N1`, in this order: one that is nearly certain keeps its digits.
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
    def of(logits_NV: Tensor, apart: OwnBuckets | None = None) -> BucketedDistribution:
        """Every operation looks at one position alone, so that equal logits give equal numbers to the last bit."""
        apart = apart or OwnBuckets(torch.empty(logits_NV.shape[0], 0, dtype=torch.long, device=logits_NV.device))
        logits_NK, others_NV = logits_NV.gather(-1, apart.ids_NK), logits_NV
        if apart.again_NK is not None:
            logits_NK = logits_NK.masked_fill_(apart.again_NK, LOWEST_LOGIT)
        if apart.ids_NK.shape[-1]:
            others_NV = logits_NV.scatter(-1, apart.ids_NK, LOWEST_LOGIT)
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
        return BucketedDistribution(
            logits_NV, apart.ids_NK, log_p_NB, rest_NV, rest_sum_N1, top_N1, log_z_N1, entropy_N
        )

    def unnormalised(self) -> BucketedDistribution:
        """With the logits themselves in place of log-probabilities of tokens."""
        nothing_N1 = torch.zeros_like(self.top_N1)
        return replace(self, top_N1=nothing_N1, log_z_N1=nothing_N1)

    def at(self, tokens_N: Tensor) -> Tensor:
        """log p of one token per position."""
        return (self.logits_NV.gather(-1, tokens_N[:, None]) - self.top_N1 - self.log_z_N1)[:, 0]

    def log_p(self) -> Tensor:
        """log_p_NV, a fresh tensor."""
        return (self.logits_NV - self.top_N1).sub_(self.log_z_N1)

    def spread(self, buckets_NB: Tensor) -> Tensor:
        """A number per bucket, over the vocabulary [N, V]: that of the last in proportion to p. A fresh tensor."""
        over_NV = self.rest_NV * (buckets_NB[:, -1:] / self.rest_sum_N1)
        return over_NV.scatter_add_(-1, self.ids_NK, buckets_NB[:, :-1]) if self.ids_NK.shape[-1] else over_NV


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
