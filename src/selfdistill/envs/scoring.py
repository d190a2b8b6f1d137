"""From an answer and the tests of its task to a program, records of its tests, a reward and the feedback.

A task's `spec` is JSON; this is all that is read of it:

    kind        "functional" | "stdin" | "assert"
    public      tests that training may use        {"input": [arguments], "output": value}   functional
    private     tests kept for evaluation          {"input": text, "output": text}           stdin
                (either may be empty)              "assert f(1) == 2"                        assert
    fn_name     the function to call               functional (assert: the one to look for in an answer, optional)
    prelude     code that runs before the answer, setup: after it, in its namespace          optional
    time_limit  seconds for one test                                                         optional

The program of an answer is the last closed fenced block that defines the function or class that the tests use; where
none does, the longest tagged `python` or `py`; else the longest. A fence opens with three or more backticks and at most
a tag, and closes with at least as many, alone on a line or at the end of a line of code. Only a line feed ends a line.
A fence indented by four columns or more is no fence, as in Markdown.

The order of precedence in the feedback and its limits follow Hübotter et al. 2026 (arXiv 2601.20802), app. on
LiveCodeBench feedback: an error hides everything else, then a time limit, then up to `cases` wrong answers.
"""

from __future__ import annotations

import ast
import builtins
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

from selfdistill.envs.assertions import read_assertion
from selfdistill.envs.compare import same_output, same_value
from selfdistill.envs.sandbox.limits import MAX_SECONDS, MIN_SECONDS, SandboxLimits
from selfdistill.envs.sandbox.program import Ending, Mode, Program, Result
from selfdistill.envs.shown import show_text, show_value
from selfdistill.envs.syntax import spec_fault
from selfdistill.errors import DataError
from selfdistill.options import option
from selfdistill.prompts.context import without_thinking
from selfdistill.types import Completion, Outcome, StopReason, Task

MAX_INPUT_LINES = 8
MAX_CHARACTERS = 250
_MORE = re.compile(r"… [0-9]{1,9} more lines")

TestSplit = Literal["public", "private", "all"]
MODES = {"functional": Mode.CALL, "stdin": Mode.STDIN, "assert": Mode.ASSERT}
_OPENING = re.compile(r"(?P<indent> {0,3})(?P<fence>`{3,}+)[^`\w]*+(?P<tag>[\w-]*+)[^`]*+")
_PYTHON = ("python", "py", "python3", "py3")
_SOLUTION = re.compile(r"^class[ \t]+Solution\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CodeOptions(SandboxLimits):
    """Limits of a program, which tests decide, and how much feedback a failure gets. Raises `ConfigError`."""

    split: TestSplit = option("public", "tests that decide: public, private, all; an empty one gives way")
    cases: int = option(
        2, "wrong answers shown in the feedback; 0: it says only that there are some", least=0, most=1000
    )
    random_cases: bool = option(False, "draw those for each completion, instead of the shortest")
    turns: int = option(1, "attempts in one conversation, each after the feedback on the one before", least=1, most=100)
    allow_weaker: bool = option(False, "run programs also where this machine cannot isolate them fully")


def cases_of(task: Task, split: TestSplit) -> list[Any]:
    """The tests of `split`, or of the other one when it is empty."""
    public, private = list(task.spec.get("public", ())), list(task.spec.get("private", ()))
    return {"public": public or private, "private": private or public, "all": public + private}[split]


def why_unusable(task: Task) -> str:
    """Why no program can pass: tests of an unknown kind, none at all, a time limit that is none, or code that does not
    run in the sandbox. Empty where one can."""
    spec, seconds = task.spec, task.spec.get("time_limit", MAX_SECONDS)
    if spec.get("kind") not in MODES:
        return f"task {task.id!r} has an unknown kind of tests: {spec.get('kind')!r:.80}"
    if not cases_of(task, "all"):
        return f"task {task.id!r} has no tests: every answer would count as correct"
    if type(seconds) not in (int, float) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        limits = f"a number of seconds from {MIN_SECONDS:g} to {MAX_SECONDS:g}"
        return f"task {task.id!r}: time_limit must be {limits}, got {seconds!r:.80}"
    fault = spec_fault(spec)
    if fault is None:
        return ""
    return f"task {task.id!r}: {fault.part}[{fault.index}]: expected {fault.expected}, got {fault.got}; {fault.why}"


def program_text(task: Task, completion: Completion) -> str | None:
    """The program of an answer, taken from the very text that a teacher may read; None where there is none."""
    return extract_code(without_thinking(completion.text), entry_of(task))


def extract_code(text: str, name: str = "") -> str | None:
    """The program of an answer without thinking; None when no block was closed. Takes time linear in the length.

    `name` is the function or class that the tests use: defined at the top level of a block, by statement or assignment,
    or as a method of a class `Solution`. Of blocks of equal length the first counts. A block that is still open at the
    end was cut off, and does not count.
    """
    blocks, name = fenced_blocks(text), re.escape(name)
    if name:
        own = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)"
        method = re.compile(rf"^[ \t]++(?:async[ \t]+)?def[ \t]+{name}\b", re.MULTILINE)
        for _, code in reversed(blocks):
            solution = _SOLUTION.search(code)
            if re.search(own, code, re.MULTILINE) or (solution and method.search(code, solution.end())):
                return code
    tagged = [code for tag, code in blocks if tag in _PYTHON]
    return max(tagged or [code for _, code in blocks], key=len, default=None)


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """All closed blocks that hold anything: the tag in lower case, and the lines without the fence's indentation."""
    blocks: list[tuple[str, str]] = []
    lines: list[str] = []
    opening: re.Match[str] | None = None
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if opening is None:
            opening, lines = _OPENING.fullmatch(line), []
            continue
        whole = line.rstrip()
        before = whole.rstrip("`")
        closes = len(whole) - len(before) >= len(opening["fence"]) and "```" not in before  # ```code``` closes nothing
        closes = closes and (bool(before.strip()) or len(before.expandtabs(4)) <= 3)
        line = before.rstrip() if closes else line
        if line or not closes:
            lines.append(line[min(len(opening["indent"]), len(line) - len(line.lstrip(" "))) :])
        if closes:
            code = "\n".join(lines)
            blocks += [(opening["tag"].lower(), code)] if code.strip() else []
            opening = None
    return blocks


