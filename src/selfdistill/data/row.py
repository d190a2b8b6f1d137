"""A row of a user's data: its fields with their checks, and the conversation in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from selfdistill.envs.sandbox.limits import MAX_SECONDS, MIN_SECONDS
from selfdistill.envs.syntax import code_fault
from selfdistill.errors import DataError
from selfdistill.types import Message, Role

T = TypeVar("T")

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
# What a template may show beside role and content; without it the conversation would be another one.
CARRIED = ("tool_calls", "tool_call_id", "function_call", "images", "image", "audio", "videos")


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of a row with its place and its shape, which every error names. Code in rows that are not `compiled`
    is not looked at."""

    path: str
    line: int
    shape: str
    fields: Mapping[str, Any]
    compiled: bool = True

    def fail(self, field: str, expected: str, got: object = None, *, why: str = "", do: str = "") -> NoReturn:
        """Raise DataError about one field."""
        place = f"{self.path}:{self.line}: {self.shape} row"
        raise DataError(f"{place}: field {field!r}: expected {expected}", got=got, why=why, do=do)

    def name_of(self, *names: str) -> str | None:
        """The first of the fields that is there and not null."""
        return next((name for name in names if self.fields.get(name) is not None), None)

    def value(self, kind: type[T], expected: str, *names: str) -> T | None:
        """The first of the fields that is there, which must be of this type."""
        name = self.name_of(*names)
        value = self.fields[name] if name is not None else None
        if name is None or isinstance(value, kind):
            return value
        return self.fail(name, expected, short(value))

    def text(self, *names: str) -> str:
        """The first of the fields that is there; it must be text. Empty without one."""
        return self.value(str, "text", *names) or ""

    def items(self, name: str) -> list[Any]:
        """A list, empty when the field is missing."""
        return self.value(list, "a list", name) or []

    def time_limit(self) -> float | None:
        """Seconds for one test; None when the field is missing."""
        value = self.fields.get("time_limit")
        if value is None:
            return None
        if type(value) not in (int, float) or not MIN_SECONDS <= value <= MAX_SECONDS:
            expected = f"a number above 0 (seconds, from {MIN_SECONDS:g}), at most {MAX_SECONDS:g}"
            self.fail("time_limit", expected, short(value))
        return float(value)

    def id(self, *names: str, default: str = "") -> str:
        """The row's own id, else `default`, else one made of its line number."""
        name = self.name_of(*names)
        value = self.fields[name] if name is not None else default or f"line-{self.line}"
        if type(value) not in (str, int) or not str(value).strip():
            self.fail(name or names[0], "text or an integer", short(value))
        return str(value)

    def code(self, field: str, source: str) -> str:
        """The Python of a field. It must compile, and import what is there."""
        fault = code_fault(source) if self.compiled else None
        return source if fault is None else self.fail(field, fault.expected, fault.got, why=fault.why, do=fault.do)

    def messages(self, *names: str) -> tuple[Message, ...]:
        """The conversation of the first of the fields that is there: text is one user turn, else a list of
        {role, content} that ends with a user turn."""
        name, expected = self.name_of(*names), "a statement, as text or as a list of messages"
        if name is None:
            got = f"the fields {', '.join(map(ascii, self.fields)) or '(none)'}"
            self.fail(names[0], expected, got[:300])
        value = self.fields[name]
        if isinstance(value, str) and value.strip():
            return (Message("user", value),)
        if not isinstance(value, list) or not value:
            self.fail(name, expected, short(value), do='write "…", or [{"role": "user", "content": "…"}]')
        turns = tuple(self._message(f"{name}[{place}]", turn) for place, turn in enumerate(value))
        if turns[-1].role != "user":
            do = "leave that turn out; an answer that is known goes into a field of its own (docs/data.md)"
            why = "the model answers the user; a turn that was begun for it is not continued"
            expected = "a conversation that ends with a user turn"
            self.fail(f"{name}[{len(turns) - 1}].role", expected, repr(turns[-1].role), why=why, do=do)
        return turns

    def _message(self, field: str, turn: Any) -> Message:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            self.fail(field, "a message {role, content}", short(turn))
        role, content = turn["role"], turn["content"]
        if role not in _ROLES:
            do = 'write "system" for it' if role == "developer" else ""
            self.fail(f"{field}.role", f"one of {', '.join(_ROLES)}", short(role), do=do)
        carried = next((key for key in CARRIED if turn.get(key)), None)
        if carried is not None:
            self.fail(f"{field}.{carried}", "a message of text alone", short(turn[carried]))
        text = self.content(f"{field}.content", content)
        if not text.strip() and role != "system":  # an empty one takes the place of a template's own
            self.fail(f"{field}.content", "text", "blank text")
        return Message(role, text)

    def content(self, field: str, content: Any) -> str:
        """The text of a message: text, or parts of text, which are joined."""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            self.fail(field, "text, or a list of parts of text", short(content))
        for place, part in enumerate(parts):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                do = "images and other media are not read"
                self.fail(f"{field}[{place}]", 'a part {"type": "text", "text": …}', short(part), do=do)
        return "".join(part["text"] for part in parts)


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
