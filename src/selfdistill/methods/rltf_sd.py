"""RLTF-SD: the second attempt, made after the feedback, is learned as an answer to the first prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from statistics import fmean

from selfdistill.losses import LossSpec, TokenMask, equal_rewards
from selfdistill.methods.base import Credit, CreditOrDrop, credits_of, rewards
from selfdistill.methods.grpo import GRPO
from selfdistill.options import option
from selfdistill.prompts.stages import Attempts, SecondAttempts, Stage
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class RLTFSD(GRPO):
    """RL from Text Feedback, self-distillation: GRPO on first and second attempts, and the second one's words under the
    first question, by how much better they were than the first attempts: A = r(y₁) − mean r(y₀), without a ratio.

    Needs a reward, and feedback on failures. First attempts have no share in the second one's reward (the paper gives
    them a tenth of it).
    """

    settings = {"optimiser": {"lr": 2e-5}}
    source = "arXiv 2602.02482"
    reads = "own feedback, in second attempts"

    success: float = option(0.5, "reward at which an attempt counts as solved")
    distil: float = option(0.1, "scale of second attempts as answers to the first question", least=0)
    min_logprob: float = option(-5.0, "tokens less likely than this, there, count nothing", least=-inf, most=0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Answers, and another one after the feedback of each that failed."""
        return (Attempts(), SecondAttempts(self.success))

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """The policy gradient, and the same on likely tokens alone."""
        whole = self.loss_spec(temperature)
        return whole, replace(whole, token_mask=TokenMask(min_logprob=self.min_logprob))

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The reward beyond that of the others of the stage; a second attempt is also measured by the first ones."""
        rollout, found = group.rollouts[index], list(credits_of(GRPO.credit(self, group, index)))
        if rollout.stage == SecondAttempts.name and rollout.outcome is not None:
            reward, first = rollout.outcome.reward, fmean(rewards(group).values())
            if self.distil and not equal_rewards((reward, first)):
                gain = self.distil * (reward - first)
                found.append(Credit(advantage=gain, question=group.task.messages, spec_index=1))
        return tuple(found) or DropReason.ZERO_ADVANTAGE
