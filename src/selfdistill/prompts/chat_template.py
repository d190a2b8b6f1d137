"""A model's chat template: conversations as the text and the token ids that it makes of them.

Templates differ in what they take. One that refuses a system turn, or writes none of it, gets that text before the next
user turn's; one that refuses turns that do not alternate gets neighbours joined. What no such change helps is a
`ModelError`. Only the template writes the model's control tokens: in the contents of messages they stay text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

from selfdistill.errors import ConfigError, ModelError
from selfdistill.prompts.markup import Markup
from selfdistill.types import Message, TokenIds

Thinking = Literal["off", "on", "template"]
SWITCHES = ("enable_thinking", "thinking")  # what templates call it
OPEN, CLOSE = "<think>", "</think>"
# Words that no template writes by itself.
ASKED, ANSWERED = "QUESTION-7", "ANSWER-7"
QUESTION, ANSWER = Message("user", ASKED), Message("assistant", ANSWERED)
BETWEEN = "\n\n"  # two contents that are written as one


class Refused(Exception):
    """What a template raised."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer. With `thinking`, models that can think aloud are asked not to, or to, or
    whatever their template says by itself ("template")."""

    tokenizer: Any
    thinking: Thinking = "off"

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """A conversation up to the place where the assistant speaks. Raises `ModelError` where the template refuses
        it."""
        turns, text = self._accepted(messages)
        contents = [(turn.content, turn.role == "assistant") for turn in turns]
        mark = self._markup.mark(contents)
        if not mark:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        texts = [self._markup.marked(*content, mark) for content in contents]
        marked = [replace(turn, content=text) for turn, text in zip(turns, texts, strict=True)]
        return self._markup.encoded(self._rendered(marked) + self._header, mark)

    def answer(self, text: str) -> TokenIds:
        """Words of the assistant's that were not sampled, without an end of turn."""
        mark = self._markup.mark([(text, True)])
        if mark:
            return self._markup.encoded(self._markup.marked(text, True, mark), mark)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def check(self) -> list[str]:
        """Raises `ModelError` for a template that cannot write a question, `ConfigError` for a way of thinking that it
        has no switch for; returns what a user should know."""
        try:
            text = self._rendered([QUESTION])
        except Refused as error:
            do = "correct it, or name another with chat_template=FILE"
            raise ModelError("the chat template cannot be used", got=self._name, why=str(error), do=do) from error
        if ASKED.lower() not in text.lower():
            raise ModelError(
                "the chat template does not write the question",
                got=f"{text[:200]!r} for a question ({self._name})",
                why="the model would never read what it is asked",
                do="use the model's own template, or name another with chat_template=FILE",
            )
        return [*self._about_thinking(), *self._about_header()]

    def end(self) -> int | None:
        """The special token that the template writes straight after an answer, if it does."""
        _, found, after = self._tried([QUESTION, ANSWER], prompt=False).rpartition(ANSWERED)
        ids = self.tokenizer.encode(after, add_special_tokens=False) if found else []
        return ids[0] if ids and ids[0] in self.tokenizer.all_special_ids else None

    def _accepted(self, messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
        """The conversation in the first shape that the template takes, and its text."""
        refusals: list[Refused] = []
        for turns in self._shapes(tuple(messages)):
            try:
                return turns, self._rendered(turns) + self._header
            except Refused as error:
                refusals.append(error)
        raise ModelError(
            "the chat template refuses this conversation",
            got=f"turns of {', '.join(message.role for message in messages) or 'nobody'} ({self._name})",
            why=str(refusals[0]) if refusals else "it writes no system turn, and no user turn follows to hold its text",
            do="write the question as one user turn, or name another template with chat_template=FILE",
        )

    def _shapes(self, messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
        """What may be tried: as it stands, neighbours of one role joined, system turns in the user's, and both."""
        system = any(message.role == "system" for message in messages)
        shapes = [messages, joined(messages)] if self._reads_system or not system else []
        within = folded(messages) if system else None
        shapes += [within, joined(within)] if within is not None else []
        yield from dict.fromkeys(shapes)

    @cached_property
    def _reads_system(self) -> bool:
        """Whether it writes a system turn where it does not refuse it."""
        text = self._tried([Message("system", ANSWERED), QUESTION])
        return not text or ANSWERED.lower() in text.lower()

    @cached_property
    def _header(self) -> str:
        """What is written before an assistant's words by a template that takes no notice of being asked for it."""
        before, whole = self._tried([QUESTION], prompt=False), self._tried([QUESTION, ANSWER], prompt=False)
        if self._tried([QUESTION]) != before or not whole.startswith(before):
            return ""
        header, found, _ = whole.removeprefix(before).partition(ANSWERED)
        return header if found and header.strip() else ""

    def _about_header(self) -> list[str]:
        if not self._header:
            return []
        return [f"the chat template has no prompt for answers: {self._header!r} is written there, as before given ones"]

    def _about_thinking(self) -> list[str]:
        """What becomes of the setting `thinking` under this template."""
        if self.thinking == "template":
            return []
        on = self.thinking == "on"
        text, other = (self._tried([QUESTION], thinking=arm) for arm in (on, not on))
        _, opened, thought = text.rpartition(ASKED)[2].rpartition(OPEN)
        thinks = bool(opened) and CLOSE not in thought
        if on and (not text or (text == other and not thinks)):
            raise ConfigError(
                "this model's chat template has no switch for thinking",
                got=f'thinking = "on" ({self._name})',
                why=f"it reads none of {', '.join(SWITCHES)}: the setting would do nothing",
                do="leave thinking out, or choose a model that can think aloud",
            )
        if thinks and not on:
            return [f"the chat template begins every answer with {OPEN} and has no switch: thinking=off does nothing"]
        return []

    @cached_property
    def _markup(self) -> Markup:
        return Markup.of(self.tokenizer)

    @property
    def _name(self) -> str:
        return f"the template of {getattr(self.tokenizer, 'name_or_path', '') or 'this tokenizer'}"

    def _tried(self, messages: Sequence[Message], *, prompt: bool = True, thinking: bool | None = None) -> str:
        """The text of a conversation; empty where the template refuses it."""
        try:
            return self._rendered(messages, prompt=prompt, thinking=thinking)
        except Refused:
            return ""

    def _rendered(self, messages: Sequence[Message], *, prompt: bool = True, thinking: bool | None = None) -> str:
        """The text of a conversation. Raises `Refused` for whatever the template raises."""
        chat = [{"role": message.role, "content": message.content} for message in messages]
        if thinking is None and self.thinking != "template":
            thinking = self.thinking == "on"
        switches = {} if thinking is None else dict.fromkeys(SWITCHES, thinking)
        try:
            return str(
                self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt, **switches)
            )
        except Exception as error:
            line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
            raise Refused(f"{type(error).__name__}: {error}{line}") from error


def folded(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The texts of system turns before that of the user turn which follows; None where none does."""
    waiting: list[str] = []
    turns: list[Message] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            turns.append(Message("user", BETWEEN.join([*waiting, message.content])))
            waiting = []
        else:
            turns.append(message)
    return None if waiting else tuple(turns)


def joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Neighbours of one role as one turn."""
    runs = [(role, list(run)) for role, run in groupby(messages, key=lambda message: message.role)]
    return tuple(Message(role, BETWEEN.join(message.content for message in run)) for role, run in runs)