def entry_of(task: Task) -> str:
    """The function or class that the tests use: `fn_name`, or the only name that all assertions call; else empty."""
    if task.spec.get("fn_name") or task.spec.get("kind") != "assert":
        return str(task.spec.get("fn_name") or "")
    tests = [str(test) for test in (*task.spec.get("public", ()), *task.spec.get("private", ()))]
    common = frozenset.intersection(*map(_called_names, tests)) if tests else frozenset()
    return next(iter(common)) if len(common) == 1 else ""


@lru_cache(4096)
def _called_names(test: str) -> frozenset[str]:
    """The names that a test calls and neither it nor Python defines; none of a test that is no Python."""
    try:
        nodes = list(ast.walk(ast.parse(test)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.alias))}
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return frozenset(called - stored - defined - arguments - set(dir(builtins)))


def program_for(task: Task, code: str, options: CodeOptions) -> tuple[Program, SandboxLimits]:
    """What the sandbox runs, and its limits. Inputs only: expected values stay outside, but for some assertions. Raises
    `DataError` for a task that cannot be used."""
    if why := why_unusable(task):
        raise DataError(why)
    spec = task.spec
    inputs: list[Any] = []
    for test in cases_of(task, options.split):
        assertion = read_assertion(test) if spec["kind"] == "assert" else None
        if assertion is not None:
            inputs.append({"value": assertion.expression, "truth": assertion.needs_truth})
        else:
            inputs.append(test if spec["kind"] == "assert" else test["input"])
    names = [spec.get(name) or "" for name in ("fn_name", "prelude", "setup")]
    program = Program(code, MODES[spec["kind"]], tuple(inputs), *names)
    return program, replace(options, time_limit_s=float(spec["time_limit"])) if "time_limit" in spec else options


def record_of(kind: str, test: Any, result: Result) -> TestRecord:
    """A small record of one test that was run: how it ended, and where it failed the texts that feedback shows."""
    value, memory, note = result.value, result.memory, show_text(result.note, result.memory)
    if kind == "functional":
        given = ", ".join(show_value(argument) for argument in test["input"])
    else:
        given = str(test["input"]) if kind == "stdin" else str(test).strip().rsplit("\n", 1)[-1]
    given = "" if result.loading else note or given
    if result.ending is Ending.FAILED:
        return TestRecord(TestStatus.WRONG, output=note)
    if result.ending is Ending.RAISED:
        return TestRecord(TestStatus.ERROR, given, error=show_text(result.error, memory))
    if result.ending is Ending.TIMED_OUT:
        return TestRecord(TestStatus.TIMEOUT, given)
    if kind == "functional":
        passed = same_value(value, test["output"])
        output, expected = show_value(value, memory), show_value(test["output"])
    elif kind == "stdin":
        passed = same_output(value, test["output"])
        output, expected = show_text(clip_text(value), memory), show_text(test["output"])
    elif (assertion := read_assertion(test)) is None:
        return TestRecord(TestStatus.PASSED)
    else:
        sent = value if assertion.needs_truth else [value, None]
        value, truth = sent if isinstance(sent, list) and len(sent) == 2 else (sent, None)  # another shape was forged
        passed, given = assertion.holds(value, truth), assertion.expression
        output, expected = show_value(value, memory), assertion.condition(show_value(assertion.expected))
    return TestRecord(TestStatus.PASSED) if passed else TestRecord(TestStatus.WRONG, given, output, expected)


def outcome_of(
    task: Task, completion: Completion, records: Sequence[TestRecord] | None, options: CodeOptions
) -> Outcome:
    """Reward 1 when all tests passed, else 0; the fraction that passed is in the details.

    `records` are those of the tests that ran, the others count as failed; None where the answer holds no program.
    """
    total, passed = len(cases_of(task, options.split)), 0
    if records is None:
        truncated = completion.stop is StopReason.LENGTH
        failure, feedback = "truncated" if truncated else "missing", missing_block_text(truncated)
    else:
        statuses = [record.status for record in records]
        passed = statuses.count(TestStatus.PASSED)
        order = (TestStatus.ERROR, TestStatus.TIMEOUT, TestStatus.WRONG)
        failure = str(next((status for status in order if status in statuses), "none"))
        pick = random.Random(completion.uid) if options.random_cases else None
        feedback = feedback_text(records, cases=options.cases, pick=pick)
    details: dict[str, Any] = {"tests_passed": passed / total, "tests": total, "failure": failure}
    return Outcome(float(passed == total), feedback, details, "" if passed == total else task.user_reply)


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
    alike then learn different things. With 0 the feedback is that there are some.
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
        text = text or "Wrong answer." * bool(wrong)
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
