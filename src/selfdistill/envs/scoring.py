"""From an answer and the tests of its task to a reward, the feedback and numbers for the records.

A task's `spec` is JSON; this is all that is read of it:

    kind        "functional" | "stdin" | "assert"
    public      tests that training may use        {"input": [arguments], "output": value}   functional
    private     tests kept for evaluation          {"input": text, "output": text}           stdin
                (either may be empty)              "assert f(1) == 2"                        assert
    fn_name     the function to call               functional (assert: the one to look for in an answer, optional)
    prelude     code that runs before the answer, setup: after it, in its namespace          optional
    time_limit  seconds for one test                                                         optional
"""

from __future__ import annotations

import ast
import builtins
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

from selfdistill.envs.assertions import Assertion, read_assertion
from selfdistill.envs.base import Fault, Scored, guarded
from selfdistill.envs.compare import same_output, same_value
from selfdistill.envs.extract import extract_code
from selfdistill.envs.feedback import TestRecord, TestStatus, clip_text, feedback_text, missing_block_text
from selfdistill.envs.sandbox.limits import MAX_SECONDS, MIN_SECONDS, SandboxLimits
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program, Result
from selfdistill.envs.shown import show_text, show_value
from selfdistill.errors import DataError, ProgramLostError
from selfdistill.prompts.context import without_thinking
from selfdistill.types import Completion, DropReason, Outcome, StopReason, Task

TestSplit = Literal["public", "private", "all"]
MODES = {"functional": Mode.CALL, "stdin": Mode.STDIN, "assert": Mode.ASSERT}


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """`split`: the tests that decide; one that a task lacks gives way to the other. `cases`: how many wrong answers
    the feedback shows, the shortest ones or, with `random_cases`, ones drawn anew for every completion."""

    split: TestSplit = "public"
    cases: int = 2
    random_cases: bool = False
    limits: SandboxLimits = field(default_factory=SandboxLimits)


def score_batch(
    sandbox: Sandbox, pairs: Sequence[tuple[Task, Completion]], options: ScoringOptions | None = None
) -> list[Scored]:
    """One outcome a pair, in order, scored in parallel; a `Fault` for an answer that cannot be scored. Raises DataError
    for a spec without tests, SandboxError.

    Equal programs for one task are run once: the sandbox repeats itself, and a policy that has learned does too.
    """
    options = options or ScoringOptions()
    outcomes: dict[int, Scored] = {}
    same: dict[tuple[str, str], list[int]] = {}
    for index, (task, completion) in enumerate(pairs):
        code = guarded(partial(program_text, task, completion))
        if isinstance(code, Fault):
            outcomes[index] = code
        elif code is None:
            outcomes[index] = missing_outcome(completion, total=len(cases_of(task, options.split)))
        else:
            same.setdefault((task.id, code), []).append(index)
    tasks = [pairs[indices[0]][0] for indices in same.values()]
    jobs = [program_for(task, code, options) for task, (_, code) in zip(tasks, same, strict=True)]

    def use(job: int, results: Iterable[Result]) -> list[TestRecord] | Fault:
        kind, tests = tasks[job].spec["kind"], cases_of(tasks[job], options.split)
        try:
            return guarded(lambda: records_of(kind, tests, results))
        except ProgramLostError as error:
            return Fault(DropReason.PROGRAM_LOST, str(error))

    for indices, task, records in zip(same.values(), tasks, sandbox.run_each(jobs, use), strict=True):
        for index in indices:
            if isinstance(records, Fault):
                outcomes[index] = records
                continue
            total = len(cases_of(task, options.split))
            outcomes[index] = guarded(partial(outcome_of, records, total, pairs[index][1], options))
    return [outcomes[index] for index in range(len(pairs))]


def cases_of(task: Task, split: TestSplit) -> list[Any]:
    """The tests of `split`, or of the other one when it is empty. Raises DataError when there are none at all."""
    public, private = list(task.spec.get("public", ())), list(task.spec.get("private", ()))
    tests = {"public": public or private, "private": private or public, "all": public + private}[split]
    if not tests:
        raise DataError(f"task {task.id!r} has no tests", why="every answer would count as correct")
    return tests


def program_text(task: Task, completion: Completion) -> str | None:
    """The program of an answer: taken from the very text that others may read."""
    return extract_code(without_thinking(completion.text), entry_of(task))


def entry_of(task: Task) -> str:
    """The function or class that the tests use: `fn_name`, or the only name that all assertions call; else empty."""
    if task.spec.get("fn_name") or task.spec.get("kind") != "assert":
        return str(task.spec.get("fn_name") or "")
    tests = [str(test) for test in (*task.spec.get("public", ()), *task.spec.get("private", ()))]
    common = frozenset.intersection(*map(called_names, tests)) if tests else frozenset()
    return next(iter(common)) if len(common) == 1 else ""


@lru_cache(4096)
def called_names(test: str) -> frozenset[str]:
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


