"""OPSD: the model at its start, which reads the reference solution, teaches the model that does not."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from selfdistill.losses import ClippedForwardKL, LossSpec
from selfdistill.methods.base import Method
from selfdistill.models.teacher import Frozen
from selfdistill.options import option
from selfdistill.prompts.context import Demonstration


@dataclass(frozen=True, slots=True)
class OPSD(Method):
    """On-Policy Self-Distillation: the forward KL, cut token by token, to the frozen model with the solution at hand.

    Each task needs a reference solution as its demonstration; no reward. The cut keeps a few words of style from
    ruling the loss, and pushes them down (see `ClippedForwardKL`). The teacher's prompt has this package's frame, not
    the paper's sentence of transition; the student is sampled from all tokens, without its limit to the top 20.
    """

    settings = {
        "rollouts_per_task": 1,
        "optimiser": {"lr": 5e-6},
        "sampling": {"temperature": 1.1, "max_new_tokens": 2048},
    }
    source = "arXiv 2601.18734"
    reads = "demonstration"
    teacher = Frozen()
    context = Demonstration()

    limit: float = option(0.05, "largest share of one token in the divergence at a position", above=0, most=inf)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Σ min(q log(q/p), limit) at every token."""
        return LossSpec(divergence=ClippedForwardKL(self.limit), temperature=temperature)
