"""GRPO: reward every token of an answer by how much better than its group members the answer was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from selfdistill.losses import LossSpec, PolicyGradient, RatioCaps
from selfdistill.methods.base import Credit, CreditOrDrop, Method, advantage
from selfdistill.options import changed, option
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class GRPO(Method):
    """Group Relative Policy Optimization, the baseline: learns from the score alone.

    The divergence from the weights at the start (`reference_kl`) is exact over the vocabulary and applies to every
    scored answer: a zero-advantage group trains on it alone, and is dropped only where there is none.

    On-policy by default; with `tasks_per_update` > 0 the later updates of a batch are off-policy, and the clips and
    the importance weight act. Advantages are not divided by their deviation, the upper clip is the higher one, and
    there is no reference by default, as in the baseline of Hübotter et al. 2026.
    """

    source = "arXiv 2402.03300; clips: 2503.14476"
    takes_turns = True
    needs_reward = "yes"

    clip_low: float = option(0.2, "a ratio below 1 minus this no longer pushes", least=0, most=1)
    clip_high: float = option(0.28, "a ratio above 1 plus this no longer pushes", least=0)
    dual_clip: float = option(3.0, "bound of the loss of a negative advantage, in advantages", above=1, most=inf)
    divide_by_deviation: bool = option(False, "divide advantages by the standard deviation of the group")
    reference_kl: float = option(0.0, "scale of the divergence from the weights at the start; 0: none", least=0)
    ratio_cap: float = option(2.0, "upper bound of the weight between trainer and sampler", above=0, most=inf)
    count_dropped: bool = changed(Method, "count_dropped", True)

    @property
    def needs_reference(self) -> bool:
        """Only with a reference divergence."""
        return self.reference_kl > 0

    def loss_spec(self, temperature: float) -> LossSpec:
        """The clipped policy gradient on the sampled tokens."""
        policy = PolicyGradient(self.clip_low, self.clip_high, self.dual_clip)
        return LossSpec(ratio=RatioCaps(sampler_ratio=self.ratio_cap), policy=policy, temperature=temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The reward minus the mean of the scored group members of the same stage."""
        return self.rewarded(advantage(group, index, divide_by_std=self.divide_by_deviation))

    def rewarded(self, advantage: float | None, credit: Credit | None = None) -> CreditOrDrop:
        """The credit with this advantage and the reference divergence. In a zero-advantage group (None) the latter is
        all there is, and without it the rollout is dropped."""
        if advantage is None:
            return Credit(reference=self.reference_kl) if self.reference_kl else DropReason.ZERO_ADVANTAGE
        return replace(credit or Credit(), advantage=advantage, reference=self.reference_kl)
