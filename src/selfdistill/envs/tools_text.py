"""Calls of tools written as text in the format of ReAct (rows of ToolAlpaca).

    Thought: …
    Action: searchAxolotlImages
    Action Input: {"color": "wild", "page": 1}

The answer of a row is a list `[{"Action": name, "Action_Input": object or its JSON}, …]`, or the JSON of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from selfdistill.envs.compare import same_value
from selfdistill.envs.rows import Mark, RowsEnvironment, ScorerOptions, differing
from selfdistill.files import BadJson, decode_json
from selfdistill.types import Task

OPTIONAL = "[Optional]"
_FORM = 'Write "Action: " with the name of a tool, and on the next line "Action Input: " with one JSON object.'
_LABEL = re.compile(r"""Action(?P<input> Input)?:[\s*`]*+(?:json\s++(?=\{))?""")
_NAME = re.compile(r"""[^\s*`"'(){},]++""")
_PUBLISHED_ACTION = re.compile(r"Action:\s*+(\w++)")
_PUBLISHED_INPUT = re.compile(r"Action Input:\s*+(?=\{)")
_DECODER = json.JSONDecoder()


class Call(NamedTuple):
    """One call of a tool. `fault` names the mistake in its input."""

    name: str
    arguments: dict[str, Any]
    fault: str = ""

    @property
    def tool(self) -> str:
        """The name without the mark of a call that may be left out."""
        return self.name.removeprefix(OPTIONAL)


class ToolsTextEnvironment(RowsEnvironment[tuple[Call, ...]]):
    """Calls of tools as text: the same names, each as often as in the row's `answer`, and the same merged arguments.

    The order of the names does not count. Arguments are right when all inputs merged into one object are equal, or all
    calls one by one. A call marked `[Optional]` may be left out. The published scorer cuts a nested object at its first
    brace, reads no name that begins with a bracket, passes over inputs that are no JSON, and its feedback shows the
    expected calls.
    """

    name, defaults = "tools-text", ScorerOptions()

    def gold(self, task: Task) -> tuple[Call, ...]:
        """The expected calls. Raises `DataError`."""
        value, expected = self.answer(task), 'a list of {"Action": …, "Action_Input": …}, or its JSON'
        try:
            calls = decode_json(value) if isinstance(value, str) else value
            if not isinstance(calls, list) or not calls:
                self.refuse(task, expected, value)
            return tuple(self._gold_call(call) for call in calls)
        except (BadJson, TypeError, KeyError):
            self.refuse(task, expected, value)

    def _gold_call(self, call: Any) -> Call:
        """One call of a row; a blank input has no arguments. Raises `BadJson`, `KeyError`, `TypeError`."""
        name, arguments = call["Action"], call["Action_Input"]
        if isinstance(arguments, str):
            try:
                arguments = decode_json(arguments) if arguments.strip() else {}
            except BadJson:
                if not self.published:
                    raise
                arguments = {}
        if not isinstance(name, str) or not name.removeprefix(OPTIONAL) or not isinstance(arguments, dict):
            raise TypeError("an action is a name and an object")
        return Call(name, arguments)

    def written(self, gold: tuple[Call, ...]) -> str:
        """All calls, optional ones too."""
        return "\n".join(
            f"Action: {call.name if self.published else call.tool}\n"
            f"Action Input: {json.dumps(call.arguments, ensure_ascii=False)}"
            for call in gold
        )

    def mark(self, gold: tuple[Call, ...], text: str, cut: bool) -> Mark:
        """Compares names, then arguments; feedback names the tools and arguments of the answer that are wrong."""
        if self.published:
            return _published(gold, text)
        calls = read_calls(text)
        shown = "; ".join(f"{call.name} {json.dumps(call.arguments)}" for call in calls)
        if not calls:
            return Mark.missing(f"No action was found. {_FORM}", cut)
        fault = next((f"{call.name}: {call.fault}" for call in calls if call.fault), "")
        if fault:
            return Mark.missing(f"The input of an action cannot be read. {fault}. {_FORM}", cut, shown)
        names, used = Counter(call.tool for call in calls), [call for call in gold if call.name == call.tool]
        required = Counter(call.tool for call in used)
        lacking, spare = (required - names).total(), names - required
        for call in gold:
            if call.name != call.tool and spare[call.tool] > 0:
                spare[call.tool] -= 1
                used.append(call)
        if lacking or spare.total():
            wrong = f" Not right: {', '.join(spare.elements())}." if spare.total() else ""
            few = f" Missing: {lacking}." if lacking else ""
            return Mark("wrong", f"The actions are not those that are needed.{wrong}{few}", shown)
        got, expected = merged(calls), merged(used)
        if same_value(got, expected) or _same_calls(calls, used):
            return Mark("none", answer=shown)
        which = differing(got, expected, named=True)
        return Mark("wrong", f"The actions are right, their arguments are not. {which}", shown)


def read_calls(text: str) -> list[Call]:
    """The calls of an answer, up to the first input that cannot be read; text within an input is no call. An action
    without an input has no arguments."""
    calls: list[Call] = []
    label = _LABEL.search(text)
    while label:
        end = label.end()
        if not label["input"]:
            if name := _NAME.match(text, end):
                end = name.end()
                calls.append(Call(name[0].rstrip(".:;"), {}))
        elif calls:
            value, end, fault = _read_object(text, end)
            calls[-1] = Call(calls[-1].name, value, fault)
            if fault:
                break
        label = _LABEL.search(text, end)
    return calls


def _read_object(text: str, start: int) -> tuple[dict[str, Any], int, str]:
    """The JSON object at a place, where it ends, and what is wrong with it."""
    if not text.startswith("{", start):
        return {}, start, "no JSON object follows"
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return {}, start, f"no JSON: {error.msg}"
    except (ValueError, RecursionError):
        return {}, start, "no JSON that can be used"
    return value, end, ""


def merged(calls: Sequence[Call]) -> dict[str, Any]:
    """The arguments of all calls as one object; later ones overwrite earlier ones."""
    return {name: value for call in calls for name, value in call.arguments.items()}


def _same_calls(calls: Sequence[Call], expected: Sequence[Call]) -> bool:
    """Whether the calls are equal one by one, in any order."""
    rest = list(expected)
    for call in calls:
        place = next((i for i, e in enumerate(rest) if e.tool == call.tool and same_value(call[1], e[1])), None)
        if place is None:
            return False
        del rest[place]
    return not rest


def _published(gold: tuple[Call, ...], text: str) -> Mark:
    names, arguments = _PUBLISHED_ACTION.findall(text), dict[str, Any]()
    place = _PUBLISHED_INPUT.search(text)
    while place and (end := text.find("}", place.end())) >= 0:
        with suppress(ValueError, RecursionError):
            arguments.update(json.loads(text[place.end() : end + 1]))
        place = _PUBLISHED_INPUT.search(text, end)
    wanted, expected = [call.name for call in gold], merged(gold)
    parts = []
    if Counter(names) != Counter(wanted):
        parts.append(f"Actions mismatch: predicted {names}, expected {wanted}")
    if arguments != expected:
        parts.append(f"Action inputs mismatch: predicted {arguments}, expected {expected}")
    action = text.find("Action:")
    well_formed = action >= 0 and "\nAction Input:" in text[action:]
    shown = f"Actions: {names}, Inputs: {arguments}"
    return Mark("wrong" if parts else "none", "; ".join(parts), shown, bad_format=not well_formed)