def program_for(task: Task, code: str, options: ScoringOptions) -> tuple[Program, SandboxLimits]:
    """What the sandbox is to run: inputs only, for expected values stay on this side, but for some assertions."""
    spec = task.spec
    if spec.get("kind") not in MODES:
        raise DataError(f"task {task.id!r} has an unknown kind of tests", got=spec.get("kind"), do=f"use {list(MODES)}")
    tests = cases_of(task, options.split)
    program = Program(
        code=code, mode=MODES[spec["kind"]], entry=spec.get("fn_name") or "",
        inputs=tuple(_assert_input(test) if spec["kind"] == "assert" else test["input"] for test in tests),
        prelude=spec.get("prelude") or "", setup=spec.get("setup") or "",
    )  # fmt: skip
    return program, _limits(task, options.limits)


def _limits(task: Task, limits: SandboxLimits) -> SandboxLimits:
    seconds = task.spec.get("time_limit")
    if seconds is None:
        return limits
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        what = f"task {task.id!r}: time_limit must be a number of seconds from {MIN_SECONDS:g} to {MAX_SECONDS:g}"
        raise DataError(what, got=repr(seconds)[:80])
    return replace(limits, time_s=float(seconds))


def _assert_input(test: str) -> str | dict[str, Any]:
    assertion = read_assertion(test)
    return {"value": assertion.expression, "truth": assertion.asks_truth} if assertion else test


def records_of(kind: str, tests: Sequence[Any], results: Iterable[Result]) -> list[TestRecord]:
    """One small record for each test that was run; the rest of the tests count as failed."""
    return [_record(kind, test, result) for test, result in zip(tests, results, strict=False)]


def outcome_of(records: Sequence[TestRecord], total: int, completion: Completion, options: ScoringOptions) -> Outcome:
    """Reward 1 when all `total` tests passed, else 0; the fraction that passed is in the details."""
    passed = sum(record.status is TestStatus.PASSED for record in records)
    order = (TestStatus.ERROR, TestStatus.TIMEOUT, TestStatus.WRONG)
    failure = next((status for status in order if any(record.status is status for record in records)), "none")
    pick = random.Random(completion.uid) if options.random_cases else None
    return Outcome(
        reward=float(passed == total),
        feedback=feedback_text(records, cases=options.cases, pick=pick),
        details={"tests_passed": passed / total, "tests": total, "failure": str(failure)},
    )


def missing_outcome(completion: Completion, total: int) -> Outcome:
    """For an answer without a program."""
    truncated = completion.stop is StopReason.LENGTH
    details = {"tests_passed": 0.0, "tests": total, "failure": "truncated" if truncated else "missing"}
    return Outcome(reward=0.0, feedback=missing_block_text(truncated), details=details)


def show_input(kind: str, test: Any) -> str:
    """A test's input as feedback shows it: `[3, 1, 2], 'a b'` for arguments, the text itself for standard input."""
    if kind == "functional":
        return ", ".join(show_value(argument) for argument in test["input"])
    return str(test["input"]) if kind == "stdin" else str(test).strip().rsplit("\n", 1)[-1]


def _record(kind: str, test: Any, result: Result) -> TestRecord:
    note = show_text(result.note, result.memory)
    shown = "" if result.loading else note or show_input(kind, test)
    if result.ending is Ending.FAILED:
        return TestRecord(TestStatus.WRONG, output=note)
    if result.ending is Ending.RAISED:
        return TestRecord(TestStatus.ERROR, input=shown, error=show_text(result.error, result.memory))
    if result.ending is Ending.TIMED_OUT:
        return TestRecord(TestStatus.TIMEOUT, input=shown)
    if kind == "assert":
        return _assert_record(test, shown, result)
    functional, expected = kind == "functional", test["output"]
    same = same_value(result.value, expected) if functional else same_output(result.value, expected)
    status = TestStatus.PASSED if same else TestStatus.WRONG
    output = (
        show_value(result.value, result.memory) if functional else show_text(clip_text(result.value), result.memory)
    )
    return TestRecord(
        status, input=shown, output=output, expected=show_value(expected) if functional else show_text(expected)
    )


def _assert_record(test: str, shown: str, result: Result) -> TestRecord:
    assertion = read_assertion(test)
    if assertion is None:
        return TestRecord(TestStatus.PASSED, input=shown)
    sent = result.value if assertion.asks_truth else [result.value, None]
    value, truth = sent if isinstance(sent, list) and len(sent) == 2 else (sent, None)  # another shape was forged
    if assertion.holds(value, truth):
        return TestRecord(TestStatus.PASSED, input=shown)
    output, expected = show_value(value, result.memory), assertion_text(assertion)
    return TestRecord(TestStatus.WRONG, input=assertion.expression, output=output, expected=expected)


def assertion_text(assertion: Assertion) -> str:
    """What an assertion expected, as feedback shows it."""
    shown = show_value(assertion.expected)
    plain = {"true": "a true value", "false": "a false value", "==": shown, "is": shown}
    text = plain.get(assertion.relation, f"{assertion.relation} {shown}")
    return f"{text} ({assertion.message})" if assertion.message else text
