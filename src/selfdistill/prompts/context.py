"""Privileged context `c`: where it comes from, and the messages in which a teacher reads it.

A rule looks at a rollout and its group and returns a `Context`, or a `DropReason`. A new kind of context is one frozen
dataclass here. The wording follows Hübotter et al. 2026 (arXiv 2601.20802, app. B): the question, a section for each
text of the context, one closing instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from string import Formatter
from typing import ClassVar, TypeAlias

from selfdistill.errors import ConfigError, option
from selfdistill.types import ANSWER, Context, DropReason, Message, Role, Rollout, RolloutGroup

FIELDS = ("instruction", "document", "demonstration", "solution", "attempt", "feedback", "reply")
"""The texts of a `Context`, in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class Templates:
    """The wording of a teacher's prompt: `message` is its last message, the others are the parts of the context.

    Raises `ConfigError` for a template that lacks one of its placeholders or has another. A brace is written twice.
    """

    message: str = option(
        "{question}\n\n{context}\n\nCorrectly solve the original question.", "last message, around the sections"
    )
    instruction: str = option("{instruction}", "system message, before the text of one that is there")
    document: str = option("What is known about it:\n\n{document}", "section of a document")
    demonstration: str = option(
        "This is an example of an answer to the question:\n\n{demonstration}", "section of a demonstration"
    )
    solution: str = option("Correct solution:\n\n{solution}", "section of a group member's solution")
    attempt: str = option("Your earlier attempt:\n\n{attempt}", "section of the attempt itself")
    feedback: str = option(
        "The following is feedback from your unsuccessful earlier attempt:\n\n{feedback}", "section of feedback"
    )
    reply: str = option("The user will answer an earlier attempt with:\n\n{reply}", "section of a user's reply")

    def __post_init__(self) -> None:
        for item in fields(self):
            text, known = getattr(self, item.name), {item.name}
            if item.name == "message":
                known = {"question", "context"}
            do = f"it needs {' and '.join(f'{{{name}}}' for name in sorted(known))}; write {{{{ or }}}} for a brace"
            try:
                found = {name for _, name, *_ in Formatter().parse(text) if name is not None}
                if found == known:
                    text.format(**dict.fromkeys(known, ""))
            except ValueError as error:
                raise ConfigError(f"{item.name} is no template", got=repr(text), why=str(error), do=do) from error
            if wrong := [*sorted(found - known), *sorted(known - found)]:
                what = "lacks the" if wrong[0] in known else "has an unknown"
                raise ConfigError(f"{item.name} {what} placeholder {{{wrong[0]}}}", got=repr(text), do=do)


def teacher_messages(
    question: Sequence[Message], context: Context, templates: Templates = Templates()
) -> tuple[Message, ...]:
    """The question with the context's texts as sections of its last message; a section without a text is left out.

    An instruction becomes the system message, before a text that is there: chat templates refuse two. A context without
    any text gives the question itself.
    """
    texts = {name: text for name in FIELDS if (text := getattr(context, name))}
    sections = {name: getattr(templates, name).format(**{name: text}) for name, text in texts.items()}
    if instruction := sections.pop("instruction", ""):
        system = question[0].role == "system"
        text = f"{instruction}\n\n{question[0].content}" if system else instruction
        question = (Message("system", text), *question[system:])
    if not sections:
        return tuple(question)
    *earlier, last = question
    text = templates.message.format(question=last.content, context="\n\n".join(sections.values()))
    return (*earlier, Message(last.role, text))


def group_members(group: RolloutGroup, index: int, *, solved: bool, success: float = 0.5) -> list[str]:
    """The answers of the other rollouts of a group that succeeded (or failed), without their thinking."""
    texts = [
        without_thinking(rollout.completion.text)
        for place, rollout in enumerate(group.rollouts)
        if place != index and rollout.stage == ANSWER
        if rollout.outcome is not None and (rollout.outcome.reward >= success) == solved
    ]
    return [text for text in texts if text.strip()]


_TAG = re.compile(r"<think>|</think>(?:\s*\n|[ \t]+)?")
_QUOTES = ("`", "'", '"')
_FENCE = re.compile(r"`{3,}+")


