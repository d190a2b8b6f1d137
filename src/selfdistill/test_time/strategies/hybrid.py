"""Learning in context and in weights at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from selfdistill.losses import LossSpec
from selfdistill.methods import Credit, Method
from selfdistill.methods.base import CreditOrDrop, credits_of
from selfdistill.options import changed, option
from selfdistill.test_time.strategies.base import PASSED, Attempt, Prompt, SolveState, Strategy
from selfdistill.test_time.strategies.window import with_feedback, with_text
from selfdistill.types import Rollout, RolloutGroup

MOST_ODDS = 5.0  # bounds the weight of a failure that is nearly certain to be sampled again


@dataclass(frozen=True, slots=True)
class RelabelledPrompt(Method):
    """Wraps a method: its student reads the task's question in place of the prompt that an attempt read.

    The feedback in that prompt thereby becomes part of what is distilled. With `unlikelihood` above 0 each failure also
    becomes less likely under the prompt that it read: see `unlikelihood_weight`.
    """

    inner: Method = field(kw_only=True)
    unlikelihood: float = field(default=0.0, kw_only=True)

    @property
    def needs_reference(self) -> bool:
        """Of the wrapped method."""
        return self.inner.needs_reference

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """Of the wrapped method."""
        return self.inner.loss_specs(temperature)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Of the wrapped method."""
        return self.inner.loss_spec(temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The method's credits under the question (or one of their own), and for a failure one of unlikelihood."""
        found, outcome = self.inner.credit(group, index), group.rollouts[index].outcome
        credits = [replace(credit, question=credit.question or group.task.messages) for credit in credits_of(found)]
        if self.unlikelihood and outcome is not None and outcome.reward < PASSED:
            credits.append(Credit(advantage=unlikelihood_weight(group.rollouts[index], self.unlikelihood)))
        return tuple(credits) or found


def unlikelihood_weight(rollout: Rollout, strength: float) -> float:
    """The negative advantage of a failed answer: A = -strength · min(MOST_ODDS, P / (1 - P)), P its probability.

    A ∇ log P is strength · ∇ log (1 - P): a failure that would be sampled again is pushed down, a rare one hardly.
    """
    chance = math.exp(sum(rollout.completion.logprobs))
    return -strength * min(MOST_ODDS, chance / (1 - chance) if chance < 1 else MOST_ODDS)


@dataclass(frozen=True, slots=True)
class Hybrid(Strategy):
    """Attempts read recent feedback, and each is distilled into the question alone.

    Attempts of the first round read the question alone.
    """

    name: ClassVar[str] = "hybrid"
    learns: ClassVar[str] = "sdpo"
    method_settings: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}  # forward KL: covers the teacher's distribution
    idle: ClassVar[str] = "nothing can be distilled until one of them passes; its group members then learn from it"

    batch: int = changed(Strategy, "batch", 8)
    reads: Literal["own", "round"] = option(
        "own", "recent feedback on attempts at the same place of a round, or on all attempts"
    )
    rounds: int = option(4, "the number of rounds whose feedback is recent", least=1)
    share: float = option(1.0, "share of the attempts of a round that read feedback", above=0, most=1)
    unlikelihood: float = option(
        0.1, "unlikelihood weight of a failure that is likely to be sampled again; 0: none", least=0
    )
    window: int = option(32_000, "most tokens of a prompt; never more than the model can read", least=1)

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """The first prompts of a round hold feedback, the others the question alone."""
        recent = with_text([past for past in state.attempts if past.round >= state.round - self.rounds])
        informed = round(self.share * count)
        if self.reads == "round":
            prompts = [with_feedback(state, recent, self.window)] * informed
        else:
            prompts = [with_feedback(state, _at(recent, place), self.window) for place in range(informed)]
        return prompts + [Prompt(state.task.messages)] * (count - informed)

    def learner(self, method: Method) -> Method:
        """The method under the question alone, with the unlikelihood of failures."""
        return RelabelledPrompt(method.reduction, method.count_dropped, inner=method, unlikelihood=self.unlikelihood)


def _at(recent: list[Attempt], place: int) -> list[Attempt]:
    """The attempts at one place; where none has feedback, those at another place that has."""
    places = sorted({attempt.place for attempt in recent})
    if not places:
        return []
    chosen = place if place in places else places[place % len(places)]
    return [attempt for attempt in recent if attempt.place == chosen]
