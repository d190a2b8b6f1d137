"""OPD: on-policy distillation from another, stronger model."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.losses import LossSpec, ReverseKL
from selfdistill.methods.base import Method
from selfdistill.models.teacher import Other
from selfdistill.prompts.context import EmptyContext


@dataclass(frozen=True, slots=True)
class OPD(Method):
    """On-Policy Distillation: the reverse KL to a stronger model on the student's own answers.

    Needs that model (`teacher.model=DIR`), with the student's tokenizer; no context, no reward. Agarwal et al. mix in
    answers of the teacher's and other divergences; here all answers are the student's, and the divergence is exact.
    """

    settings = {"rollouts_per_task": 1}
    source = "arXiv 2306.13649"
    reads = "nothing; the teacher is another model"
    teacher = Other()
    context = EmptyContext()

    def loss_spec(self, temperature: float) -> LossSpec:
        """KL(student‖teacher) over the full vocabulary."""
        return LossSpec(divergence=ReverseKL(), temperature=temperature)
