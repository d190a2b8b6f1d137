"""OPSD: the model at its start, which reads the reference solution, teaches the model that does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from selfdistill.losses import ClippedForwardKL, LossSpec
from selfdistill.methods.base import CreditOrDrop, Method, distilled
from selfdistill.models.teacher import Frozen, TeacherRule
from selfdistill.options import option
from selfdistill.prompts.context import Demonstration
from selfdistill.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class OPSD(Method):
    """On-Policy Self-Distillation: the forward KL, cut token by token, to the frozen model with the solution at hand.

    Each task needs a reference solution as its demonstration; no reward. The cut keeps a few words of style from
    ruling the loss, and pushes them down (see `ClippedForwardKL`). The teacher's prompt has this package's frame, not
    the paper's sentence of transition; the student is sampled from all tokens, without its limit to the top 20.
    """

    settings: ClassVar[Mapping[str, Any]] = {
        "rollouts_per_task": 1,
        "optimiser": {"lr": 5e-6},
        "sampling": {"temperature": 1.1, "max_new_tokens": 2048},
    }
    source: ClassVar[str] = "arXiv 2601.18734"
    reads: ClassVar[str] = "demonstration"
    teacher: ClassVar[TeacherRule | None] = Frozen()

    limit: float = option(0.05, "largest share of one token in the divergence at a position", above=0, most=inf)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Σ min(q log(q/p), limit) at every token."""
        return LossSpec(divergence=ClippedForwardKL(self.limit), temperature=temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Every answer to a task with a solution counts 1."""
        return distilled(Demonstration().context(group, index))
