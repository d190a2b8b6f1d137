"""A method: a frozen value that decides which context the teacher reads, whose weights read it, and the loss.

A method turns the rollouts of one task into credits or drop reasons; everything after that (prompts, forward passes,
kernel, update) is the same for all methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from selfdistill.errors import Ranged
from selfdistill.losses import LossSpec, Reduction, equal_rewards, group_advantages
from selfdistill.models.teacher import TeacherRule
from selfdistill.options import option
from selfdistill.prompts.context import ContextRule
from selfdistill.prompts.stages import Attempts, Stage
from selfdistill.types import ANSWER, Context, DropReason, Message, RolloutGroup


@dataclass(frozen=True, slots=True)
class Credit:
    """One training sample to be made of a rollout: its contexts, and its scale in each term of the loss.

    context: what the teacher reads. against: contexts that it is contrasted with. advantage: scale of the policy
    gradient. distil: scale of the divergence from the teacher. reference: scale of the divergence from the weights at
    the start. A scale of 0 leaves its term out. spec_index: the place of its loss in `Method.loss_specs`.

    question: the student's prompt, instead of the rollout's. text: an answer to learn, instead of the rollout's.
    correct: weigh tokens that were sampled from another prompt by the (truncated) ratio of the two probabilities;
    otherwise they have none. student_reads_context: the student reads the context, and its own current weights, as the
    teacher, read the question alone. spans: the tokens (start, stop) that count; others weigh 0 in every term, and
    still count in the mean over an answer. turn: the one turn of a conversation that learns, whose context the teacher
    reads in the message before it; None: all turns, and the context stands in the question.
    """

    context: Context | None = None
    advantage: float = 0.0
    distil: float = 0.0
    reference: float = 0.0
    against: tuple[Context, ...] = ()
    spec_index: int = 0
    question: tuple[Message, ...] = ()
    text: str = ""
    correct: bool = False
    student_reads_context: bool = False
    spans: tuple[tuple[int, int], ...] | None = None
    turn: int | None = None


CreditOrDrop: TypeAlias = Credit | DropReason | tuple[Credit, ...]
"""For one rollout: its credit or several, or the reason why it has none."""


@dataclass(frozen=True, slots=True)
class Method(Ranged, ABC):
    """A frozen dataclass; its fields are its settings, with the vetted values as defaults. A number outside the range
    of its `option` raises `ConfigError`.

    settings: what the method sets of the rest of a run (rates, batch sizes), unless the user does. source: its paper.
    reads, needs_reward: the contexts and the reward that it needs, in words, for `selfdistill methods`. teacher: whose
    weights read the contexts unless the run sets a rule; None: no teacher. needs_sampler_logprobs: whether it has
    credits with `correct`; answers must then be sampled from the whole distribution. takes_turns: whether it learns
    from conversations of several turns. data_env: the environment of a data set, unless the user names one.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = "not published"
    reads: ClassVar[str] = "nothing"
    needs_reward: ClassVar[str] = "no"
    teacher: ClassVar[TeacherRule | None] = None
    needs_sampler_logprobs: ClassVar[bool] = False
    takes_turns: ClassVar[bool] = False
    data_env: ClassVar[str] = "code"

    reduction: Reduction = option("sequence-mean", "every answer weighs the same, or every token")
    count_dropped: bool = option(False, "whether rollouts that take no part dilute the mean")

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        if type(self).credit is Method.credit:
            _ = self.context  # refused here where there is none, before anything is sampled

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is sampled for each task, in order."""
        return (Attempts(),)

    @property
    def context(self) -> ContextRule:
        """Finds what the teacher reads: a field or a class variable of methods that leave `credit` as it is."""
        raise NotImplementedError(f"{type(self).__name__} has neither `context` nor a `credit` of its own")

    @property
    def needs_reference(self) -> bool:
        """Whether credits have a `reference`; the weights at the start are then kept."""
        return False

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """All losses that credits may name, by place."""
        return (self.loss_spec(temperature),)

    @abstractmethod
    def loss_spec(self, temperature: float) -> LossSpec:
        """How log-ratio and advantage become a gradient, at the sampling temperature of the answers."""

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The credit of one rollout, which has an outcome unless its stage is not scored: a `distil` of 1 wherever
        `context` finds something."""
        return distilled_turns(self.context, group, index)

    def credits(self, group: RolloutGroup) -> list[CreditOrDrop]:
        """One entry per rollout of the group, in order. A rollout that could not be scored keeps its drop reason."""
        return [r.drop if r.drop is not None else self.credit(group, i) for i, r in enumerate(group.rollouts)]


def credits_of(credited: CreditOrDrop) -> tuple[Credit, ...]:
    """All credits of a rollout; none for a drop reason."""
    if isinstance(credited, DropReason):
        return ()
    return credited if isinstance(credited, tuple) else (credited,)


def distilled(found: Context | DropReason, **scales: Any) -> Credit | DropReason:
    """A credit with the context, a `distil` of 1 and other `scales`; or the reason why there is no context."""
    return Credit(found, **{"distil": 1.0, **scales}) if isinstance(found, Context) else found


def distilled_turns(rule: ContextRule, group: RolloutGroup, index: int, **scales: Any) -> CreditOrDrop:
    """A credit as `distilled` makes it; of a conversation one for each turn for which the rule finds a context of its
    own, where it looks at turns."""
    by_turn = getattr(rule, "turn_contexts", None)
    if by_turn is None or not group.rollouts[index].turns:
        return distilled(rule.context(group, index), **scales)
    found = by_turn(group.rollouts[index])
    return tuple(Credit(c, **{"distil": 1.0, **scales}, turn=k) for k, c in found) or DropReason.NO_CONTEXT


def rewards(group: RolloutGroup, stage: str = ANSWER) -> dict[int, float]:
    """The rewards of the scored rollouts of one stage, by place in the group."""
    return {i: r.outcome.reward for i, r in enumerate(group.rollouts) if r.stage == stage and r.outcome is not None}


def advantage(group: RolloutGroup, index: int, *, divide_by_std: bool = False) -> float | None:
    """The advantage of a rollout among the scored ones of its stage; None where it is not scored, or where all rewards
    are equal up to rounding (a zero-advantage group)."""
    scored = rewards(group, group.rollouts[index].stage)
    if index not in scored or equal_rewards(list(scored.values())):
        return None
    return dict(zip(scored, group_advantages(list(scored.values()), divide_by_std=divide_by_std), strict=True))[index]
