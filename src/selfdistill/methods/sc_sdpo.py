"""SC-SDPO: SDPO, in which a question weighs most when it is solved half of the time."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import ClassVar

from selfdistill.methods.base import Verdict, distilled, judged
from selfdistill.methods.sdpo import SDPOOutcome
from selfdistill.types import Drop, RolloutGroup


@dataclass(frozen=True, slots=True)
class SCSDPO(SDPOOutcome):
    """Scale-consistent SDPO: each question weighs 2 √(p (1 − p)), p its mean reward, as it does implicitly in GRPO.

    Otherwise SDPO as published for scores. Needs a reward in between: a group whose answers all failed, or all
    succeeded, weighs 0 and is dropped, so that what no one solves is not learned from feedback either. The paper
    divides the weights by their mean over the batch; here they are relative to the largest possible one, since a
    method sees one group at a time.
    """

    source: ClassVar[str] = "arXiv 2605.27765"
    reads: ClassVar[str] = "a sibling's solution"
    needs_reward: ClassVar[str] = "yes"

    def verdict(self, group: RolloutGroup, index: int) -> Verdict:
        """What SDPO distils, weighed by the question."""
        rate = fmean(judged(group))
        weight = 2 * sqrt(rate * (1 - rate))
        return distilled(self.context.context(group, index), distil=weight) if weight else Drop.FLAT_GROUP
