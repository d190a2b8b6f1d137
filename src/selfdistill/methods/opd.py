"""OPD: on-policy distillation from another, stronger model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from selfdistill.losses import LossSpec, ReverseKL
from selfdistill.methods.base import CreditOrDrop, Method, distilled
from selfdistill.models.teacher import Other, TeacherRule
from selfdistill.prompts.context import EmptyContext
from selfdistill.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class OPD(Method):
    """On-Policy Distillation: the reverse KL to a stronger model on the student's own answers.

    Needs that model (`teacher.model=DIR`), with the student's tokenizer; no context, no reward. Agarwal et al. mix in
    answers of the teacher's and other divergences; here all answers are the student's, and the divergence is exact.
    """

    settings: ClassVar[Mapping[str, Any]] = {"rollouts_per_task": 1}
    source: ClassVar[str] = "arXiv 2306.13649"
    reads: ClassVar[str] = "nothing; the teacher is another model"
    teacher: ClassVar[TeacherRule | None] = Other()

    def loss_spec(self, temperature: float) -> LossSpec:
        """KL(student‖teacher) over the full vocabulary."""
        return LossSpec(divergence=ReverseKL(), temperature=temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Every answer counts 1; the teacher reads the question."""
        return distilled(EmptyContext().context(group, index))