def without_thinking(text: str) -> str:
    """An answer as it is scored and shown to others: without `<think>` blocks, one never closed included.

    A closing tag without an opening one ends thinking that the prompt opened: all text before it is removed. A tag in
    quotes, or amid a line of a fenced program, is ordinary text. Takes time linear in the length.
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
    """Whether the tag at `place` is part of a program, or quoted."""
    end = place + len("<think>" if opens else "</think>")
    before, after = text[place - 1 : place] if place else "\n", text[end : end + 1] or "\n"
    quoted = before in _QUOTES and after in _QUOTES
    return quoted or (fenced and before != "\n" and (opens or after not in "\r\n"))


@dataclass(frozen=True, slots=True)
class SolutionOrFeedback:
    """SDPO's rule: another rollout of the group that succeeded, else the rollout's own feedback.

    All failures of a group read the same solution, its first. A rollout never reads itself as a solution: the only
    success of a group has no context.
    """

    success: float = option(0.5, "reward at which a rollout counts as solved")
    feedback: bool = option(True, "whether feedback may be read at all")
    together: bool = option(False, "read the feedback beside a group member's solution too, not one or the other")
    attempt: bool = option(False, "read the attempt itself too, without its thinking: keeps the student closer to it")

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        rollout = group.rollouts[index]
        own = rollout.outcome
        assert own is not None, "a rollout without an outcome was dropped before"
        solution = next(iter(group_members(group, index, solved=True, success=self.success)), "")
        if not solution and own.reward >= self.success:
            return DropReason.ONLY_SUCCESS
        texts = {"solution": solution} if solution else {}
        if self.feedback and own.feedback.strip() and (self.together or not solution):
            texts["feedback"] = own.feedback
        attempt = without_thinking(rollout.completion.text) if texts and self.attempt else ""
        if attempt.strip():
            texts["attempt"] = attempt
        return Context("+".join(texts), **texts) if texts else DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The task's demonstration (SDFT, arXiv 2601.19897)."""

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        return one_text("demonstration", "demonstration", group.task.demonstration)


@dataclass(frozen=True, slots=True)
class Document:
    """The task's document (SDFT's knowledge setting, arXiv 2601.19897)."""

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        return one_text("document", "document", group.task.document)


@dataclass(frozen=True, slots=True)
class Hindsight:
    """Base of the rules for what followed an answer: the text `section` of the outcome, and in conversations, for each
    turn but the last, the messages of these `roles` behind it."""

    kind: ClassVar[str]
    section: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("user",)

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        return one_text(self.kind, self.section, getattr(group.rollouts[index].outcome, self.section, ""))

    def turn_contexts(self, rollout: Rollout) -> list[tuple[int, Context]]:
        """For each turn that something followed the place of the turn, and the text."""
        seen = [[m.content for m in turn.observation if m.role in self.roles] for turn in rollout.turns[:-1]]
        texts = [*map("\n\n".join, seen), getattr(rollout.outcome, self.section, "")]
        found = [one_text(self.kind, self.section, text) for text in texts]
        return [(place, context) for place, context in enumerate(found) if isinstance(context, Context)]


@dataclass(frozen=True, slots=True)
class UserReply(Hindsight):
    """The user's reply to the rollout: hindsight, without a reward (arXiv 2603.12273)."""

    kind = section = "reply"


@dataclass(frozen=True, slots=True)
class NextObservation(Hindsight):
    """Hindsight in conversations: each turn's teacher reads what the environment answered to it (a tool's error, the
    feedback on an attempt), after the last turn the feedback of the outcome."""

    kind, section = "observation", "feedback"
    roles = ("user", "tool")


def one_text(kind: str, section: str, text: str) -> Context | DropReason:
    """A context of one section; none where the text is blank."""
    return Context(kind, **{section: text}) if text.strip() else DropReason.NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Instruction:
    """A system prompt to be internalised, the same in the whole run or the task's document (OPCD, arXiv 2602.12275)."""

    text: str = option("", "what the teacher reads as its system message; empty: the document of each task")

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        if self.text.strip():
            return Context("instruction", instruction=self.text)
        return Document().context(group, index)


@dataclass(frozen=True, slots=True)
class EmptyContext:
    """No text: the prompt of the student, for a teacher that is a stronger model (OPD)."""

    kind: ClassVar[str] = "bare"

    def context(self, group: RolloutGroup, index: int) -> Context | DropReason:
        return Context("bare")


ContextRule: TypeAlias = (
    SolutionOrFeedback | Demonstration | Document | UserReply | NextObservation | Instruction | EmptyContext
)
"""`context(group, index)` gives the context of one rollout, or the reason why it has none. Settings name the `kind`."""
