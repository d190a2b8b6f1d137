"""RLCSD: the log-ratio contrasts a correct solution with wrong ones, so that the style of a hint cancels."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.losses import Additive, Constant, Contrast, LossSpec, Reduction, ReverseKL, Tanh
from selfdistill.methods.base import Credit, CreditOrDrop
from selfdistill.methods.shaped import ShapedMethod
from selfdistill.models.teacher import Snapshot
from selfdistill.options import changed, option
from selfdistill.prompts.context import group_members
from selfdistill.types import Context, DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class RLCSD(ShapedMethod):
    """RL with contrastive self-distillation: A + r with r = λ tanh(e/τ), wherever |r| > δ, never past 0.

    e = log T⁺(y) − log mean T⁻(y): the teacher reads a correct group member, and wrong ones in the same words as if
    they were correct, never the answer itself. Changed and unchanged tokens are averaged apart, over a whole step, not
    an update. Needs a reward; an answer without both kinds of group members keeps A alone.
    """

    settings = {
        "tasks_per_update": 16, "optimiser": {"lr": 1e-6, "warmup_steps": 50}, "sampling": {"max_new_tokens": 16384},
    }  # fmt: skip
    source = "arXiv 2606.11709"
    reads = "a correct group member, against wrong ones"
    teacher = Snapshot(10)

    success: float = option(0.5, "reward at which a rollout counts as solved")
    wrong: int = option(4, "wrong group members to contrast with, at most", least=1)
    strength: float = option(0.5, "λ", least=0)
    scale: float = option(0.02, "τ: log-ratio of this size is worth tanh(1) of λ", above=0)
    threshold: float = option(0.02, "δ: smaller changes are left out", least=0)
    two_path: float = option(1.0, "η: weight of the changed tokens' mean beside that of the others", least=0)
    clip_high: float = changed(ShapedMethod, "clip_high", 0.2)
    reduction: Reduction = changed(ShapedMethod, "reduction", "token-mean")
    count_dropped: bool = changed(ShapedMethod, "count_dropped", False)

    def loss_spec(self, temperature: float) -> LossSpec:
        """One policy gradient; nothing is distilled."""
        shaping = Additive(ReverseKL(), Tanh(self.scale), self.threshold, keep_sign=True, two_path=self.two_path)
        mixture, schedule = Contrast(normalise=False), Constant(self.strength)
        return self.shaped_loss(temperature, mixture=mixture, shaping=shaping, schedule=schedule)

    def context_credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The first correct group member, against the wrong ones; both or neither."""
        right, wrong = (group_members(group, index, solved=solved, success=self.success) for solved in (True, False))
        if not right or not wrong:
            return DropReason.NO_CONTEXT
        shown, *against = [Context("solution", solution=text) for text in (right[0], *wrong[: self.wrong])]
        return Credit(shown, distil=1.0, against=tuple(against))
