"""What is asked of the student for a method: first answers, second attempts, reflections, answers that were given.

A method lists its stages; the rollout stage of a loop runs them one after the other and knows none of them. A stage
looks at what a group holds so far and returns what to ask next. Adding one is one frozen dataclass, here or beside
the method that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from selfdistill.prompts.context import ContextRule, teacher_messages, without_thinking
from selfdistill.types import ANSWER, Completion, Context, Message, Outcome, Rollout, RolloutGroup, Task

REFLECT = "Say in one or two sentences how to answer the original question better next time."


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One more answer to be sampled, to these messages, about the rollout at place `of`. Without `scored` the
    environment is not asked about it."""

    messages: tuple[Message, ...]
    of: int | None = None
    judged: bool = True


@dataclass(frozen=True, slots=True)
class FixedCompletion:
    """An answer that is there already, and what is known of it."""

    text: str
    outcome: Outcome


Request: TypeAlias = SampleRequest | FixedCompletion


class Stage(Protocol):
    """A frozen value; `name` is what its rollouts are called."""

    name: ClassVar[str]

    def wanted(self, group: RolloutGroup, count: int) -> Sequence[Request]:
        """What to add to a group; `count` is how many rollouts a task is worth in this run."""
        ...


@dataclass(frozen=True, slots=True)
class Attempts:
    """The student's answers to the question as it stands."""

    name: ClassVar[str] = ANSWER

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """`count` of them."""
        return [SampleRequest(group.task.messages) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Prompted:
    """The student's answers to prompts that somebody has chosen for each task, by its id; one to each prompt."""

    prompts: Mapping[str, Sequence[tuple[Message, ...]]]

    name: ClassVar[str] = ANSWER

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """As many as there are prompts."""
        return [SampleRequest(messages) for messages in self.prompts[group.task.id]]


@dataclass(frozen=True, slots=True)
class DemonstrationCompletions:
    """The demonstration that came with the task: nothing is sampled."""

    name: ClassVar[str] = "demonstration"

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """One, or none."""
        text = group.task.demonstration
        return [FixedCompletion(text, Outcome(1.0))] if text.strip() else []


@dataclass(frozen=True, slots=True)
class LoggedCompletions:
    """An answer from a log, and what the user said to it: nothing is sampled."""

    name: ClassVar[str] = "logged"

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """One, or none."""
        task = group.task
        return (
            [FixedCompletion(task.logged_answer, Outcome(0.0, reply=task.user_reply))]
            if task.logged_answer.strip()
            else []
        )


@dataclass(frozen=True, slots=True)
class PrivilegedRollouts:
    """The student's answers when it reads what a rule finds: what a teacher would say, from the student's weights."""

    rule: ContextRule

    name: ClassVar[str] = "informed"

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """`count` of them; none where the rule finds nothing. The rule must need no rollouts."""
        found = self.rule.context(group, 0)
        told = teacher_messages(group.task.messages, found) if isinstance(found, Context) else ()
        return [SampleRequest(told) for _ in range(count)] if told else []


@dataclass(frozen=True, slots=True)
class SecondAttempts:
    """Another try after each failure, in one conversation with the first and its feedback (RLTF, arXiv 2602.02482)."""

    success: float = 0.5

    name: ClassVar[str] = "second_attempt"

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """One for each failure that was told something."""
        return [SampleRequest(after_feedback(group, r), place) for place, r in failures(group, self.success)]


@dataclass(frozen=True, slots=True)
class Reflections:
    """What the student makes of each failure, in its own words (ERL, arXiv 2602.13949)."""

    success: float = 0.5

    name: ClassVar[str] = "reflection"

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """One for each failure that was told something; the environment has no say in it."""
        return [
            SampleRequest((*before, Message("user", f"{last.content}\n\n{REFLECT}")), place, judged=False)
            for place, rollout in failures(group, self.success)
            for *before, last in [after_feedback(group, rollout)]
        ]


@dataclass(frozen=True, slots=True)
class ReflectedAttempts:
    """Another try at the question with the reflection as its system message (ERL, arXiv 2602.13949)."""

    name: ClassVar[str] = "reflected_attempt"

    def wanted(self, group: RolloutGroup, count: int) -> list[Request]:
        """One for each reflection, about the place of the reflection."""
        noted = [
            (place, without_thinking(rollout.completion.text))
            for place, rollout in enumerate(group.rollouts)
            if rollout.stage == Reflections.name
        ]
        return [
            SampleRequest(teacher_messages(group.task.messages, Context("reflection", instruction=text)), place)
            for place, text in noted
            if text.strip()
        ]


def examples(stages: Sequence[Stage], task: Task) -> list[tuple[Message, ...]]:
    """The conversations that these stages have about a task when every answer fails."""
    group, found = RolloutGroup(task, ()), list[tuple[Message, ...]]()
    failed = Outcome(0.0, "That is wrong.", reply="No.")
    for stage in stages:
        asked = [want for want in stage.wanted(group, 1) if isinstance(want, SampleRequest)]
        found += [want.messages for want in asked]
        done = Completion("example", "An answer.")
        answers = [Rollout(task, (), done, failed, stage=stage.name, of=want.of) for want in asked]
        group = RolloutGroup(task, (*group.rollouts, *answers))
    return found


def failures(group: RolloutGroup, success: float) -> list[tuple[int, Rollout]]:
    """First answers that failed and were told why, with their places."""
    return [
        (place, rollout)
        for place, rollout in group.at(ANSWER)
        if rollout.outcome is not None and rollout.outcome.reward < success and rollout.outcome.feedback.strip()
    ]


def after_feedback(group: RolloutGroup, rollout: Rollout) -> tuple[Message, ...]:
    """The question, the attempt, and what was said of it, as one conversation."""
    assert rollout.outcome is not None
    said = Message("assistant", rollout.completion.text)
    return (*group.task.messages, said, Message("user", rollout.outcome.feedback))
