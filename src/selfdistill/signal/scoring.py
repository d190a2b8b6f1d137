"""Reading without learning: log-probabilities, entropies and evidence of answers, in chunks and off the graph.

Legend: N answer positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.signal.evidence import TeacherView
from selfdistill.signal.fused import fused_signal
from selfdistill.signal.head import Head
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
) -> TokenStats:
    """What the teacher would have changed: `.evidence_N` is u(y) = log q(y) − log p(y), beside log-probabilities,
    entropies and the Jensen-Shannon divergence of every position."""
    everywhere = TokenWeights(distil_N=torch.ones_like(tokens_N, dtype=torch.float32))
    signal = Signal(temperature=temperature)
    return fused_signal(signal, hidden_ND, head, tokens_N, everywhere, views=views, chunk=chunk).stats
