"""What a method is: a frozen value that says what the teacher knows, whose weights it has, and what counts how much.

A method turns the rollouts of one task into credits or drops; everything after that (prompts, passes, the kernel, the
update) is the same for all methods and cannot tell which one runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from selfdistill.losses import LossSpec, Reduction, equal_rewards, group_advantages
from selfdistill.models.teacher import TeacherRule
from selfdistill.options import check_ranges, option
from selfdistill.prompts.stages import Attempts, Stage
from selfdistill.types import ANSWER, Context, DropReason, Message, RolloutGroup


@dataclass(frozen=True, slots=True)
class Credit:
    """What one rollout is worth to an update; a weight of 0 leaves its term out.

    context: what the teacher knows. against: contexts that it
    is contrasted with. advantage: scale of the policy gradient. distil: scale of the divergence from the teacher.
    reference: scale of the divergence from the weights at the start. signal: which of the method's signals forms the
    gradient. question: the student reads these messages instead of what the rollout was asked. text: these words are
    learned instead of the rollout's own. correct: words that were sampled from another prompt than they are learned
    under get the (truncated) ratio of the two as a weight, else none. swapped: the student reads the context, and the
    teacher, with the student's weights of now, the question alone. spans: the tokens (start, stop) that count; the
    others weigh nothing in any term, and still count in the mean over an answer.
    """

    context: Context | None = None
    advantage: float = 0.0
    distil: float = 0.0
    reference: float = 0.0
    against: tuple[Context, ...] = ()
    loss_spec: int = 0
    question: tuple[Message, ...] = ()
    text: str = ""
    correct: bool = False
    student_reads_context: bool = False
    spans: tuple[tuple[int, int], ...] | None = None


CreditOrDrop: TypeAlias = Credit | DropReason | tuple[Credit, ...]
"""What becomes of one rollout: what it is worth, why it takes no part, or several uses of it."""


@dataclass(frozen=True, slots=True)
class Method(ABC):
    """A frozen dataclass; its fields are its settings, its defaults the vetted ones. A number outside the range of its
    `option` raises `ConfigError`.

    settings: what the method needs of the rest of a run (rates, batch sizes), below the user's own settings. source:
    where it is published. reads: the contexts it needs from data or environment, for `selfdistill methods`.
    needs_reward: for what it needs the reward. teacher: whose weights read the contexts unless a run says otherwise;
    None: no teacher. corrects: whether it has credits with `correct`; answers must then be drawn from all tokens, by
    chance.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str] = "not published"
    reads: ClassVar[str] = "nothing"
    needs_reward: ClassVar[str] = "no"
    teacher: ClassVar[TeacherRule | None] = None
    needs_sampler_logprobs: ClassVar[bool] = False

    reduction: Reduction = option("sequence-mean", "every answer weighs the same, or every token")
    count_dropped: bool = option(False, "whether rollouts that take no part dilute the mean")

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is asked of the student, in this order."""
        return (Attempts(),)

    @property
    def needs_reference(self) -> bool:
        """Whether credits ask for the weights at the start, which are then kept."""
        return False

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """All signals that credits may name."""
        return (self.loss_spec(temperature),)

    @abstractmethod
    def loss_spec(self, temperature: float) -> LossSpec:
        """How log-ratio and verdict become a gradient, at the temperature the answers were sampled at."""

    @abstractmethod
    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """What becomes of one rollout. It has an outcome, or its stage is one that is not scored."""

    def credits(self, group: RolloutGroup) -> list[CreditOrDrop]:
        """One entry per rollout of the group, in order. What the environment could not judge keeps its own drop
        reason."""
        return [r.drop if r.drop is not None else self.credit(group, i) for i, r in enumerate(group.rollouts)]


def credits_of(credited: CreditOrDrop) -> tuple[Credit, ...]:
    """All uses of a rollout; none where it takes no part."""
    if isinstance(credited, DropReason):
        return ()
    return credited if isinstance(credited, tuple) else (credited,)


def distilled(found: Context | DropReason, **scales: Any) -> CreditOrDrop:
    """What a context rule found as a credit of 1 with these other scales, or the reason why it found nothing."""
    return Credit(found, **{"distil": 1.0, **scales}) if isinstance(found, Context) else found


def judged(group: RolloutGroup) -> list[float]:
    """The rewards of the group's first answers, without those that nobody could judge."""
    return [rollout.outcome.reward for _, rollout in group.at(ANSWER) if rollout.outcome is not None]


def advantages(group: RolloutGroup, *, divide_by_std: bool = False, stage: str = ANSWER) -> list[float | None]:
    """One number per rollout of the group, among those of one stage that were scored; None for all others, and for
    all in a zero-advantage group, whose rewards are equal up to rounding."""
    places = group.at(stage)
    rewards = [rollout.outcome.reward for _, rollout in places if rollout.outcome is not None]
    if equal_rewards(rewards):
        return [None] * len(group.rollouts)
    found = dict(
        zip((place for place, _ in places), group_advantages(rewards, divide_by_std=divide_by_std), strict=True)
    )
    return [found.get(place) for place in range(len(group.rollouts))]
