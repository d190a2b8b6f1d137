"""A method of your own: failed attempts are distilled from their feedback, successes are rewarded.

selfdistill train --method examples/my_method.py:Lessons method.reward=0.5
selfdistill methods examples/my_method.py:Lessons
"""

from dataclasses import dataclass
from typing import ClassVar

import selfdistill as sd


@dataclass(frozen=True, slots=True)
class Lessons(sd.Method):
    """Distil failures from their own feedback, reward successes."""

    teacher: ClassVar = sd.Frozen()  # the weights that read the feedback
    settings: ClassVar = {"optimiser": {"weight_decay": 0.0}}  # defaults for the rest of a run
    reward: float = 1.0

    def loss_spec(self, temperature: float) -> sd.LossSpec:
        return sd.LossSpec(temperature=temperature)

    def credit(self, group: sd.RolloutGroup, index: int) -> sd.Credit | sd.DropReason:
        outcome = group.rollouts[index].outcome
        if outcome.reward == 1:
            return sd.Credit(advantage=self.reward)
        context = sd.Context("feedback", feedback=outcome.feedback)
        return sd.Credit(context, distil=1.0) if outcome.feedback else sd.DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Hints(Lessons):
    """The same as a policy gradient: the log-ratio of each token is its advantage, within ±1."""

    def loss_spec(self, temperature: float) -> sd.LossSpec:
        return sd.LossSpec(
            support=sd.SampledToken(), shaping=sd.Additive(clipping=sd.Tanh(1.0)), temperature=temperature
        )
