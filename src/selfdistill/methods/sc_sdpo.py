"""SC-SDPO: SDPO, in which a question weighs most when it is solved half of the time."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from selfdistill.losses import equal_rewards
from selfdistill.methods.base import CreditOrDrop, distilled, rewards
from selfdistill.methods.sdpo import SDPOOutcome
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class SCSDPO(SDPOOutcome):
    """Scale-consistent SDPO: each question weighs 2 √(p (1 − p)), p its mean reward, as it does implicitly in GRPO.

    Otherwise SDPO as published for scores. Needs rewards that differ: a group whose rewards are equal (up to rounding)
    is dropped, as in GRPO, so that what no one solves is not learned from feedback either. The paper
    divides the weights by their mean over the batch; here they are relative to the largest possible one, since a
    method sees one group at a time.
    """

    source = "arXiv 2605.27765"
    reads = "a group member's solution"
    needs_reward = "yes"

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """What SDPO distils, weighed by the question."""
        scored = list(rewards(group).values())
        if equal_rewards(scored):
            return DropReason.ZERO_ADVANTAGE
        rate = fmean(scored)
        return distilled(self.context.context(group, index), distil=2 * sqrt(rate * (1 - rate)))
