"""Learning in the context and in the weights at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from selfdistill.errors import ConfigError
from selfdistill.losses import LossSpec
from selfdistill.methods import Credit, Method
from selfdistill.methods.base import CreditOrDrop, credits_of
from selfdistill.options import changed, option
from selfdistill.test_time.strategies.base import PASSED, Attempt, Prompt, SolveState, Strategy, at_least_one
from selfdistill.test_time.strategies.window import distinct, told, with_feedback
from selfdistill.types import Rollout, RolloutGroup

MOST = 5.0  # odds of being repeated that count: an answer that is nearly certain would be pushed without bound


@dataclass(frozen=True, slots=True)
class RelabelledPrompt(Method):
    """Another method, whose student reads the task's question, whatever the attempt itself had read.

    What an attempt was told in its prompt thereby becomes part of what is to be learned. With `unlikelihood` above 0
    each failure also becomes less likely under the prompt that it had read: see `unlikelihood_weights`.
    """

    inner: Method = field(kw_only=True)
    unlikelihood: float = field(default=0.0, kw_only=True)

    @property
    def needs_reference(self) -> bool:
        """As the method says."""
        return self.inner.needs_reference

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """As the method says."""
        return self.inner.loss_specs(temperature)

    def loss_spec(self, temperature: float) -> LossSpec:
        """As the method says."""
        return self.inner.loss_spec(temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The method's credits, under the question; those that name a question of their own keep it. Of a failure one
        more, under its own prompt, also where nothing was said of it."""
        found, outcome = self.inner.credit(group, index), group.rollouts[index].outcome
        asked = tuple(_asked(credit, group) for credit in credits_of(found))
        if self.unlikelihood and outcome is not None and outcome.reward < PASSED:
            asked = (*asked, Credit(advantage=unlikelihood_weights(group.rollouts[index], self.unlikelihood)))
        return asked or found


def unlikelihood_weights(rollout: Rollout, strength: float) -> float:
    """The advantage with which a failed answer is pushed away: A = -strength · min(MOST, P / (1 - P)).

    P is the probability with which it was sampled. Being repeated is what wastes attempts, and A ∇ log P is
    strength · ∇ log (1 - P): a rare failure is hardly touched, one that would come again is.
    """
    chance = math.exp(sum(rollout.completion.logprobs))
    odds = chance / (1 - chance) if chance < 1 else MOST
    return -strength * min(MOST, odds)


def _asked(credit: Credit, group: RolloutGroup) -> Credit:
    return credit if credit.question else replace(credit, question=group.task.messages)


@dataclass(frozen=True, slots=True)
class Hybrid(Strategy):
    """Attempts read recent feedback, by the weights as learned so far, and each is distilled into the bare question.

    The first round reads the question alone.
    """

    name: ClassVar[str] = "hybrid"
    learns: ClassVar[str] = "sdpo"
    method_settings: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}  # covers all that the teacher holds possible
    idle: ClassVar[str] = "nothing can be distilled until one of them passes; its group members then learn from it"

    batch: int = changed(Strategy, "batch", 8)
    reads: Literal["own", "round"] = option(
        "own", "recent feedback on the attempts at the same place of a round, or on all of them"
    )
    rounds: int = option(4, "rounds whose feedback is recent", least=1)
    share: float = option(1.0, "of the attempts of a round, those that read feedback", above=0, most=1)
    unlikelihood: float = option(
        0.1, "how strongly a failure is pushed away that would come again; 0: not at all", least=0
    )
    window: int = option(32_000, "tokens of a prompt, at most; never more than the model can read", least=1)

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "rounds", "window")
        if not 0 < self.share <= 1:
            raise ConfigError("strategy.share must be above 0 and at most 1", got=self.share)
        if not 0 <= self.unlikelihood < math.inf:
            raise ConfigError("strategy.unlikelihood must be a number of at least 0", got=self.unlikelihood)

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """The first ones of a round are informed, the rest bare."""
        recent = told([past for past in state.attempts if past.round >= state.round - self.rounds])
        informed = round(self.share * count)
        if self.reads == "round":
            seen = [with_feedback(state, distinct(recent), self.window)] * informed
        else:
            seen = [with_feedback(state, distinct(_at(recent, place)), self.window) for place in range(informed)]
        return seen + [Prompt(state.task.messages)] * (count - informed)

    def learner(self, method: Method) -> Method:
        """The method under the bare question, with what keeps failures from coming again."""
        return RelabelledPrompt(method.reduction, method.count_dropped, inner=method, unlikelihood=self.unlikelihood)


def _at(recent: list[Attempt], place: int) -> list[Attempt]:
    """Those of one place; where it was told nothing, those of the next place that was."""
    places = sorted({attempt.place for attempt in recent})
    if not places:
        return []
    chosen = place if place in places else places[place % len(places)]
    return [attempt for attempt in recent if attempt.place == chosen]
