"""RLTF-FM: beside the reward, the model learns to predict the feedback on its answer."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.methods.base import Credit, CreditOrDrop, credits_of
from selfdistill.methods.grpo import GRPO
from selfdistill.options import option
from selfdistill.types import DropReason, Message, RolloutGroup

CRITIQUE = Message("user", "Write a critique of this answer: what is wrong with it?")


@dataclass(frozen=True, slots=True)
class RLTFFM(GRPO):
    """RL from Text Feedback, feedback modelling: GRPO, and cross-entropy on each answer's feedback after question,
    answer and a request for a critique.

    Needs a reward, and feedback. The paper's policy gradient spans two turns; here it is the first one's.
    """

    settings = {"optimiser": {"lr": 2e-5}}
    source = "arXiv 2602.02482"
    reads = "own feedback, to foresee it"

    foresee: float = option(0.1, "scale of the cross-entropy on the feedback", least=0)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The reward beyond that of the group members, and the feedback."""
        rollout, found = group.rollouts[index], list(credits_of(GRPO.credit(self, group, index)))
        feedback = rollout.outcome.feedback if rollout.outcome is not None else ""
        if feedback.strip() and self.foresee:
            question = (*group.task.messages, Message("assistant", rollout.completion.text), CRITIQUE)
            found.append(Credit(advantage=self.foresee, question=question, text=feedback))
        return tuple(found) or DropReason.ZERO_ADVANTAGE
