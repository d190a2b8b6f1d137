"""A method of your own: a failed attempt is read again with its feedback, a success is simply rewarded.

selfdistill train --method examples/my_method.py:Lessons method.reward=0.5
selfdistill methods examples/my_method.py:Lessons
"""

from dataclasses import dataclass
from typing import ClassVar

from selfdistill import Additive, Context, Credit, Drop, Frozen, Method, RolloutGroup, SampledToken, Signal, Tanh


@dataclass(frozen=True, slots=True)
class Lessons(Method):
    """Distil failures from their own feedback, reward successes."""

    teacher: ClassVar = Frozen()  # whose weights read the feedback
    settings: ClassVar = {"optimiser": {"weight_decay": 0.0}}  # what it needs of a run, below the user's own settings
    reward: float = 1.0

    def signal(self, temperature: float) -> Signal:
        return Signal(temperature=temperature)

    def verdict(self, group: RolloutGroup, index: int) -> Credit | Drop:
        outcome = group.rollouts[index].outcome
        if outcome.reward == 1:
            return Credit(advantage=self.reward)
        context = Context("feedback", feedback=outcome.feedback)
        return Credit(context, distil=1.0) if outcome.feedback else Drop.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Hints(Lessons):
    """The same as a policy gradient: how much likelier the feedback makes each token is its advantage, within ±1."""

    def signal(self, temperature: float) -> Signal:
        return Signal(support=SampledToken(), coupling=Additive(bound=Tanh(1.0)), temperature=temperature)
