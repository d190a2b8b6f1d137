"""Where privileged context `c` comes from, and the prompt in which the teacher reads it.

A rule looks at a rollout and its group members and returns a `Context`, or the reason why there is none. Adding a kind
of context is one frozen dataclass here. The frame follows Hübotter et al. 2026 (arXiv 2601.20802, app. B): the
question, a section for each thing the teacher knows, one closing instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from selfdistill.options import option
from selfdistill.types import ANSWER, Context, DropReason, Message, RolloutGroup

CLOSING = "Correctly solve the original question."

SECTIONS = {
    "document": "What is known about it:",
    "demonstration": "This is an example of an answer to the question:",
    "solution": "Correct solution:",
    "feedback": "The following is feedback from your unsuccessful earlier attempt:",
    "reply": "The user will answer an earlier attempt with:",
}

FIELDS = ("instruction", *SECTIONS)


def teacher_messages(question: Sequence[Message], context: Context) -> tuple[Message, ...]:
    """The question with `c` written into its last message: earlier messages are kept, a missing section is left out.

    An instruction becomes a system message, before any other. With all texts empty this is the question itself: a
    teacher that knows nothing more reads the student's prompt.
    """
    if context.instruction:
        question = _instructed(question, context.instruction)
    *earlier, last = question
    parts = [
        f"\n\n{heading}\n\n{getattr(context, name)}" for name, heading in SECTIONS.items() if getattr(context, name)
    ]
    if not parts:
        return tuple(question)
    return (*earlier, Message(last.role, last.content + "".join(parts) + f"\n\n{CLOSING}"))


def _instructed(question: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """A conversation has one system message at most: templates refuse two."""
    if question[0].role == "system":
        return (Message("system", f"{instruction}\n\n{question[0].content}"), *question[1:])
    return (Message("system", instruction), *question)


def group_members(group: RolloutGroup, index: int, *, solved: bool, success: float = 0.5) -> list[str]:
    """The answers of the others that succeeded (or failed), as others may read them; never the rollout's own."""
    texts = [
        without_thinking(rollout.completion.text)
        for place, rollout in group.at(ANSWER)
        if place != index and rollout.outcome is not None and (rollout.outcome.reward >= success) == solved
    ]
    # An answer of which nothing but thinking remains shows nothing.
    return [text for text in texts if text.strip()]


_TAG = re.compile(r"<think>|</think>(?:\s*\n|[ \t]+)?")
_QUOTES = ("`", "'", '"')
_FENCE = re.compile(r"`{3,}+")


def without_thinking(text: str) -> str:
    """An answer as it is scored and as others may read it: without `<think>` blocks, one never closed included.

    A closing tag without an opening one ends thinking that the prompt opened: all before it goes. A tag in quotes, or
    amid a line of a fenced program, is ordinary text. Takes time linear in the length.
    """
    kept: list[str] = []
    start = looked = 0
    thinking = fenced = False
    for tag in _TAG.finditer(text):
        opens = tag[0] == "<think>"
        fenced ^= len(_FENCE.findall(text, looked, tag.start())) % 2 == 1
        looked = tag.end()
        if opens if thinking else _is_text(text, tag.start(), opens, fenced):
            continue
        if opens:
            kept.append(text[start : tag.start()])
        elif not thinking:
            kept.clear()
        thinking, fenced, start = opens, False, tag.end()
    return "".join(kept) + ("" if thinking else text[start:])


def _is_text(text: str, place: int, opens: bool, fenced: bool) -> bool:
    """Whether the tag at `place` is part of a program or quoted, and none of the model's."""
    end = place + len("<think>" if opens else "</think>")
    before, after = text[place - 1 : place] if place else "\n", text[end : end + 1] or "\n"
    quoted = before in _QUOTES and after in _QUOTES
    return quoted or (fenced and before != "\n" and (opens or after not in "\r\n"))


@dataclass(frozen=True, slots=True)
class SolutionOrFeedback:
    """SDPO's rule: another rollout of the group that succeeded, else this rollout's own feedback.

    A rollout never teaches itself, so the only success of a group has no solution to read; its feedback is empty.
    """

    kind: ClassVar[str] = "solution_or_feedback"
    success: float = option(0.5, "reward at which a rollout counts as solved", least=0, most=1)
    feedback: bool = option(True, "whether feedback may be read at all")
    together: bool = option(
        False, "read the feedback beside a group member's solution too, instead of one or the other"
    )

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        """The first successful group member in the order of the group; all failures of a group see the same one."""
        own = group.rollouts[index].outcome
        assert own is not None, "a rollout without an outcome was dropped before"
        solution = next(iter(group_members(group, index, solved=True, success=self.success)), "")
        feedback = own.feedback if self.feedback and own.feedback.strip() else ""
        if solution:
            both = feedback if self.together else ""
            return Context("solution+feedback" if both else "solution", solution=solution, feedback=both)
        if own.reward >= self.success:
            return DropReason.ONLY_SUCCESS
        return Context("feedback", feedback=feedback) if feedback else DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The demonstration that came with the task (SDFT, arXiv 2601.19897)."""

    kind: ClassVar[str] = "demonstration"

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        """The task's demonstration, the same for every rollout."""
        text = group.task.demonstration
        return Context("demonstration", demonstration=text) if text.strip() else DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Document:
    """The document that came with the task (SDFT's knowledge setting, arXiv 2601.19897)."""

    kind: ClassVar[str] = "document"

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        """The task's document, the same for every rollout."""
        text = group.task.document
        return Context("document", document=text) if text.strip() else DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class UserReply:
    """What the user said next: hindsight, without a reward (arXiv 2603.12273)."""

    kind: ClassVar[str] = "reply"

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        """The reply to this rollout."""
        outcome = group.rollouts[index].outcome
        text = outcome.reply if outcome is not None else ""
        return Context("reply", reply=text) if text.strip() else DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Instruction:
    """A system prompt or noted experience to be made permanent (OPCD, arXiv 2602.12275)."""

    kind: ClassVar[str] = "instruction"
    text: str = option("", "what the teacher reads as its system message; empty: the document of each task")

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        """The same for every rollout of a run, or of a task."""
        if self.text.strip():
            return Context("instruction", instruction=self.text)
        return Document().context(group, index)


@dataclass(frozen=True, slots=True)
class Bare:
    """Nothing more than the student reads: for a teacher that knows more by itself (OPD)."""

    kind: ClassVar[str] = "bare"

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        """No text at all."""
        return Context("bare")


ContextRule: TypeAlias = SolutionOrFeedback | Demonstration | Document | UserReply | Instruction | Bare
"""`context(group, index)` gives the context of one rollout, or why it has none. Settings choose a rule by `kind`."""
