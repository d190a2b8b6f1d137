"""SRPO: what succeeded is rewarded, what failed is corrected by distillation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfdistill.losses import JensenShannon, LossSpec, RatioCaps, TokenMask, TopK
from selfdistill.methods.base import CreditOrDrop, advantage, distilled
from selfdistill.methods.grpo import GRPO
from selfdistill.models.teacher import Ema
from selfdistill.options import option
from selfdistill.prompts.context import SolutionOrFeedback
from selfdistill.types import Context, DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class SRPO(GRPO):
    """Sample-Routed Policy Optimization: policy gradient where an answer succeeded, distillation where it failed.

    A failure is distilled from a group member's solution, tokens weighed by how sure the teacher is: exp(−β H), over
    the mean of the batch. Needs a reward that is sometimes high: a failure without any solved group member falls back
    on its advantage, and a zero-advantage group has at most the reference divergence. Both kinds of answers share one
    mean, and advantages are not divided by their deviation.
    """

    settings = {"optimiser": {"lr": 1e-5, "warmup_steps": 10}, "sampling": {"max_new_tokens": 8192}}
    source = "arXiv 2604.02288"
    reads = "a group member's solution, for failures"
    teacher = Ema(0.05)

    success: float = option(0.5, "reward at which a rollout counts as solved")
    top_k: int = option(100, "student tokens on which both are compared, the rest in one bucket", least=1)
    confidence: float = option(1.0, "β: less weight for tokens where the teacher is unsure; 0: all the same", least=0)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Both terms; a rollout carries one of them."""
        whole, ratio = GRPO.loss_spec(self, temperature), RatioCaps(self.ratio_cap, self.ratio_cap)
        support, mask = TopK(self.top_k), TokenMask(teacher_confidence=self.confidence)
        return replace(whole, support=support, divergence=JensenShannon(0.5), ratio=ratio, token_mask=mask)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """One route for each rollout."""
        outcome = group.rollouts[index].outcome
        failed = outcome is not None and outcome.reward < self.success
        found = SolutionOrFeedback(self.success, feedback=False).context(group, index)
        if failed and isinstance(found, Context):
            return distilled(found, reference=self.reference_kl)
        credited = self.rewarded(advantage(group, index))
        return found if failed and isinstance(found, DropReason) and isinstance(credited, DropReason) else credited
