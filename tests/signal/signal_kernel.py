"""The kernel on one textbook problem, as most tests ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import signal_textbook as textbook

from selfdistill.signal import FusedResult, Signal, TeacherView, TokenWeights, fused_signal


def run(
    case: textbook.Problem, signal: Signal, views: Sequence[TeacherView] | None = None, **options: Any
) -> FusedResult:
    """Every token is distilled, from the problem's own teacher unless other views are given."""
    weights = options.pop("weights", TokenWeights(distil_N=case.weight_N))
    views = [case.teacher] if views is None else views
    return fused_signal(signal, case.hidden_ND, case.head, case.tokens_N, weights, views=views, **options)
