"""ERL: try, reflect, try again, and learn to do at once what took the reflection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfdistill.methods.base import Credit, CreditOrDrop, credits_of
from selfdistill.methods.grpo import GRPO
from selfdistill.options import changed, option
from selfdistill.prompts.stages import Attempts, ReflectedAttempts, Reflections, Stage
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class ERL(GRPO):
    """Experiential Reinforcement Learning: GRPO on first attempts, on reflections and on second attempts, each among
    their own; second attempts that succeed are also learned as answers to the bare question.

    Needs a reward, and feedback to reflect on. A reflection has the reward of the attempt that read it. There is no
    memory of reflections across tasks, and one mean is taken over the rollouts of all three streams.
    """

    settings = {
        "tasks_per_step": 64,
        "rollouts_per_task": 4,
        "optimiser": {"lr": 1e-6},
        "sampling": {"temperature": 0.7},
    }
    source = "arXiv 2602.13949"
    reads = "own feedback, in reflections"

    reference_kl: float = changed(GRPO, "reference_kl", 0.001)
    success: float = option(0.5, "reward at which an attempt counts as solved")
    internalise: float = option(1.0, "scale of a solved second attempt's reward, under the bare question", least=0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Answers; of those that failed a reflection, and another attempt after it."""
        return (Attempts(), Reflections(self.success), ReflectedAttempts())

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The reward beyond that of others of the stage; where the bare question is to be answered so, that too."""
        rollout, found = group.rollouts[index], list(credits_of(GRPO.credit(self, _with_reflections(group), index)))
        if rollout.stage == ReflectedAttempts.name and rollout.outcome and rollout.outcome.reward >= self.success:
            found.append(Credit(question=group.task.messages, advantage=self.internalise * rollout.outcome.reward))
        return tuple(found) or DropReason.ZERO_ADVANTAGE


def _with_reflections(group: RolloutGroup) -> RolloutGroup:
    """The same group, its reflections scored by the attempts that read them."""
    outcomes = {rollout.of: rollout.outcome for rollout in group.rollouts if rollout.stage == ReflectedAttempts.name}
    own = (outcomes.get(i) if r.stage == Reflections.name else r.outcome for i, r in enumerate(group.rollouts))
    return replace(group, rollouts=tuple(replace(r, outcome=o) for r, o in zip(group.rollouts, own, strict=True)))
