"""The base of methods whose advantages are shaped, token by token, by the log-ratio of a teacher with context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from selfdistill.losses import LossSpec, SampledToken
from selfdistill.methods.base import Credit, CreditOrDrop, advantage, distilled
from selfdistill.methods.grpo import GRPO
from selfdistill.options import changed
from selfdistill.prompts.context import Demonstration, SolutionOrFeedback
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class ShapedMethod(GRPO):
    """GRPO with a teacher that reads a context: a base class, not a method itself.

    Every rollout keeps the advantage of its group. Where `context_credit` finds a context, the loss's advantage shaping
    combines the advantage with the teacher's log-ratio. Advantages are divided by the deviation of the group, as in the
    papers of the methods that derive from this one: the strength of the log-ratio is relative to that.
    """

    divide_by_deviation: bool = changed(GRPO, "divide_by_deviation", True)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Advantage and context, or the advantage alone; in a zero-advantage group at most the reference divergence."""
        found = self.context_credit(group, index)
        own = advantage(group, index, divide_by_std=self.divide_by_deviation)
        return self.rewarded(own, found if isinstance(found, Credit) else None)

    def context_credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """A credit with the context that the teacher reads for this rollout, or the reason why there is none: here the
        task's demonstration, else a group member's solution."""
        shown = Demonstration().context(group, index)
        return distilled(
            SolutionOrFeedback(feedback=False).context(group, index) if isinstance(shown, DropReason) else shown
        )

    def shaped_loss(self, temperature: float, **parts: Any) -> LossSpec:
        """One policy gradient on the sampled tokens, its advantages shaped by these `parts`; nothing is distilled."""
        return replace(GRPO.loss_spec(self, temperature), support=SampledToken(), **parts)
