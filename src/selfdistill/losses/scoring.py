"""Reading without learning: log-probabilities, entropies and log-ratio of answers, in chunks and off the graph.

Legend: N answer positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.losses.head import Head
from selfdistill.losses.kernel import fused_loss
from selfdistill.losses.support import FullVocabulary, SampledToken
from selfdistill.losses.teacher_mixture import Product, TeacherMixture, TeacherStates
from selfdistill.losses.terms import LossSpec, TokenStats, TokenWeights


@torch.no_grad()
def token_logprobs(
    hidden_ND: Tensor, head: Head, tokens_N: Tensor, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(log π(y) [N], entropy [N]) in nats at this temperature: what an update calls the old log-probabilities."""
    loss_spec = LossSpec(temperature=temperature)
    stats = fused_loss(loss_spec, hidden_ND, head, tokens_N, TokenWeights(), chunk=chunk).stats
    return stats.logprobs_N, stats.entropy_N


@torch.no_grad()
def read_log_ratios(
    hidden_ND: Tensor,
    head: Head,
    views: Sequence[TeacherStates],
    tokens_N: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    *,
    target: TeacherMixture | None = None,
) -> TokenStats:
    """What the teacher would have changed: `.log_ratio_N` is u(y) = log q(y) − log p(y), beside log-probabilities,
    entropies and the Jensen-Shannon divergence of every position. `target` makes one teacher of the views; one that
    is not normalised leaves no divergence but its estimate at the tokens. NaN where no view "for" was read."""
    target = Product() if target is None else target
    support = FullVocabulary() if target.normalised else SampledToken()
    loss_spec = LossSpec(support, temperature=temperature, mixture=target)
    return fused_loss(
        loss_spec, hidden_ND, head, tokens_N, _where_read(views, tokens_N), views=views, chunk=chunk
    ).stats


def _where_read(views: Sequence[TeacherStates], tokens_N: Tensor) -> TokenWeights:
    """1 at each position that some view "for" read, and everywhere without any, so that their absence is noticed."""
    present = [view.present_N for view in views if not view.against]
    known = [present_N for present_N in present if present_N is not None]
    read_N = torch.stack(known).any(0) if present and len(known) == len(present) else torch.ones_like(tokens_N)
    return TokenWeights(distil_N=read_N.float())
