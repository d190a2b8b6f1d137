"""SDPO: distil the model that reads a group member's solution, or the feedback, into the model that does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar, Literal

from selfdistill.losses import FullVocabulary, LossSpec, Pooled, RatioCaps, SampledToken, Separate, TopK, divergence
from selfdistill.methods.base import Method
from selfdistill.models.teacher import Ema, Frozen, TeacherRule
from selfdistill.options import changed, option
from selfdistill.prompts.context import ContextRule, SolutionOrFeedback

PAPER: Mapping[str, Any] = {"tasks_per_step": 32, "rollouts_per_task": 8, "sampling": {"max_new_tokens": 8192}}


@dataclass(frozen=True, slots=True)
class SDPO(Method):
    """Self-Distillation Policy Optimization, exact over the full vocabulary, with a teacher that does not move.

    The reward decides only who counts as solved; there is no reward term. Hübotter et al. 2026 move the teacher by an
    EMA and measure the divergence on the student's top tokens; both are settings, and their values are the presets
    `sdpo_rich_feedback` and `sdpo_outcome`. The teacher is frozen by default because long runs with a moving one
    have been seen to collapse. With `level=token` credit is on the sampled token (the one-sample form of the gradient);
    the paper's ablation of that name compares the likeliest token at each position.
    """

    source = "arXiv 2601.20802"
    takes_turns = True
    reads = "a group member's solution, else own feedback"
    needs_reward = "who is solved"
    teacher: ClassVar[TeacherRule | None] = Frozen()

    alpha: float = option(
        0.5, "0: KL(teacher‖student); 1: KL(student‖teacher); between: Jensen-Shannon, smaller", least=0, most=1
    )
    top_k: int = option(0, "student tokens on which both are compared, the rest in one bucket; 0: all tokens", least=0)
    context: ContextRule = field(default_factory=SolutionOrFeedback)
    ratio_cap: float = option(2.0, "upper bound of the importance weights", above=0, most=inf)
    level: Literal["logit", "token", "sequence"] = option(
        "logit", "credit for every token of the vocabulary, for the sampled token alone, or one for the whole answer"
    )

    def loss_spec(self, temperature: float) -> LossSpec:
        """The divergence at every answer token, truncated importance weights, no policy gradient.

        Raises `ValueError` for a `top_k` at the other levels of credit, which look at the sampled token alone.
        """
        shape, caps = divergence(self.alpha), RatioCaps(self.ratio_cap, self.ratio_cap)
        if self.level == "logit":
            support = TopK(self.top_k) if self.top_k else FullVocabulary()
            return LossSpec(support=support, divergence=shape, ratio=caps, temperature=temperature)
        if self.top_k:
            raise ValueError(f"level = {self.level!r} compares sampled tokens only: set top_k = 0, not {self.top_k}")
        shaping = Pooled(shape) if self.level == "sequence" else Separate()
        return LossSpec(support=SampledToken(), divergence=shape, ratio=caps, shaping=shaping, temperature=temperature)


@dataclass(frozen=True, slots=True)
class SDPORichFeedback(SDPO):
    """SDPO as published for environments with textual feedback (Table 12, rich feedback: LiveCodeBench)."""

    settings = {**PAPER, "tasks_per_update": 1, "optimiser": {"lr": 1e-6, "warmup_steps": 0}}
    teacher = Ema(0.01)

    alpha: float = changed(SDPO, "alpha", 1.0)
    top_k: int = changed(SDPO, "top_k", 20)
    count_dropped: bool = changed(SDPO, "count_dropped", True)


@dataclass(frozen=True, slots=True)
class SDPOOutcome(SDPO):
    """SDPO as published for environments that give a score alone (Table 12, no rich feedback: science, tool use)."""

    settings = {**PAPER, "tasks_per_update": 0, "optimiser": {"lr": 1e-5, "warmup_steps": 10}}
    teacher = Ema(0.05)

    top_k: int = changed(SDPO, "top_k", 100)
    context: ContextRule = field(default_factory=lambda: SolutionOrFeedback(feedback=False))
    count_dropped: bool = changed(SDPO, "count_dropped", True)
