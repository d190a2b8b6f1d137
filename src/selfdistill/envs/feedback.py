"""The feedback on an answer: one text from the records of its tests.

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
    """The feedback on an answer, in at most `limit` characters; empty when every test passed.

    Of the wrong answers the `cases` shortest are shown, or, with `pick`, ones drawn at random: group members that fail
    alike then learn different things.
    """
    errors, timeouts, wrong = (
        [record for record in records if record.status is status]
        for status in (TestStatus.ERROR, TestStatus.TIMEOUT, TestStatus.WRONG)
    )
    if errors:
        text = f"Runtime error.\n{errors[0].error}"
        text += f"\nLast input: {clip_text(errors[0].input)}" if errors[0].input else ""
    elif timeouts:
        text = f"Time limit exceeded.\nLast input: {clip_text(timeouts[0].input)}"
    else:
        if pick is not None:
            shown = pick.sample(wrong, min(cases, len(wrong)))
        else:
            shown = sorted(wrong, key=lambda record: len(record.input) + len(record.output))[:cases]
        text = "\n".join(
            f"Wrong answer.\nInput: {clip_text(case.input)}\n"
            f"Output: {clip_text(case.output)}\nExpected: {clip_text(case.expected)}"
            if case.input or case.expected
            else f"Wrong answer.\n{clip_text(case.output)}"  # an assertion: its text is the output
            for case in shown
        )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def missing_block_text(truncated: bool) -> str:
    """The feedback on an answer in which no code was found."""
    if truncated:
        return "The answer was cut off at the length limit before its code was complete. Answer more briefly."
    return "No code was found. Put the whole program into one fenced block: ```python ... ```"


def clip_text(text: str) -> str:
    """At most eight lines of at most 250 characters, and what was left out; a clipped text stays as it is."""
    lines, kept = text.split("\n", MAX_INPUT_LINES), []
    for line in lines[:MAX_INPUT_LINES]:
        whole = len(line) <= MAX_CHARACTERS or (len(line) == MAX_CHARACTERS + 1 and line.endswith("…"))
        kept.append(line if whole else line[:MAX_CHARACTERS] + "…")
    for rest in lines[MAX_INPUT_LINES:]:
        kept.append(rest if _MORE.fullmatch(rest) else f"… {rest.count(chr(10)) + 1} more lines")
    return "\n".join(kept)
