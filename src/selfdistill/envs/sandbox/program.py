"""A program to judge, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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

    `value` is what was returned (`Mode.CALL`), printed (`Mode.STDIN`) or asked for (`Mode.ASSERT`). `error` is
    "TypeName: message" and then up to three lines "Line 3 in f", innermost last. `note` is the statement of the test
    that failed or raised (`Mode.ASSERT`). `loading` says that the code raised before it met an input. `memory` is where
    the process's objects lay: a number in there is an address.
    """

    ending: Ending
    value: Any = None
    error: str = ""
    note: str = ""
    loading: bool = False
    memory: tuple[range, ...] = ()
