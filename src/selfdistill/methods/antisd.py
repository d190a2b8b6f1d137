"""AntiSD: away from what the student says once it knows the solution, so that it goes on deliberating."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from selfdistill.context import siblings
from selfdistill.methods.base import Credit, Verdict, advantages, distilled
from selfdistill.methods.told import Told
from selfdistill.models.teacher import Live, TeacherRule
from selfdistill.options import option
from selfdistill.signal import Additive, Away, Constant, EntropyGate, JensenShannon, SampledToken, Signal
from selfdistill.types import Context, Drop, RolloutGroup


@dataclass(frozen=True, slots=True)
class AntiSD(Told):
    """Anti-Self-Distillation: A − λ h(e), with h(e) = ½ (softplus(e) − log 2) of the Jensen-Shannon divergence.

    A teacher that knows the solution is sure of what follows from it and unsure of "wait" and "maybe"; this goes up its
    divergence instead of down. It has no minimum, so a gate stops it when the teacher's entropy collapses. Needs a
    reward, and solved siblings or a demonstration; groups that agree are pushed away all the same. The live teacher is
    told whether the attempt was right as if by the user: the section for feedback speaks of unsuccessful attempts.
    """

    settings: ClassVar[Mapping[str, Any]] = {"optimiser": {"lr": 1e-6}, "sampling": {"max_new_tokens": 32768}}
    source: ClassVar[str] = "arXiv 2605.11609"
    reads: ClassVar[str] = "a sibling's solution, else the demonstration; whether it was right"
    teacher: ClassVar[TeacherRule | None] = Live()

    success: float = option(0.5, "reward at which a rollout counts as solved", least=0, most=1)
    strength: float = option(0.5, "λ", least=0)
    gate: EntropyGate = field(default_factory=EntropyGate)

    def signal(self, temperature: float) -> Signal:
        """One policy gradient, with the push added to its advantages."""
        return replace(
            Told.signal(self, temperature),
            support=SampledToken(),
            direction=Away(),
            coupling=Additive(JensenShannon(0.5)),
            schedule=Constant(self.strength),
            gate=self.gate,
        )

    def verdict(self, group: RolloutGroup, index: int) -> Verdict:
        """As told; in a zero-advantage group the push is all there is, beside the reference divergence."""
        found, flat = self.told(group, index), advantages(group)[index] is None
        return found if flat and isinstance(found, Credit) else Told.verdict(self, group, index)

    def told(self, group: RolloutGroup, index: int) -> Verdict:
        """A solution, and what became of this attempt."""
        outcome = group.rollouts[index].outcome
        solution = next(iter(siblings(group, index, solved=True, success=self.success)), group.task.demonstration)
        if outcome is None or not solution.strip():
            return Drop.NO_CONTEXT
        said = "This is correct." if outcome.reward >= self.success else "This is incorrect."
        return distilled(Context("solution+verdict", solution=solution, reply=said), reference=self.reference_kl)
