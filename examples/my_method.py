"""A method of your own: a failed attempt is read again with its feedback, a success is simply rewarded.

selfdistill train --method examples/my_method.py:Lessons method.reward=0.5
selfdistill methods examples/my_method.py:Lessons
"""

from dataclasses import dataclass
from typing import ClassVar

from selfdistill import Context, Credit, Drop, Frozen, Outcome, RolloutGroup, Signal, divergence


@dataclass(frozen=True, slots=True)
class Lessons:
    """Distil failures from their own feedback, reward successes."""

    settings: ClassVar = {"optimiser": {"weight_decay": 0.0}}  # what it needs of a run, below the user's own settings
    source: ClassVar = "examples/my_method.py"
    teacher: ClassVar = Frozen()  # whose weights read the feedback
    needs_reference: ClassVar = False  # nothing is measured against the weights at the start
    reduction: ClassVar = "token-mean"  # every token weighs the same
    count_dropped: ClassVar = False  # rollouts that take no part do not dilute the mean
    reward: float = 1.0

    def signal(self, temperature: float) -> Signal:
        return Signal(shape=divergence(0.5), temperature=temperature)

    def credit(self, group: RolloutGroup) -> list[Credit | Drop]:
        return [rollout.drop or self.lesson(rollout.outcome) for rollout in group.rollouts]

    def lesson(self, outcome: Outcome) -> Credit | Drop:
        if outcome.reward == 1:
            return Credit(advantage=self.reward)
        context = Context("feedback", feedback=outcome.feedback)
        return Credit(context, distil=1.0) if outcome.feedback else Drop.NO_CONTEXT
