"""SDPG: GRPO, with a small, scheduled divergence from the student that reads the solution."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfdistill.losses import LossSpec, RatioCaps, ReverseKL, Trapezoid
from selfdistill.methods.base import Credit, CreditOrDrop
from selfdistill.methods.grpo import GRPO
from selfdistill.methods.shaped import ShapedMethod
from selfdistill.models.teacher import Live
from selfdistill.options import changed, option
from selfdistill.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class SDPG(ShapedMethod):
    """Self-Distilled Policy Gradient: the advantage, plus KL(student‖teacher) over the full vocabulary where A > 0.

    The teacher is the student's weights of now, reading the demonstration of the task (in the paper its answer), else a
    group member's solution. Its strength rises to `peak` over 50 steps and is gone after 350 more. Needs a
    reward. Against the paper the divergence from the weights at the start, which every scored answer has, is exact
    instead of (log w)²/2 on the sampled token.
    """

    settings = {"tasks_per_step": 128, "optimiser": {"lr": 1e-6}, "sampling": {"max_new_tokens": 4096}}
    source = "arXiv 2606.04036"
    reads = "the demonstration, else a group member's solution"
    teacher = Live()

    reference_kl: float = changed(GRPO, "reference_kl", 1e-3)
    peak: float = option(1e-3, "strength of the distillation at its height", least=0)
    warmup: int = option(50, "steps over which it rises", least=0)
    decay: int = option(350, "steps over which it falls back to 0", least=1)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Two terms, the distillation on a schedule."""
        whole, ratio = GRPO.loss_spec(self, temperature), RatioCaps(self.ratio_cap, self.ratio_cap)
        schedule = Trapezoid(self.peak, self.warmup, 0, self.decay)
        return replace(whole, divergence=ReverseKL(), ratio=ratio, schedule=schedule)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Answers that are no better than their group members are not distilled."""
        credited = ShapedMethod.credit(self, group, index)
        good = isinstance(credited, Credit) and credited.advantage > 0
        return credited if good else GRPO.credit(self, group, index)
