"""GRPO: reward every token of an answer by how much better than its siblings the answer was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from selfdistill.methods.base import Credit
from selfdistill.models.teacher import TeacherRule
from selfdistill.options import option
from selfdistill.signal import PolicyGradient, RatioCaps, Reduction, Signal, group_advantages
from selfdistill.types import Drop, RolloutGroup


@dataclass(frozen=True, slots=True)
class GRPO:
    """Group Relative Policy Optimization, the baseline: learns from the score alone.

    On-policy by default; with `tasks_per_update` > 0 the later updates of a batch are off-policy, and the clips and
    the importance weight act. Advantages are not divided by their deviation, the upper clip is the higher one, and
    there is no reference unless asked for, as in the baseline of Hübotter et al. 2026.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = "arXiv 2402.03300; clips: 2503.14476"
    teacher: ClassVar[TeacherRule | None] = None

    clip_low: float = option(0.2, "a ratio below 1 minus this no longer pushes")
    clip_high: float = option(0.28, "a ratio above 1 plus this no longer pushes")
    dual_clip: float = option(3.0, "bound of the loss where the advantage is negative, in advantages")
    divide_by_deviation: bool = option(False, "divide advantages by the standard deviation of the group")
    reference_kl: float = option(0.0, "scale of the divergence from the weights at the start; 0: none")
    ratio_cap: float = option(2.0, "upper bound of the weight between trainer and sampler")
    reduction: Reduction = option("sequence-mean", "every answer weighs the same, or every token")
    count_dropped: bool = option(True, "whether groups with equal rewards dilute the mean")

    @property
    def needs_reference(self) -> bool:
        """Only with a reference divergence."""
        return self.reference_kl > 0

    def signal(self, temperature: float) -> Signal:
        """The clipped policy gradient on the sampled tokens."""
        policy = PolicyGradient(self.clip_low, self.clip_high, self.dual_clip)
        return Signal(ratio=RatioCaps(sampler=self.ratio_cap), policy=policy, temperature=temperature)

    def credit(self, group: RolloutGroup) -> list[Credit | Drop]:
        """The reward minus the mean of the judged siblings; a group whose rewards are all equal says nothing."""
        rewards = [r.outcome.reward for r in group.rollouts if r.outcome is not None]
        flat = len(set(rewards)) <= 1
        advantages = iter([] if flat else group_advantages(rewards, divide_by_std=self.divide_by_deviation))
        credits: list[Credit | Drop] = []
        for rollout in group.rollouts:
            if rollout.drop is not None:
                credits.append(rollout.drop)
            else:
                credits.append(Drop.FLAT_GROUP if flat else Credit(None, next(advantages), 0.0, self.reference_kl))
        return credits
