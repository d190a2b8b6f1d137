r"""Mathematics: the last `\boxed{…}` of an answer, compared as text, as a number, then by math-verify.

math-verify runs in a process of its own: its alarm works in the main thread only, and not within one long operation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

from selfdistill.envs.limited import LimitedCall
from selfdistill.envs.rows import Mark, RowsEnvironment, ScorerOptions, clipped
from selfdistill.envs.text import whole_number
from selfdistill.errors import ConfigError, option
from selfdistill.types import Task

PUBLISHED_CHARACTERS = 100  # at the end of an answer, in which the published scorer looks
CACHED = 4096
MAX_COMPARED = 2000  # characters of an expression that math-verify reads
_BRACES = re.compile(r"\\boxed\s*+\{|\\.|[{}]", re.DOTALL)  # an escaped one is no brace
_PUBLISHED_BRACES = re.compile(r"\\boxed\{|[{}]")
_PLAIN = (
    (r"\{,\}", ","), (r"\\[dt]?frac\{([0-9]++)\}\{([0-9]++)\}", r"\1/\2"), (r"\\(?:text|mathrm)\{[^{}]*+\}", ""),
    (r"\\[!,; ]|\\\(|\\\)|(?<!\\)\$", ""), (r"\\([$%])", r"\1"),
)  # fmt: skip
_PUBLISHED_FORMAT = "Your answer had the wrong format. The solution must be given in the format: \\boxed{your_answer}."
_PUBLISHED_CUT = "Your response was truncated because it exceeded the maximum length."
_FORM = r"Put the final answer, and nothing else, into \boxed{…}."


@dataclass(frozen=True, slots=True)
class MathsOptions(ScorerOptions):
    """Options of `maths`. Raises `ConfigError`."""

    instruction: str = option(
        r"Please reason step by step, and put your final answer within \boxed{}.",
        "text behind the question: the form of an answer",
    )
    equivalence: bool = option(True, "compare by math-verify what is not equal as text or as a number")
    limit_s: float = option(5.0, "seconds for one comparison by math-verify, then it is wrong", least=0.1, most=600)


class MathsEnvironment(RowsEnvironment[str]):
    r"""Mathematics: the last \boxed{…} equals the row's `answer`, as text, as a number, or by math-verify.

    Of an answer like GSM8K's the part behind the last `####` counts, of one with a box the box. The published scorer
    looks at the last 100 characters alone, gives math-verify bare text, in which it finds little but numbers, and is
    silent about a wrong answer in a box.
    """

    name, defaults = "maths", MathsOptions()
    options: MathsOptions

    def __init__(self, options: MathsOptions | None = None) -> None:
        super().__init__(options)
        if self.options.equivalence and find_spec("math_verify") is None:
            what = "the environment maths needs the package math-verify, which is not installed"
            do = "pip install 'selfdistill[maths]', or compare numbers and texts alone: env.equivalence=false"
            raise ConfigError(what, do=do)
        compare = LimitedCall(f"{__name__}:equivalent", self.options.limit_s)
        self._equivalent = lru_cache(CACHED)(compare) if self.options.equivalence else None  # a policy repeats itself

    def gold(self, task: Task) -> str:
        """The final answer. Raises `DataError`."""
        whole = self.text(task, self.answer(task))
        final = whole.rpartition("####")[2].strip()
        boxed = last_boxed(final)
        final = final if boxed is None else boxed
        return final or self.refuse(task, "a final answer", whole)

    def written(self, gold: str) -> str:
        """The answer in a box."""
        return f"\\boxed{{{gold}}}"

    def mark(self, gold: str, text: str, cut: bool) -> Mark:
        """Compares the last box."""
        if self.published:
            return self._published(gold, text[-PUBLISHED_CHARACTERS:], cut)
        answer = (last_boxed(text) or "").strip()
        if not answer:
            return Mark.missing(f"No complete \\boxed{{…}} was found. {_FORM}", cut)
        number, expected = plain_number(answer), plain_number(gold)
        same = answer == gold or (number is not None and number == expected)
        compared = same or self._equal(self.written(gold), self.written(answer))
        if compared is None:
            return Mark("timeout", f"The boxed answer takes too long to compare. {_FORM}", answer)
        return Mark.compared(compared, f"{clipped(answer)} is wrong.", answer)

    def _published(self, gold: str, end: str, cut: bool) -> Mark:
        answer = last_boxed(end[max(0, end.rfind(r"\boxed{")) :], _PUBLISHED_BRACES) or ""
        failure = "missing" if not answer else "none" if answer == gold or self._equal(gold, answer) else "wrong"
        feedback = _PUBLISHED_CUT if cut else "" if answer else _PUBLISHED_FORMAT
        return Mark(failure, feedback, answer, bad_format=not answer)

    def _equal(self, gold: str, answer: str) -> bool | None:
        """What math-verify says; None where it takes too long."""
        if self._equivalent is None or max(len(gold), len(answer)) > MAX_COMPARED:
            return False
        return self._equivalent(gold, answer)


def last_boxed(text: str, braces: re.Pattern[str] = _BRACES) -> str | None:
    r"""What the last `\boxed{…}` that is closed holds; the inner of two."""
    opened: list[tuple[int, bool]] = []
    last, found = -1, None
    for token in braces.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append((token.end(), len(token[0]) > 1))
        elif token[0] == "}" and opened:
            start, boxed = opened.pop()
            if boxed and start > last:
                last, found = start, text[start : token.start()]
    return found


def plain_number(text: str) -> Fraction | None:
    """The number that an expression is, with the signs of LaTeX around it and a unit; None for any other one."""
    for old, new in _PLAIN:
        text = re.sub(old, new, text)
    return whole_number(text.strip())


def equivalent(gold: str, answer: str) -> bool:
    """What math-verify says, without its alarms: this runs in a process that has one."""
    library = import_module("math_verify")
    parsed = [library.parse(text, parsing_timeout=None) for text in (gold, answer)]
    return bool(library.verify(*parsed, timeout_seconds=None))
