"""A program to run, and its results as they are read from what it reports.

A program can forge a line, so nothing in it is trusted: neither its types nor its sizes nor that it is JSON at all.
Whatever a line or a message holds, a `Result` comes of it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from json import loads
from typing import Any

from selfdistill.envs.sandbox.wire import decode

Message = dict[str, Any]

_TEXT_CHARACTERS = 20_000
_UNREADABLE_ERROR = "ProcessExit: the program's results could not be read"
UNREADABLE: Message = {"ending": "raised", "error": _UNREADABLE_ERROR, "gone": True}


class Mode(StrEnum):
    """What an input is."""

    CALL = "call"  # the arguments of one call of `entry`; the result is the value it returns
    STDIN = "stdin"  # the text of standard input; the result is the text printed by the whole program
    # Python statements run after the program: the result is whether they hold. Or {"value": an expression, "truth":
    # false}: the result is its value, or with "truth" the pair of value and truth.
    ASSERT = "assert"


@dataclass(frozen=True, slots=True)
class Program:
    """`prelude` runs before `code` and `setup` after it, both in its namespace; neither counts in line numbers.

    In `Mode.CALL` and `Mode.ASSERT` the code runs once and then meets every input in the same process. In `Mode.STDIN`
    every input has a fresh process. `entry` may be a function or a method of a class `Solution`.
    """

    code: str
    mode: Mode
    inputs: tuple[Any, ...]
    entry: str = ""
    prelude: str = ""
    setup: str = ""


class Ending(StrEnum):
    """How the run on one input ended."""

    DONE = "done"  # returned, printed, or held
    FAILED = "failed"  # an assertion of the test did not hold
    RAISED = "raised"  # an exception, a broken limit, or the process ended by itself
    TIMED_OUT = "timed_out"  # no input after this one was run


@dataclass(frozen=True, slots=True)
class Result:
    """The run on one input.

    `value` is what was returned (`Mode.CALL`), printed (`Mode.STDIN`) or evaluated (`Mode.ASSERT`). `error` is
    "TypeName: message" and then up to three lines "Line 3 in f", innermost last. `note` is the statement of the test
    that failed or raised (`Mode.ASSERT`). `loading`: the code raised before it met an input. `memory` is where
    the process's objects lay: a number in there is an address.
    """

    ending: Ending
    value: Any = None
    error: str = ""
    note: str = ""
    loading: bool = False
    memory: tuple[range, ...] = ()


def message_of(line: bytes) -> Message:
    """The known fields of the result in a program's line; `UNREADABLE` when it is none. `result_of` checks the rest."""
    with suppress(ValueError, RecursionError):
        result = loads(line)
        # A time-out is reported by the worker alone.
        if isinstance(result, dict) and result.get("ending") in ("done", "failed", "raised"):
            return {name: result[name] for name in ("ending", "value", "error", "note", "loading") if name in result}
    return dict(UNREADABLE)


def result_of(message: Any, memory: tuple[range, ...] = ()) -> Result:
    """The result in a message, of a worker with this `memory`. A malformed one is the program's failure."""
    try:
        value, loading = message.get("value"), message.get("loading", False)
        if isinstance(value, dict) or not isinstance(loading, bool):
            raise TypeError("nothing is encoded so")
        return Result(
            ending=Ending(message["ending"]),
            value=decode(value) if isinstance(value, list) else value,
            error=_text(message.get("error", "")),
            note=_text(message.get("note", "")),
            loading=loading,
            memory=memory,
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return Result(Ending.RAISED, error=_UNREADABLE_ERROR)


def _text(text: str) -> str:
    """A text that can be written down: half a surrogate pair cannot."""
    return text[:_TEXT_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
