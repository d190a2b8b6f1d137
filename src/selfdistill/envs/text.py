"""Answers of text: equal to the expected one, holding it, matching a regular expression, the same number or JSON."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from selfdistill.envs.compare import same_value
from selfdistill.envs.limited import LimitedCall
from selfdistill.envs.rows import Mark, RowsEnvironment, RowsOptions, clipped, differing
from selfdistill.envs.scoring import fenced_blocks
from selfdistill.errors import ConfigError, nearest, option
from selfdistill.files import BadJson, decode_json
from selfdistill.prompts.questions import holds
from selfdistill.types import Task

REGEX_S = 5.0
MAX_NUMBER = 400  # characters
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+\u2212])?[$€£¥]?(?P<inner>[-\u2212])?"
    r"(?P<number>(?:[0-9]++(?:,[0-9]{3})*+(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][-+]?[0-9]{1,3}+(?![0-9]))?+)"
    r"(?![eE][-+]?[0-9])(?:\s?/\s?(?P<under>[0-9]++))?"
)
_FIELD = re.compile(r"\{(\w*)\}")
_FIELDS = ("reason", "answer")


@dataclass(frozen=True, slots=True)
class TextOptions(RowsOptions):
    """Options of `text`. Raises `ConfigError`."""

    compare: Literal["exact", "contains", "words", "regex", "number", "json"] = option(
        "exact",
        "exact: equal but for white space around it; contains: holds the row's answer; words: holds it as words of its "
        "own, whatever their case; regex: the row's answer is a regular expression that is found; number: the last "
        "number is equal; json: the last fenced block, or all, is",
    )
    after: str = option("", "a marker, such as ####: what stands behind its last occurrence counts; empty: all")
    ignore_case: bool = option(False, "exact, contains, regex: upper and lower case are alike")
    tolerance: float = option(0.0, "number: the difference allowed, as a fraction of the expected one", least=0, most=1)
    feedback: str = option("{reason}", "the feedback on a wrong answer, with {reason} and {answer} replaced")

    def __post_init__(self) -> None:
        RowsOptions.__post_init__(self)
        unknown = [name for name in _FIELD.findall(self.feedback) if name not in _FIELDS]
        if unknown:
            got, do = f"{{{unknown[0]}}}", nearest(unknown[0], _FIELDS)
            raise ConfigError("the template of the feedback has an unknown field", got=got, do=do)


class TextEnvironment(RowsEnvironment[Any]):
    """Text compared with the row's `answer`: exact, contains, words, regex, number or json.

    But for json, the `answer` of a row may be a list of right ones. A regular expression is tried in a process with a
    limit of its own, since one of the data may take for ever.
    """

    name, defaults = "text", TextOptions()
    options: TextOptions

    def __init__(self, options: TextOptions | None = None) -> None:
        super().__init__(options)
        self._found = LimitedCall("selfdistill.envs.limited:found", REGEX_S)

    def gold(self, task: Task) -> Any:
        """The expected answers; of json, the expected value. Raises `DataError`."""
        value, compare = self.answer(task), self.options.compare
        if compare == "json":
            try:
                return decode_json(value) if isinstance(value, str) else value
            except BadJson as error:
                self.refuse(task, f"JSON ({error.what}: {error.got})", value)
        answers = [self.text(task, one) for one in (value if isinstance(value, list) else [value])]
        if not answers or (compare == "number" and None in map(last_number, answers)):
            self.refuse(task, "a number" if answers else "an answer", value)
        for answer in answers if compare == "regex" else ():
            try:
                re.compile(answer)
            except (re.error, RecursionError, OverflowError) as error:
                self.refuse(task, f"a regular expression ({error})", value)
        return answers

    def written(self, gold: Any) -> str:
        """The first of the right answers, behind the marker; where it is a regular expression, that expression."""
        text = json.dumps(gold, ensure_ascii=False) if self.options.compare == "json" else gold[0]
        return f"{self.options.after} {text}".strip()

    def reference(self, task: Task) -> str:
        """A right answer; none is known for a regular expression."""
        return "" if self.options.compare == "regex" else self.written(self.gold(task))

    def mark(self, gold: Any, text: str, cut: bool) -> Mark:
        """Compares what stands behind the marker; a reason becomes feedback by the template."""
        _, marker, answer = text.rpartition(self.options.after) if self.options.after else ("", "", text)
        answer = answer.strip()
        if self.options.after and not marker:
            found = Mark.missing(f"Write the answer behind {self.options.after!r}, which was not found.", cut, answer)
        elif not answer:
            found = Mark.missing("The answer is empty.", cut)
        else:
            ways = {"json": _json, "number": self._number, "regex": self._regex}
            found = ways.get(self.options.compare, self._text)(gold, answer, cut)
        fields = {"reason": found.feedback, "answer": clipped(found.answer)}
        feedback = "" if found.failure == "none" else _FIELD.sub(lambda name: fields[name[1]], self.options.feedback)
        return replace(found, feedback=feedback)

    def _text(self, gold: list[str], answer: str, cut: bool) -> Mark:
        known = [self._folded(text) for text in gold]
        if self.options.compare in ("contains", "words"):
            whole = self.options.compare == "words"
            right = any(holds(one, answer) if whole else one in self._folded(answer) for one in known)
            return Mark.compared(right, "The answer does not hold the text that is expected.", answer)
        loose = ["".join(text.split()).casefold() for text in (answer, *gold)]
        nearly = "The answer is right but for white space, or upper and lower case."
        feedback = nearly if loose[0] in loose[1:] else "The answer is not the one expected."
        return Mark.compared(self._folded(answer) in known, feedback, answer)

    def _folded(self, text: str) -> str:
        return text.casefold() if self.options.ignore_case else text

    def _regex(self, gold: list[str], answer: str, cut: bool) -> Mark:
        found = [self._found(pattern, answer, "i" if self.options.ignore_case else "") for pattern in gold]
        if None in found and True not in found:
            return Mark("timeout", "The answer takes too long to compare. Answer more briefly.", answer)
        return Mark.compared(True in found, "The answer does not have the form that is expected.", answer)

    def _number(self, gold: list[str], answer: str, cut: bool) -> Mark:
        found = last_number(answer)
        if found is None:
            return Mark.missing("No number was found in the answer.", cut, answer)
        known = [number for number in map(last_number, gold) if number is not None]
        right = any(abs(found[0] - value) <= abs(value) * Fraction(self.options.tolerance) for value, _ in known)
        return Mark.compared(right, f"The number {found[1]} is wrong.", found[1])


def _json(gold: Any, answer: str, cut: bool) -> Mark:
    text = ([code for _, code in fenced_blocks(answer)] or [answer])[-1]
    try:
        found = decode_json(text)
    except BadJson as error:
        return Mark.missing(f"The answer is no JSON that can be used: {error.what}, {error.got}.", cut, text)
    if same_value(found, gold):
        return Mark("none", answer=text)
    if not isinstance(found, dict) or not isinstance(gold, dict):
        return Mark("wrong", "The JSON is readable, its value is wrong.", text)
    return Mark("wrong", f"The JSON is readable, these keys are wrong. {differing(found, gold, named=False)}", text)


def last_number(text: str) -> tuple[Fraction, str] | None:
    """The last number of a text and how it is written: with a sign, a currency, thousands separators, an exponent, or
    as a fraction; a percent sign or a unit behind it is not looked at. None where there is none."""
    found = deque(_NUMBER.finditer(text), maxlen=1)
    return _value(found[0]) if found else None


def whole_number(text: str) -> Fraction | None:
    """The number that a text is, but for a percent sign; None for any other text."""
    found = _NUMBER.fullmatch(text.removesuffix("%").strip())
    value = _value(found) if found else None
    return value[0] if value else None


def _value(found: re.Match[str]) -> tuple[Fraction, str] | None:
    under = int(found["under"] or 1) if len(found[0]) <= MAX_NUMBER else 0
    if not under:
        return None
    value = Fraction(Decimal(found["number"].replace(",", ""))) / under
    return -value if (found["sign"] or found["inner"] or "+") != "+" else value, found[0]
