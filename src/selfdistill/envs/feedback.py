"""What a programmer would be told about an answer: one text from the records of its tests.

The order of precedence and the limits follow Hübotter et al. 2026 (arXiv 2601.20802), app. on LiveCodeBench feedback:
an error hides everything else, then a time limit, then up to `cases` wrong answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_INPUT_LINES = 8
MAX_CHARACTERS = 250
_MORE = re.compile(r"… [0-9]{1,9} more lines")


class TestStatus(StrEnum):
    """How one test of an answer ended."""

    __test__ = False  # not a test class for pytest

    PASSED = "passed"
    WRONG = "wrong"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class TestRecord:
    """One test of an answer, as text.

    `error` is "TypeName: message" followed by up to three lines "Line 3 in f" (the frames within the answer).
    """

    __test__ = False

    status: TestStatus
    input: str = ""
    output: str = ""
    expected: str = ""
    error: str = ""


def feedback_text(
    records: Sequence[TestRecord], *, cases: int = 2, limit: int = 2000, pick: random.Random | None = None
) -> str:
    """What went wrong, in at most `limit` characters; empty when every test passed.

    Of the wrong answers the `cases` shortest are shown, or, with `pick`, ones drawn at random: group members that fail
    alike then learn different things.
    """
    errors = [record for record in records if record.status is TestStatus.ERROR]
    timeouts = [record for record in records if record.status is TestStatus.TIMEOUT]
    wrong = [record for record in records if record.status is TestStatus.WRONG]
    if errors:
        text = _error_text(errors[0])
    elif timeouts:
        text = f"Time limit exceeded.\nLast input: {clip_text(timeouts[0].input)}"
    else:
        shown = _choose(wrong, cases, pick)
        text = "\n".join(_case_text(record) for record in shown)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def missing_block_text(truncated: bool) -> str:
    """What to say of an answer in which no code was found."""
    if truncated:
        return "The answer was cut off at the length limit before its code was complete. Answer more briefly."
    return "No code was found. Put the whole program into one fenced block: ```python ... ```"


def clip_text(text: str) -> str:
    """At most eight lines of at most 250 characters, and what was left out; a clipped text stays as it is."""
    lines = text.split("\n", MAX_INPUT_LINES)
    kept = [line if _is_short(line) else line[:MAX_CHARACTERS] + "…" for line in lines[:MAX_INPUT_LINES]]
    for rest in lines[MAX_INPUT_LINES:]:
        kept.append(rest if _MORE.fullmatch(rest) else f"… {rest.count(chr(10)) + 1} more lines")
    return "\n".join(kept)


def _is_short(line: str) -> bool:
    return len(line) <= MAX_CHARACTERS or (len(line) == MAX_CHARACTERS + 1 and line.endswith("…"))


def _choose(wrong: Sequence[TestRecord], cases: int, pick: random.Random | None) -> list[TestRecord]:
    if pick is not None:
        return pick.sample(list(wrong), min(cases, len(wrong)))
    return sorted(wrong, key=lambda record: len(record.input) + len(record.output))[:cases]


def _error_text(record: TestRecord) -> str:
    text = f"Runtime error.\n{record.error}"
    return f"{text}\nLast input: {clip_text(record.input)}" if record.input else text


def _case_text(record: TestRecord) -> str:
    if not record.input and not record.expected:  # an assertion: its text is the output
        return f"Wrong answer.\n{clip_text(record.output)}"
    return (
        f"Wrong answer.\nInput: {clip_text(record.input)}\n"
        f"Output: {clip_text(record.output)}\nExpected: {clip_text(record.expected)}"
    )
