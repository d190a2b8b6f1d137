"""What a scored program reports, checked on the outside: whatever a line or a message holds, a `Result` comes of it.

A program can forge a line, so nothing in it is trusted: neither its types nor its sizes nor that it is JSON at all.
"""

from __future__ import annotations

from json import loads
from typing import Any

from selfdistill.envs.sandbox.program import Ending, Result
from selfdistill.envs.sandbox.wire import decode

Message = dict[str, Any]

_TEXT_CHARACTERS = 20_000
_REPORTED = (Ending.DONE, Ending.FAILED, Ending.RAISED)  # a program is timed out by others
_UNREADABLE_ERROR = "ProcessExit: the program's results could not be read"
UNREADABLE: Message = {"ending": "raised", "error": _UNREADABLE_ERROR, "gone": True}


def message_of(line: bytes) -> Message:
    """What one line of a program says: known fields of the right types only; `UNREADABLE` when it is malformed."""
    try:
        said = loads(line)
    except (ValueError, RecursionError):
        return dict(UNREADABLE)
    if not isinstance(said, dict) or not isinstance(said.get("ending"), str) or said["ending"] not in _REPORTED:
        return dict(UNREADABLE)
    if not isinstance(said.get("loading", False), bool):
        return dict(UNREADABLE)
    if not all(isinstance(said.get(field, ""), str) for field in ("error", "note")):
        return dict(UNREADABLE)
    return {field: said[field] for field in ("ending", "value", "error", "note", "loading") if field in said}


def result_of(message: Any, memory: tuple[range, ...] = ()) -> Result:
    """The result in a message, of a worker with this `memory`. What is malformed counts as the program's failure."""
    try:
        value = message.get("value")
        if isinstance(value, dict):
            raise TypeError("no value is encoded so")
        return Result(
            ending=Ending(message["ending"]),
            value=decode(value) if isinstance(value, list) else value,
            error=_text(message.get("error", "")),
            note=_text(message.get("note", "")),
            loading=message.get("loading", False) is True,
            memory=memory,
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return Result(Ending.RAISED, error=_UNREADABLE_ERROR)


def _text(text: str) -> str:
    """A text that can be written down: half a surrogate pair cannot."""
    return text[:_TEXT_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
