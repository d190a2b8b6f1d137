"""Reading without learning: log-probabilities, entropies and evidence of answers, in chunks and off the graph.

Legend: N answer positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.signal.evidence import Evidence, Product, TeacherView
from selfdistill.signal.fused import fused_signal
from selfdistill.signal.head import Head
from selfdistill.signal.support import FullVocabulary, SampledToken
from selfdistill.signal.terms import Signal, TokenStats, TokenWeights


@torch.no_grad()
def token_logprobs(
    hidden_ND: Tensor, head: Head, tokens_N: Tensor, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(log π(y) [N], entropy [N]) in nats at this temperature: what an update calls the old log-probabilities."""
    signal = Signal(temperature=temperature)
    stats = fused_signal(signal, hidden_ND, head, tokens_N, TokenWeights(), chunk=chunk).stats
    return stats.logprobs_N, stats.entropy_N


@torch.no_grad()
def evidence(
    hidden_ND: Tensor,
    head: Head,
    views: Sequence[TeacherView],
    tokens_N: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    *,
    target: Evidence | None = None,
) -> TokenStats:
    """What the teacher would have changed: `.evidence_N` is u(y) = log q(y) − log p(y), beside log-probabilities,
    entropies and the Jensen-Shannon divergence of every position. `target` makes one teacher of the views; one that
    is not normalised leaves no divergence but its estimate at the tokens. NaN where no view "for" was read."""
    target = Product() if target is None else target
    support = FullVocabulary() if target.normalised else SampledToken()
    signal = Signal(support, temperature=temperature, evidence=target)
    return fused_signal(signal, hidden_ND, head, tokens_N, _where_read(views, tokens_N), views=views, chunk=chunk).stats


def _where_read(views: Sequence[TeacherView], tokens_N: Tensor) -> TokenWeights:
    """1 at each position that some view "for" read, and everywhere without any, so that their absence is noticed."""
    present = [view.present_N for view in views if not view.against]
    known = [present_N for present_N in present if present_N is not None]
    read_N = torch.stack(known).any(0) if present and len(known) == len(present) else torch.ones_like(tokens_N)
    return TokenWeights(distil_N=read_N.float())
