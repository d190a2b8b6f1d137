"""SFT: learn the words of the demonstration, the baseline that samples nothing."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.losses import LossSpec, Reduction
from selfdistill.methods.base import Credit, CreditOrDrop, Method
from selfdistill.options import changed
from selfdistill.prompts.stages import DemonstrationCompletions
from selfdistill.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class SFT(Method):
    """Supervised fine-tuning: cross-entropy on the demonstration, the off-policy baseline of self-distillation.

    Each task needs a demonstration; no reward, no teacher, and nothing is sampled, so that the temperature of sampling
    plays no part. The loss is the cross-entropy in nats per token.
    """

    settings = {"rollouts_per_task": 1}
    source = "arXiv 2601.19897 (its baseline)"
    reads = "demonstration"
    stages = (DemonstrationCompletions(),)

    reduction: Reduction = changed(Method, "reduction", "token-mean")

    def loss_spec(self, temperature: float) -> LossSpec:
        """The cross-entropy: a policy gradient on words that nobody sampled, with an advantage of 1."""
        return LossSpec()

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Every demonstration counts 1."""
        return Credit(advantage=1.0)
