"""The kernel on one textbook problem, as most tests ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import textbook

from selfdistill.losses import FusedResult, LossSpec, TeacherStates, TokenWeights, fused_loss


def run(
    case: textbook.Problem, loss_spec: LossSpec, teacher: Sequence[TeacherStates] | None = None, **options: Any
) -> FusedResult:
    """Every token is distilled, from the problem's own teacher unless another is given."""
    weights = options.pop("weights", TokenWeights(distil_N=case.weight_N))
    teacher = [case.teacher] if teacher is None else teacher
    return fused_loss(loss_spec, case.hidden_ND, case.head, case.tokens_N, weights, teacher=teacher, **options)
