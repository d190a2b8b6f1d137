"""SDPO: distil what the model itself thinks of its answers once it knows a sibling's solution or the feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from selfdistill.context import ContextRule, SolutionOrFeedback
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Ema, Frozen, TeacherRule
from selfdistill.options import option
from selfdistill.signal import FullVocabulary, RatioCaps, Reduction, Signal, Support, TopK, divergence
from selfdistill.types import Context, Drop, RolloutGroup


@dataclass(frozen=True, slots=True)
class SDPO:
    """Self-Distillation Policy Optimization, exact over the full vocabulary, with a teacher that does not move.

    The reward decides only who counts as solved; there is no reward term. Hübotter et al. 2026 move the teacher by an
    EMA and measure the divergence on the student's top tokens; both are settings, and their values are the presets
    `sdpo_rich_feedback` and `sdpo_outcome`. The teacher is frozen by default because long runs with a moving one
    have been seen to collapse.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = "arXiv 2601.20802"
    needs_reference: ClassVar[bool] = False

    alpha: float = option(0.5, "0: KL(teacher‖student); 1: KL(student‖teacher); between: Jensen-Shannon, smaller")
    top_k: int = option(0, "student tokens on which both are compared, the rest in one bucket; 0: the full vocabulary")
    context: ContextRule = field(default_factory=SolutionOrFeedback)
    teacher: TeacherRule = field(default_factory=Frozen)
    ratio_cap: float = option(2.0, "upper bound of the importance weights")
    reduction: Reduction = option("sequence-mean", "every answer weighs the same, or every token")
    count_dropped: bool = option(False, "whether rollouts without a context dilute the mean")

    def signal(self, temperature: float) -> Signal:
        """The divergence at every answer token, truncated importance weights, no policy gradient."""
        support: Support = TopK(self.top_k) if self.top_k else FullVocabulary()
        caps = RatioCaps(self.ratio_cap, self.ratio_cap)
        return Signal(support, divergence(self.alpha), caps, temperature=temperature)

    def credit(self, group: RolloutGroup) -> list[Credit | Drop]:
        """Every rollout for which the context rule finds something counts 1."""
        return [self._credit(group, index) for index in range(len(group.rollouts))]

    def _credit(self, group: RolloutGroup, index: int) -> Credit | Drop:
        drop = group.rollouts[index].drop
        found = drop if drop is not None else self.context.context(group, index)
        return Credit(found, distil=1.0) if isinstance(found, Context) else found


@dataclass(frozen=True, slots=True)
class SDPORichFeedback(SDPO):
    """SDPO as published for environments that say what went wrong (Table 12, rich feedback: LiveCodeBench)."""

    settings: ClassVar[Mapping[str, Any]] = {
        "tasks_per_step": 32,
        "rollouts_per_task": 8,
        "tasks_per_update": 1,
        "optimiser": {"lr": 1e-6, "warmup_steps": 0},
        "sampling": {"max_new_tokens": 8192},
    }

    alpha: float = option(1.0, SDPO.__dataclass_fields__["alpha"].metadata["text"])
    top_k: int = option(20, SDPO.__dataclass_fields__["top_k"].metadata["text"])
    teacher: TeacherRule = field(default_factory=lambda: Ema(0.01))
    count_dropped: bool = option(True, SDPO.__dataclass_fields__["count_dropped"].metadata["text"])


@dataclass(frozen=True, slots=True)
class SDPOOutcome(SDPO):
    """SDPO as published for environments that give a score alone (Table 12, no rich feedback: science, tool use)."""

    settings: ClassVar[Mapping[str, Any]] = {
        "tasks_per_step": 32,
        "rollouts_per_task": 8,
        "tasks_per_update": 0,
        "optimiser": {"lr": 1e-5, "warmup_steps": 10},
        "sampling": {"max_new_tokens": 8192},
    }

    top_k: int = option(100, SDPO.__dataclass_fields__["top_k"].metadata["text"])
    context: ContextRule = field(default_factory=lambda: SolutionOrFeedback(feedback=False))
    teacher: TeacherRule = field(default_factory=lambda: Ema(0.05))
    count_dropped: bool = option(True, SDPO.__dataclass_fields__["count_dropped"].metadata["text"])
