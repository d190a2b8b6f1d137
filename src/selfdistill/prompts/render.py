"""Messages to token ids by a model's chat template: prompts of the student, and of the teacher, with context that fits.

Templates differ in what they take. One that refuses or leaves out a system turn gets its text before that of the next
user turn; one that refuses turns that do not alternate gets neighbours joined. Only the template writes control tokens:
in the contents of messages they stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any, Literal, Self

from selfdistill.errors import ConfigError, ModelError
from selfdistill.prompts.context import FIELDS, Templates, teacher_messages
from selfdistill.types import Completion, Context, DropReason, Message, Role, StopReason, TokenIds

Thinking = Literal["off", "on", "template"]
SWITCHES = ("enable_thinking", "thinking")  # what templates call it
OPEN, CLOSE = "<think>", "</think>"
# Words that no template writes by itself.
ASKED, ANSWERED, THOUGHT = "QUESTION-7", "ANSWER-7", "THOUGHT-7"
QUESTION, ANSWER = Message("user", ASKED), Message("assistant", ANSWERED)
# For templates that write no tools.
CALLING = (
    "You may call these functions before you answer:\n{tools}\n\nTo call one, write this and nothing else:\n"
    '```json\n{{"name": "the function", "arguments": {{"its parameter": "a value"}}}}\n```'
)
BETWEEN = "\n\n"  # two contents that are written as one
CUT = " …"
_TAG_TOKENS = 16  # more than the tag and the white space after it take
_MARKS = range(0xE000, 0xF900)  # letters for private use, one of which marks control tokens in contents
_JOINER = "\N{WORD JOINER}"
_TAG = re.compile(r"<[^\s<>]+>")


class Refused(Exception):
    """What a template raised."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer. `thinking` switches the thinking of models that can do without, or leaves it to
    the template. `tools` are the schemas of the functions that the model may call; where the template writes none, they
    stand in a system turn."""

    tokenizer: Any
    thinking: Thinking = field(default="off", kw_only=True)
    tools: Sequence[Mapping[str, Any]] = field(default=(), kw_only=True)
    _copies: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def using(self, tools: Sequence[Mapping[str, Any]]) -> Self:
        """The same with other tools."""
        name = json.dumps([*tools])
        if name == json.dumps([*self.tools]):
            return self
        if name not in self._copies:
            self._copies[name] = replace(self, tools=tools)
        copy: Self = self._copies[name]
        return copy

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """The ids of a conversation and of the header of the assistant's turn. Raises `ModelError` where the template
        refuses the conversation in every form."""
        text, mark = self._written(messages)
        return self._encoded(text, mark)

    def extension(
        self, messages: Sequence[Message], answer: Completion, observation: Sequence[Message]
    ) -> TokenIds | None:
        """The ids that the template writes behind the sampled ones of an answer to `messages`: the end of its turn
        where it was not sampled, the observation, and the header of the next turn. None where it writes what stood
        before the answer, or the answer's thinking, in another way once the conversation continues: the next prompt
        does not extend this one then."""
        thought = f"{OPEN}\n{THOUGHT}\n{CLOSE}\n\n" if CLOSE in answer.text else ""
        after, mark = self._written([*messages, Message("assistant", thought + ANSWERED), *observation])
        before, _ = self._written(messages, mark)
        written, found, rest = after.removeprefix(before).partition(ANSWERED)
        extends = after.startswith(before) and found and (THOUGHT in written if thought else not written.strip())
        if not extends:
            return None
        ids = self._encoded(rest, mark)
        return ids[answer.stop is StopReason.END and ids[:1] == answer.token_ids[-1:] :]

    def _written(self, messages: Sequence[Message], mark: str = "") -> tuple[str, str]:
        """The text of a conversation and of the header of the assistant's turn, in the first form that the template
        takes; and the letter that marks control tokens in contents, the one given or, where any content holds such a
        token, one of its own."""
        turns, text = tuple(messages), ""
        if self.tools and not self._writes_tools:
            system = turns[0].role == "system"
            listed = "\n".join(json.dumps(tool["function"]) for tool in self.tools)
            about = CALLING.format(tools=listed) + (f"\n\n{turns[0].content}" if system else "")
            turns = (Message("system", about), *turns[system:])
        if self._reads_system or all(turn.role != "system" for turn in turns):
            with suppress(Refused):
                text = self._rendered(turns)
        if not text:
            turns, text = self._reshaped(turns)
        if not mark and not any(token in turn.content for turn in turns for token in self._controls[turn.role]):
            return text + self._header, ""
        mark = mark or _unused(turn.content for turn in turns)
        marked = [replace(turn, content=_marked(turn.content, self._controls[turn.role], mark)) for turn in turns]
        return self._rendered(marked) + self._header, mark

    def encode(self, text: str) -> TokenIds:
        """The ids of given words of the assistant, without an end of turn."""
        if not any(token in text for token in self._controls["assistant"]):
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        mark = _unused([text])
        return self._encoded(_marked(text, self._controls["assistant"], mark), mark)

    def opened(self, prompt_ids: TokenIds) -> str:
        """The opening tag of thinking with which a prompt ends, for the answer's text lacks it; else empty."""
        end = str(self.tokenizer.decode(list(prompt_ids[-_TAG_TOKENS:]), clean_up_tokenization_spaces=False))
        return f"{OPEN}\n" if end.rstrip().endswith(OPEN) else ""

    def check(self) -> list[str]:
        """Notes for the user about this template. Raises `ModelError` for one that cannot write a question,
        `ConfigError` for a setting of `thinking` that it has no switch for."""
        try:
            text = self._rendered([QUESTION])
        except Refused as error:
            do = "correct it, or name another with chat_template=FILE"
            raise ModelError("the chat template cannot be used", got=self._name, why=str(error), do=do) from error
        if ASKED.lower() not in text.lower():
            got = f"{text[:200]!r} for a question ({self._name})"
            do = "use the model's own template, or name another with chat_template=FILE"
            raise ModelError("the chat template does not write the question", got=got, do=do)
        notes = []
        if self.thinking != "template":
            on = self.thinking == "on"
            text, other = (self._tried([QUESTION], thinking=switch) for switch in (on, not on))
            _, opened, thought = text.rpartition(ASKED)[2].rpartition(OPEN)
            thinks = bool(opened) and CLOSE not in thought
            if on and (not text or (text == other and not thinks)):
                what, got = "this model's chat template has no switch for thinking", f'thinking = "on" ({self._name})'
                why = f"it reads none of {', '.join(SWITCHES)}: the setting would do nothing"
                do = "leave thinking out, or choose a model that can think aloud"
                raise ConfigError(what, got=got, why=why, do=do)
            if thinks and not on:
                notes.append(f"the chat template begins every answer with {OPEN}: thinking=off does nothing")
        if self.tools and not self._writes_tools:
            notes.append("the chat template writes no tools: they stand in a system turn, and calls are fenced JSON")
        if self._header:
            notes.append(f"the chat template has no prompt for answers: {self._header!r} is written there")
        return notes

    def end(self) -> int | None:
        """The special token that the template writes straight after an answer, if it does."""
        _, found, after = self._tried([QUESTION, ANSWER], prompt=False).rpartition(ANSWERED)
        ids = self.tokenizer.encode(after, add_special_tokens=False) if found else []
        return ids[0] if ids and ids[0] in self.tokenizer.all_special_ids else None

    def _reshaped(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
        """The conversation in the first form that the template takes, and its text: as it stands, neighbours of one
        role joined, system turns in the user's, both, and results of tools as turns of the user."""
        system = any(message.role == "system" for message in messages)
        forms = [messages, joined(messages)] if self._reads_system or not system else []
        within = folded(messages) if system else None
        forms += [within, joined(within)] if within is not None else []
        forms += [joined(as_users(form)) for form in forms] if any(m.role == "tool" for m in messages) else []
        refusals: list[Refused] = []
        for form in dict.fromkeys(forms):
            try:
                return form, self._rendered(form)
            except Refused as error:
                refusals.append(error)
        got = f"turns of {', '.join(message.role for message in messages) or 'nobody'} ({self._name})"
        why = str(refusals[0]) if refusals else "it writes no system turn, and no user turn follows to hold its text"
        do = "write the question as one user turn, or name another template with chat_template=FILE"
        raise ModelError("the chat template refuses this conversation", got=got, why=why, do=do)

    @cached_property
    def _reads_system(self) -> bool:
        """Whether it writes a system turn where it does not refuse it."""
        text = self._tried([Message("system", ANSWERED), QUESTION])
        return not text or ANSWERED.lower() in text.lower()

    @cached_property
    def _writes_tools(self) -> bool:
        """Whether the template writes the schemas of tools."""
        return str(self.tools[0]["function"]["name"]) in self._tried([QUESTION])

    @cached_property
    def _header(self) -> str:
        """The header of an assistant's turn, where the template ignores `add_generation_prompt`; else empty."""
        before, whole = self._tried([QUESTION], prompt=False), self._tried([QUESTION, ANSWER], prompt=False)
        if self._tried([QUESTION]) != before or not whole.startswith(before):
            return ""
        header, found, _ = whole.removeprefix(before).partition(ANSWERED)
        return header if found and header.strip() else ""

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
            options = {"add_generation_prompt": prompt, **switches, **({"tools": self.tools} if self.tools else {})}
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, **options))
        except Exception as error:
            line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
            raise Refused(f"{type(error).__name__}: {error}{line}") from error

    # A tokenizer makes the token of "<|im_end|>" wherever it finds these letters, also in a failing test's output. So
    # they are marked in contents, the template writes around them, and a copy of the tokenizer that knows its control
    # tokens by other names reads the whole: those that the template wrote are renamed, the marked ones lose their mark.

    @cached_property
    def _controls(self) -> dict[Role, frozenset[str]]:
        """The control tokens that stay text in contents, by role. Tags such as <think>, ordinary tokens that the
        template writes, are allowed to the assistant."""
        added = list(self.tokenizer.added_tokens_decoder.values())
        special = frozenset(token.content for token in added if token.special)
        special |= set(self.tokenizer.all_special_tokens) - {""}
        template = str(self.tokenizer.chat_template)
        tags = {token.content for token in added if _TAG.fullmatch(token.content) and token.content in template}
        return {"system": special | tags, "user": special | tags, "tool": special | tags, "assistant": special}

    def _encoded(self, text: str, mark: str) -> TokenIds:
        """The ids of a text with marked contents: marked control tokens are text, others are tokens. Without a mark
        nothing is marked."""
        if not mark:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        controls = self._controls["user"]
        if mark not in self._copies:
            self._copies[mark] = _renamed(self.tokenizer, {token: mark + token for token in controls})
        every, copy = _any(controls), self._copies[mark]
        text = re.sub(f"{mark}(?!{every})", "", text)  # a template may have cut a content behind its mark
        if copy is None:
            text = re.sub(f"{mark}({every})", lambda found: found[1][0] + _JOINER + found[1][1:], text)
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        text = re.sub(f"{mark}?({every})", lambda found: found[1] if found[0] != found[1] else mark + found[1], text)
        return tuple(copy.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Renderer(ChatTemplate):
    """Writes the prompts of a run. `max_teacher_tokens` bounds a teacher's prompt, which together with the answer must
    also fit `context_length`; `templates` are its wording."""

    context_length: int
    max_teacher_tokens: int
    templates: Templates = field(default=Templates(), kw_only=True)

    def messages(self, question: Sequence[Message], context: Context) -> tuple[Message, ...]:
        """The question with the context in it."""
        return teacher_messages(question, context, self.templates)

    def written(self, question: Sequence[Message], after: Sequence[Message], context: Context) -> TokenIds:
        """The prompt of a question with the context in it, and of what was written after it."""
        return self.prompt((*self.messages(question, context), *after))

    def teacher_prompt(
        self, question: Sequence[Message], context: Context, answer: int, limit: int | None = None
    ) -> tuple[TokenIds, Context, bool] | DropReason:
        """The teacher's prompt before an answer of `answer` tokens, of at most `limit` tokens: its ids, the context as
        it is written, and whether a field was cut. By default the limit is that of the run."""
        return self.fitted(partial(self.written, question, ()), context, answer, limit)

    def fitted(
        self, write: Callable[[Context], TokenIds], context: Context, answer: int, limit: int | None = None
    ) -> tuple[TokenIds, Context, bool] | DropReason:
        """What `write` makes of the context, as `teacher_prompt`: the longest field is shortened until all fits, and
        question, closing instruction and the assistant's header stay."""
        limit = min(self.max_teacher_tokens if limit is None else limit, self.context_length - answer)
        tries = 0
        while len(ids := write(context)) > limit:
            # Text cut between tokens may need other tokens when it is read again: every try takes one more.
            shorter = self._shorter(context, len(ids) - limit + tries)
            if shorter is None:
                return DropReason.CONTEXT_TOO_LONG
            context, tries = shorter, tries + 1
        return ids, context, tries > 0

    def answer(self, text: str) -> TokenIds:
        """The ids of given words of the assistant, with an end of turn. Raises `ModelError` where there is none."""
        found = self.end()
        end = self.tokenizer.eos_token_id if found is None else found
        if end is None:
            do = "set eos_token in tokenizer_config.json, or use a chat template that ends turns"
            raise ModelError("this tokenizer has no token that ends a turn", got=self._name, do=do)
        return (*self.encode(text), int(end))

    def _shorter(self, context: Context, excess: int) -> Context | None:
        """The context with its longest field cut by at least `excess` tokens; None where the field would vanish."""
        fields = {name: self.encode(getattr(context, name)) for name in FIELDS if getattr(context, name)}
        name = max(fields, key=lambda field: len(fields[field]), default="")
        kept = len(fields[name]) - excess - len(self.encode(CUT)) if fields else 0
        if kept <= 0:
            return None
        text = str(self.tokenizer.decode(fields[name][:kept], clean_up_tokenization_spaces=False))
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a letter of several tokens, of which the last ones are gone
        return replace(context, **{name: text + CUT})


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


def as_users(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Results of tools as turns of the user."""
    return tuple(replace(message, role="user") if message.role == "tool" else message for message in messages)


def joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Neighbours of one role as one turn."""
    runs = [(role, list(run)) for role, run in groupby(messages, key=lambda message: message.role)]
    return tuple(Message(role, BETWEEN.join(message.content for message in run)) for role, run in runs)


def _unused(contents: Iterable[str]) -> str:
    """A letter that is in none of the contents."""
    whole = "".join(contents)
    return next(letter for letter in map(chr, _MARKS) if letter not in whole)


def _any(tokens: frozenset[str]) -> str:
    """A pattern for the longest of these that begins at a place."""
    return "(?:" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")"


def _marked(text: str, tokens: frozenset[str], mark: str) -> str:
    return re.sub(_any(tokens), lambda found: mark + found[0], text) if tokens else text


def _renamed(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """A copy of the tokenizer in which tokens have other names and the same ids; None for one that is not written in
    `tokenizers`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    model = parts["model"]
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # of plain letters: none may lead to a control token
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()]
    copy = type(backend).from_str(json.dumps(parts))
    copy.no_truncation()
    copy.no_padding()
    added = backend.get_added_tokens_decoder().items()
    same = all(copy.token_to_id(names.get(token.content, token.content)) == number for number, token in added)
    return copy if same else None
