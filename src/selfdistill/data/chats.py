"""Conversations as people have them become tasks: history, the assistant's turn, and the user's next turn.

    shape     a row has
    OpenAI    messages       [{"role", "content"}, …]
    WildChat  conversation   [{"role", "content", "language", …}, …], language
    ShareGPT  conversations  [{"from": "human" | "gpt" | "system", "value"}, …]

load_chats("allenai/WildChat-1M", languages="English", max_characters=8000)
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from selfdistill.data import lines
from selfdistill.data.load import RowOptions, question_task
from selfdistill.data.reading import LazyTasks, load_rows, row_tasks
from selfdistill.data.row import CARRIED, Row, short
from selfdistill.envs.chats import ChatOptions
from selfdistill.errors import DataError
from selfdistill.types import Message, Role, Task

SHAPES = ("messages", "conversation", "conversations")
REASONS = {
    "roles": "user and assistant do not take turns",
    "no_next_turn": "no next turn of the user",
    "empty": "an empty turn",
    "language": "another language",
    "length": "too short or too long",
}
_KEYS = (("role", "content"), ("from", "value"))
_TOOLS = ("tool", "function", "function_call", "observation", "developer")
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    **dict.fromkeys(_TOOLS, "tool"),  # no conversation of two: left out, and counted
}


class FromLog(Sized):
    """Tasks from conversations. `left_out` counts the assistant's turns that became none, by the key of `REASONS`; a
    conversation without any counts as one."""

    left_out: Counter[str]

    @property
    def summary(self) -> str:
        """The counts in a sentence."""
        return summary(len(self), self.left_out)


def summary(count: int, left_out: Mapping[str, int]) -> str:
    """How many answers became tasks and how many did not, in a sentence."""
    reasons = ", ".join(f"{left_out[key]} ({why})" for key, why in REASONS.items() if left_out.get(key))
    return f"{count} answers with the user's next turn; left out: {reasons or 'none'}"


class ChatTasks(list[Task], FromLog):
    """The tasks of a log in a list."""


class LongChatTasks(LazyTasks, FromLog):
    """The tasks of a log of more than `CHECKED_ROWS` rows, each made when it is read."""


class Turn(NamedTuple):
    """A turn of a conversation. `language`: as the turn states it, or empty."""

    role: Role
    text: str
    language: str


def load_chats(
    source: Any,
    *,
    languages: str | Iterable[str] = (),
    min_reply_characters: int = 1,
    max_characters: int = 0,
    name: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> ChatTasks | LongChatTasks:
    """The tasks of conversations, from every source that `load_data` reads: one for each turn of the assistant's that
    the user followed up. `messages` are the history, `logged_answer` the turn, `user_reply` the user's next turn.

    languages: those to keep, as the reply or else the row states them. min_reply_characters: of the next turn.
    max_characters: of history, answer and next turn together; 0: any number. `left_out` of the result counts what the
    filters dropped. Raises `DataError`, naming file and line, also where nothing is left; `ConfigError`.
    """
    kept = (languages,) if isinstance(languages, str) else tuple(languages)
    options = ChatOptions(kept, min_reply_characters, max_characters)
    return chat_tasks(source, RowOptions(name or "", split, limit), options)


def chat_tasks(source: Any, rows: RowOptions, options: ChatOptions) -> ChatTasks | LongChatTasks:
    """The tasks of conversations, and of rows with a `prompt`. A long log is read once to count them. Raises
    `DataError`."""
    if isinstance(source, ChatTasks | LongChatTasks):
        return source
    convert, opened = ChatRows(options), rows.open(source)
    tasks: ChatTasks | LongChatTasks
    if len(opened.rows) <= lines.CHECKED_ROWS:
        tasks = ChatTasks(load_rows(opened, rows.mapped(convert)))
    else:
        count, places = rows.mapped(convert), (array("I"), array("I"))
        for row, (number, raw) in enumerate(opened.rows):
            found = range(len(row_tasks(opened, count, number, raw)))
            places[0].extend([row] * len(found))
            places[1].extend(found)
        tasks = LongChatTasks(opened, rows.mapped(ChatRows(options)), places)
    tasks.left_out = convert.left_out
    if not tasks:
        do = "loosen languages, min_reply_characters or max_characters, or give longer conversations"
        raise DataError("no conversation can be used", got=tasks.summary, do=do)
    return tasks


@dataclass(frozen=True, slots=True)
class ChatRows:
    """Converts rows, and counts what the options leave out."""

    options: ChatOptions
    left_out: Counter[str] = field(default_factory=Counter)

    def __call__(self, fields: Mapping[str, Any], path: str, line: int) -> Sequence[Task]:
        """The tasks of one row. Raises `DataError`."""
        column = next((name for name in SHAPES if fields.get(name) is not None), "")
        if not column and "prompt" in fields:
            return [question_task(fields, path, line)]
        row = Row(path, line, "conversation", fields)
        if not column:
            got = f"columns {', '.join(fields) or '(none)'}"[:300]
            do = "name the column of the turns messages, conversation or conversations"
            raise DataError(f"{path}:{line}: the row is no conversation", got=got, do=do)
        turns = [_turn(row, f"{column}[{place}]", turn) for place, turn in enumerate(row.items(column))]
        prefix = row.id("id", default=f"{Path(path).stem}-{line}")
        spec = {name: value for name, value in fields.items() if name != column}
        return [
            Task(
                f"{prefix}-{place}",
                tuple(Message(turn.role, turn.text) for turn in turns[:place]),
                spec,
                logged_answer=turns[place].text,
                user_reply=turns[place + 1].text,
            )
            for place in self._used(turns, row.text("language"))
        ]

    def _used(self, turns: Sequence[Turn], language: str) -> Iterator[int]:
        """The places of the answers that become tasks."""
        start = int(bool(turns) and turns[0].role == "system")
        regular = _until(turn.role == ("user", "assistant")[place % 2] for place, turn in enumerate(turns[start:]))
        filled = _until(bool(turn.text.strip()) for turn in turns[start:])
        characters = list(accumulate(len(turn.text) for turn in turns))
        answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        if not answers:
            self.left_out["no_next_turn" if turns else "empty"] += 1
        for place in answers:
            reply = place + 1
            if reply == len(turns):
                reason = "no_next_turn"
            elif reply >= start + regular:
                reason = "roles"
            elif reply >= start + filled:
                reason = "empty"
            else:
                reason = self._filtered(turns[reply], turns[reply].language or language, characters[reply])
            if reason:
                self.left_out[reason] += 1
            else:
                yield place

    def _filtered(self, reply: Turn, language: str, characters: int) -> str:
        options = self.options
        if options.languages and language.casefold() not in map(str.casefold, options.languages):
            return "language"
        short_reply = len(reply.text.strip()) < options.min_reply_characters
        return "length" if short_reply or 0 < options.max_characters < characters else ""


def _until(holds: Iterable[bool]) -> int:
    """How many are true before the first that is not."""
    return sum(takewhile(bool, holds))


def _turn(row: Row, place: str, turn: Any) -> Turn:
    """One turn of a conversation. Raises `DataError`."""
    fields = turn if isinstance(turn, dict) else {}
    keys = next((keys for keys in _KEYS if fields.keys() >= {*keys}), None)
    if keys is None:
        row.fail(place, "a turn {role, content} or {from, value}", short(turn))
    role, content = (fields[key] for key in keys)
    if not isinstance(role, str) or role not in _ROLES:
        row.fail(f"{place}.{keys[0]}", f"one of {', '.join(_ROLES)}", short(role))
    text = row.content(f"{place}.{keys[1]}", content) if content is not None else ""
    language = fields.get("language")
    calls = any(fields.get(key) for key in CARRIED)
    return Turn("tool" if calls else _ROLES[role], text, language if isinstance(language, str) else "")
