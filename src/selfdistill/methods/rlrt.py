"""RLRT: solved answers are rewarded most at tokens that a teacher with the solution finds unlikely."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.losses import Constant, LossSpec, Multiplicative, OppositeAdvantageSign
from selfdistill.methods.base import CreditOrDrop, distilled
from selfdistill.methods.shaped import ShapedMethod
from selfdistill.models.teacher import Snapshot
from selfdistill.options import option
from selfdistill.prompts.context import group_members, without_thinking
from selfdistill.types import Context, DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class RLRT(ShapedMethod):
    """RL with a reversed teacher: A · ((1 − λ) + λ · clip(p(y)/q(y), 1 ± clip)) on solved answers, A on all others.

    Where the student solved a task in a way of its own, that way is reinforced: exploration with a known reward.
    Failures keep their plain advantage; without that the method is known to blow up. Needs a reward. The teacher reads
    a group member's solution, and the only success of a group its own: unlike everywhere else an answer may be its own
    demonstration, since nothing is pulled toward it. Its weights are copied from the student every tenth step,
    as in RLSD, of which this is the reverse.
    """

    settings = {"optimiser": {"lr": 1e-6}}
    source = "arXiv 2605.10781"
    reads = "a group member's solution, else its own, for successes"
    teacher = Snapshot(10)

    success: float = option(0.5, "reward at which a rollout counts as solved")
    strength: float = option(0.5, "λ", least=0)
    clip: float = option(
        0.5, "how far from 1 an advantage may be scaled: 1.0 for base models, 0.2 for thinking ones", above=0, most=1
    )

    def loss_spec(self, temperature: float) -> LossSpec:
        """One policy gradient; nothing is distilled."""
        sign, shaping = OppositeAdvantageSign(), Multiplicative(self.clip)
        return self.shaped_loss(temperature, distil_sign=sign, shaping=shaping, schedule=Constant(self.strength))

    def context_credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """A solution, for solved answers."""
        own = group.rollouts[index]
        if own.outcome is None or own.outcome.reward < self.success:
            return DropReason.NO_CONTEXT
        mine = without_thinking(own.completion.text)
        solution = next(iter(group_members(group, index, solved=True, success=self.success)), mine)
        return distilled(Context("solution", solution=solution)) if solution.strip() else DropReason.NO_CONTEXT
