"""Messages to token ids: the student's prompt, and the teacher's, which is cut in its field and never in its frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from selfdistill.errors import ModelError
from selfdistill.prompts.chat_template import OPEN, ChatTemplate, Thinking
from selfdistill.prompts.context import FIELDS, teacher_messages
from selfdistill.types import Context, DropReason, Message, TokenIds

CUT = " …"
_TAG_TOKENS = 16  # more than the tag and the white space after it take


@dataclass(frozen=True)
class Renderer:
    """Writes prompts with a tokenizer's chat template. Lengths are in tokens.

    `max_teacher_tokens` bounds a teacher prompt; together with the answer it must also fit `context_length`.
    `thinking`: whether models that can think aloud are asked to.
    """

    tokenizer: Any
    context_length: int
    max_teacher_tokens: int
    thinking: Thinking = "off"

    @cached_property
    def template(self) -> ChatTemplate:
        """What writes all prompts."""
        return ChatTemplate(self.tokenizer, self.thinking)

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """A conversation up to the place where the assistant speaks. Raises `ModelError` where the template cannot
        write it."""
        return self.template.prompt(messages)

    def opened(self, prompt_ids: TokenIds) -> str:
        """The opening tag of thinking with which a prompt ends, for the answer's text lacks it; else empty."""
        end = str(self.tokenizer.decode(list(prompt_ids[-_TAG_TOKENS:]), clean_up_tokenization_spaces=False))
        return f"{OPEN}\n" if end.rstrip().endswith(OPEN) else ""

    def answer(self, text: str) -> TokenIds:
        """Words that were not sampled, with the end of turn behind them that a sampled answer would have. Raises
        `ModelError` where the tokenizer has none."""
        return (*self.template.answer(text), self._end())

    def teacher_prompt(
        self, question: Sequence[Message], context: Context, answer: int
    ) -> tuple[TokenIds, bool] | DropReason:
        """The teacher's prompt before an answer of this many tokens, and whether a field had to be cut.

        The longest field is shortened until all fits: question, closing instruction and the assistant's header stay.
        """
        found = self.fitted(question, context, min(self.max_teacher_tokens, self.context_length - answer))
        return found if isinstance(found, DropReason) else (found[1], found[2])

    def fitted(
        self, question: Sequence[Message], context: Context, limit: int
    ) -> tuple[Context, TokenIds, bool] | DropReason:
        """The context as it fits a prompt of `limit` tokens, that prompt, and whether a field had to be cut."""
        tries = 0
        while len(ids := self.prompt(teacher_messages(question, context))) > limit:
            # Text cut between tokens may need other tokens when it is read again: every try takes one more.
            context, shortened = self._shorter(context, len(ids) - limit + tries)
            tries += 1
            if not shortened:
                return DropReason.CONTEXT_TOO_LONG
        return context, ids, tries > 0

    def _shorter(self, context: Context, excess: int) -> tuple[Context, bool]:
        """The context with its longest field cut by at least `excess` tokens; False when the field would vanish."""
        fields = {name: self.template.answer(getattr(context, name)) for name in FIELDS if getattr(context, name)}
        if not fields:
            return context, False
        name = max(fields, key=lambda field: len(fields[field]))
        kept = len(fields[name]) - excess - len(self.template.answer(CUT))
        if kept <= 0:
            return context, False
        text = str(self.tokenizer.decode(fields[name][:kept], clean_up_tokenization_spaces=False))
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a letter of several tokens, of which the last ones are gone
        return replace(context, **{name: text + CUT}), True

    def _end(self) -> int:
        found = self.template.end()
        end = self.tokenizer.eos_token_id if found is None else found
        if end is None:
            raise ModelError(
                "this tokenizer has no token that ends a turn",
                got=getattr(self.tokenizer, "name_or_path", ""),
                why="from given answers nobody would learn to stop",
                do="set eos_token in tokenizer_config.json, or use a chat template that ends turns",
            )
        return int(end)
