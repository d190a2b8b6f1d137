"""AntiSD: away from a teacher that reads the solution, so that the student keeps deliberating."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfdistill.losses import Additive, Constant, EntropyGate, JensenShannon, LossSpec, Repel
from selfdistill.methods.base import Credit, CreditOrDrop, advantage, distilled
from selfdistill.methods.shaped import ShapedMethod
from selfdistill.models.teacher import Live
from selfdistill.options import option
from selfdistill.prompts.context import group_members
from selfdistill.types import Context, DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class AntiSD(ShapedMethod):
    """Anti-Self-Distillation: A − λ h(e), with h(e) = ½ (softplus(e) − log 2) of the Jensen-Shannon divergence.

    A teacher that reads the solution is certain of what follows from it and uncertain of "wait" and "maybe"; this
    method ascends its divergence. That has no minimum, so a gate stops it when the teacher's entropy collapses. Needs a
    reward, and solved group members or a demonstration; zero-advantage groups are pushed too. The live teacher reads
    whether the attempt was correct as a user's reply, since the feedback section is worded for failures.
    """

    settings = {"optimiser": {"lr": 1e-6}, "sampling": {"max_new_tokens": 32768}}
    source = "arXiv 2605.11609"
    reads = "a group member's solution, else the demonstration; whether it was right"
    teacher = Live()

    success: float = option(0.5, "reward at which a rollout counts as solved")
    strength: float = option(0.5, "λ", least=0)
    gate: EntropyGate = field(default_factory=EntropyGate)

    def loss_spec(self, temperature: float) -> LossSpec:
        """One policy gradient, with the push added to its advantages."""
        shaping, schedule = Additive(JensenShannon(0.5)), Constant(self.strength)
        return self.shaped_loss(temperature, distil_sign=Repel(), shaping=shaping, schedule=schedule, gate=self.gate)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Advantage and push; in a zero-advantage group the push and the reference divergence."""
        found, flat = self.context_credit(group, index), advantage(group, index) is None
        return found if flat and isinstance(found, Credit) else ShapedMethod.credit(self, group, index)

    def context_credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """A solution, and whether this attempt was correct."""
        outcome = group.rollouts[index].outcome
        solution = next(iter(group_members(group, index, solved=True, success=self.success)), group.task.demonstration)
        if outcome is None or not solution.strip():
            return DropReason.NO_CONTEXT
        reply = "This is correct." if outcome.reward >= self.success else "This is incorrect."
        return distilled(Context("solution+verdict", solution=solution, reply=reply), reference=self.reference_kl)
