"""What methods share in which the verdict decides whether, and a teacher that knows more says which tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from selfdistill.methods.base import Credit, CreditOrDrop, advantages, distilled
from selfdistill.methods.grpo import GRPO
from selfdistill.options import changed
from selfdistill.prompts.context import Demonstration, SolutionOrFeedback
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class ShapedMethod(GRPO):
    """GRPO, the answers of which are also read by a teacher that was told something: a base, no method itself.

    Every rollout keeps the advantage of its group; where `told` finds a context its log-ratio is read as well, and the
    signal's advantage shaping says how the two meet. Advantages are divided by the deviation of the group, as GRPO was
    published and as the methods that derive from this one were run: the strength of their log-ratio is relative to
    that.
    """

    divide_by_deviation: bool = changed(GRPO, "divide_by_deviation", True)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Advantage and context, or the advantage alone; in a zero-advantage group at most the reference divergence."""
        found = self.told(group, index)
        advantage = advantages(group, divide_by_std=self.divide_by_deviation)[index]
        return self.rewarded(advantage, found if isinstance(found, Credit) else None)

    @abstractmethod
    def told(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """A credit that says what the teacher knows of this rollout, or why there is nothing."""


def known_solution(group: RolloutGroup, index: int) -> CreditOrDrop:
    """The demonstration that came with the task, else what a group member found."""
    shown = Demonstration().context(group, index)
    return distilled(
        SolutionOrFeedback(feedback=False).context(group, index) if isinstance(shown, DropReason) else shown
    )
