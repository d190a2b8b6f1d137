"""Stages: what a method adds to a rollout group, in order. First answers, second attempts, reflections, given answers.

A method lists its stages, and the rollout code runs them one after the other without knowing any of them. A stage reads
the group so far and returns requests: prompts to sample from, or completions that are given. A new stage is one frozen
dataclass, here or beside its method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from selfdistill.prompts.context import ContextRule, teacher_messages, without_thinking
from selfdistill.types import ANSWER, Completion, Context, Message, Outcome, Rollout, RolloutGroup, Task

NO_CONTEXT = Context("none")
REFLECT = "Say in one or two sentences how to answer the original question better next time."


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One completion to sample after these messages with the `context`, if any, in them. `of` is the place of the
    rollout that it follows up on. Without `scored` the environment does not score it."""

    messages: tuple[Message, ...]
    of: int | None = None
    scored: bool = True
    context: Context = NO_CONTEXT


@dataclass(frozen=True, slots=True)
class FixedCompletion:
    """A completion that is given instead of sampled, with its outcome."""

    text: str
    outcome: Outcome


Request: TypeAlias = SampleRequest | FixedCompletion


class Stage(Protocol):
    """A frozen value; `name` is the stage of its rollouts."""

    name: ClassVar[str]

    def requests(self, group: RolloutGroup, count: int) -> Sequence[Request]:
        """What to add to a group; `count` is the rollouts per task of this run."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """`count` answers to the task's question."""

    name: ClassVar[str] = ANSWER

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        return [SampleRequest(group.task.messages)] * count


@dataclass(frozen=True, slots=True)
class Prompted:
    """One answer to each of the prompts that are listed for a task, by its id."""

    prompts: Mapping[str, Sequence[tuple[Message, ...]]]

    name: ClassVar[str] = ANSWER

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        return [SampleRequest(messages) for messages in self.prompts[group.task.id]]


@dataclass(frozen=True, slots=True)
class DemonstrationCompletions:
    """The task's demonstration, if it has one, as a completion of reward 1."""

    name: ClassVar[str] = "demonstration"

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        text = group.task.demonstration
        return [FixedCompletion(text, Outcome(1.0))] if text.strip() else []


@dataclass(frozen=True, slots=True)
class LoggedCompletions:
    """The task's logged answer, if it has one, with the user's reply."""

    name: ClassVar[str] = "logged"

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        text, outcome = group.task.logged_answer, Outcome(0.0, reply=group.task.user_reply)
        return [FixedCompletion(text, outcome)] if text.strip() else []


@dataclass(frozen=True, slots=True)
class PrivilegedRollouts:
    """`count` answers of the student with the rule's context in the prompt; none where the rule finds no context. The
    rule must need no rollouts."""

    rule: ContextRule

    name: ClassVar[str] = "informed"

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        context = self.rule.context(group, 0)
        if not isinstance(context, Context):
            return []
        return [SampleRequest(group.task.messages, context=context)] * count


@dataclass(frozen=True, slots=True)
class SecondAttempts:
    """Another attempt after each failure with feedback, in one conversation with both (RLTF, arXiv 2602.02482)."""

    success: float = 0.5

    name: ClassVar[str] = "second_attempt"

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        return [SampleRequest(messages, place) for place, messages in failures(group, self.success)]


@dataclass(frozen=True, slots=True)
class Reflections:
    """What the student writes about each failure with feedback; not scored (ERL, arXiv 2602.13949)."""

    success: float = 0.5

    name: ClassVar[str] = "reflection"

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        return [
            SampleRequest((*before, Message("user", f"{last.content}\n\n{REFLECT}")), place, scored=False)
            for place, (*before, last) in failures(group, self.success)
        ]


@dataclass(frozen=True, slots=True)
class ReflectedAttempts:
    """Another attempt for each reflection, with the reflection as system message (ERL, arXiv 2602.13949). `of` is the
    place of the reflection."""

    name: ClassVar[str] = "reflected_attempt"

    def requests(self, group: RolloutGroup, count: int) -> list[Request]:
        return [
            SampleRequest(group.task.messages, place, context=Context("reflection", instruction=text))
            for place, rollout in enumerate(group.rollouts)
            if rollout.stage == Reflections.name and (text := without_thinking(rollout.completion.text)).strip()
        ]


def examples(stages: Sequence[Stage], task: Task) -> list[tuple[Message, ...]]:
    """The conversations of these stages about a task of which every answer fails, to check that they can be written."""
    group, found = RolloutGroup(task, ()), list[tuple[Message, ...]]()
    completion, failed = Completion("example", "An answer."), Outcome(0.0, "That is wrong.", reply="No.")
    for stage in stages:
        requests = [request for request in stage.requests(group, 1) if isinstance(request, SampleRequest)]
        found += [teacher_messages(request.messages, request.context) for request in requests]
        answers = [Rollout(task, (), completion, failed, stage=stage.name, of=request.of) for request in requests]
        group = RolloutGroup(task, (*group.rollouts, *answers))
    return found


def failures(group: RolloutGroup, success: float) -> list[tuple[int, tuple[Message, ...]]]:
    """The places of first answers with a reward below `success` and with feedback; and question, attempt and feedback
    as one conversation."""
    return [
        (place, (*group.task.messages, Message("assistant", r.completion.text), Message("user", outcome.feedback)))
        for place, r in enumerate(group.rollouts)
        if r.stage == ANSWER and (outcome := r.outcome) and outcome.reward < success and outcome.feedback.strip()
    ]
