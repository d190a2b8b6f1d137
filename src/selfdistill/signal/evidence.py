"""Evidence: what the teacher's distribution is, and how much it changes the odds of what was said.

Legend: N answer positions, V vocabulary, D hidden size; p student, q teacher.

The teacher at a position is a geometric mixture of views, one per context or set of weights:

    log q = log_softmax(Σ_j w_j z_j / temperature)   with Σ_j w_j = 1

Two views of the same context with weights (1 − ρ, ρ), one by frozen and one by current weights, are the trust-region
teacher q ∝ q_ref^{1−ρ} q_θ^{ρ} (arXiv 2601.20802, A.2). The mixture is formed in float32: at ρ = .01 the current
weights' share would vanish in bfloat16 logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.signal.head import Head
from selfdistill.signal.refusal import refusal


@dataclass(frozen=True, slots=True)
class TeacherView:
    """One reading of the answers: hidden states at the same positions as the student's, their head, and a weight."""

    hidden_ND: Tensor
    head: Head
    weight: float = 1.0

    def logits(self, rows: slice) -> Tensor:
        """logits_NV of some positions, cut off from the graph."""
        return self.head.logits(self.hidden_ND[rows])


def log_probs(logits_NV: Tensor, temperature: float) -> Tensor:
    """log_softmax(z / temperature) over the last axis."""
    return torch.log_softmax(logits_NV if temperature == 1.0 else logits_NV / temperature, dim=-1)


def mixed_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ_j w_j z_j, written as z_0 + Σ_j w_j (z_j − z_0) so that equal views give that view exactly."""
    first_NV = logits[0]
    mixed_NV = first_NV
    for logits_NV, weight in zip(logits[1:], weights[1:], strict=True):
        mixed_NV = mixed_NV + weight * (logits_NV - first_NV)
    return mixed_NV


def teacher_log_probs(views: Sequence[TeacherView], rows: slice, temperature: float) -> Tensor:
    """log_q_NV of some positions under the mixture of the views."""
    logits_NV = mixed_logits([view.logits(rows) for view in views], [view.weight for view in views])
    return log_probs(logits_NV, temperature)


def entropy(log_p_NV: Tensor) -> Tensor:
    """−Σ p log p in nats."""
    return -log_p_NV.exp().mul_(log_p_NV).sum(-1)


def check_views(views: Sequence[TeacherView], positions: int, vocabulary: int) -> None:
    """Raises `ValueError` unless the views read the same positions, speak the same vocabulary and weigh 1 together."""
    for view in views:
        if view.hidden_ND.shape[0] != positions or view.head.vocabulary != vocabulary:
            raise refusal(
                "a teacher view must cover the student's positions and vocabulary",
                got=f"{view.hidden_ND.shape[0]} positions of {view.head.vocabulary} tokens",
                why=f"they are compared one by one with {positions} positions of {vocabulary} tokens",
                do="pass the hidden states that predict the same answer tokens, from a model with the same tokenizer",
            )
    total = sum(view.weight for view in views)
    if views and abs(total - 1.0) > 1e-6:
        raise refusal(
            "the weights of the teacher's views must sum to 1",
            got=[view.weight for view in views],
            why=f"a sum of {total:g} would act as a hidden temperature of {1 / total if total else float('inf'):g}",
            do="use (1 - rate, rate) for a trust region, 1.0 for a single view",
        )
