"""Looking at a file of tasks before a run: which rows can be used, whether their tests tell right from wrong, which
prompts fit; and scoring answers that are given."""

from __future__ import annotations

import builtins
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from keyword import iskeyword
from pathlib import Path

from selfdistill.data.row import Row, read_rows
from selfdistill.data.rows import row_to_task
from selfdistill.data.tasks import question_task, training_tasks
from selfdistill.envs.base import Environment, Fault, Pair, Scored, score_all, why_unusable
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.scoring import MODES
from selfdistill.errors import DataError, SelfDistillError
from selfdistill.files import json_object, numbered_lines
from selfdistill.prompts.render import Renderer
from selfdistill.runs.events import Callback, Phase
from selfdistill.training.rollouts import SOLVED
from selfdistill.types import Completion, Outcome, Task

SLICE = 32  # answers between two signs of progress
EXAMPLES = 2  # of feedback
UNKNOWN_ID = "unknown_id"
_CALLED = re.compile(r"(?<![.\w])([A-Za-z_]\w*)\s*\(")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A row and its place: the task, or the error that says why there is none."""

    place: str
    found: Task | DataError


@dataclass(frozen=True, slots=True)
class Example:
    """A wrong answer, and the feedback on it."""

    task: str
    answer: str
    feedback: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found. `problems` are what should be corrected before a run, each with its place; `notes` need not be.

    `references` and `passed` count reference solutions and those that get the reward; `longest` is the longest prompt
    in tokens, None where no tokenizer was given.
    """

    rows: int
    usable: int
    references: int
    passed: int
    longest: int | None
    limit: int | None
    examples: tuple[Example, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the task `id`, from a file."""

    id: str
    text: str
    place: str


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer gets. `failure` names what failed ("none" for a success); without a reward, why there is none:
    unknown_id, or the reason under which a run would drop it, with `fault` saying more."""

    id: str
    reward: float | None
    feedback: str
    failure: str
    fault: str = ""


@dataclass
class _Findings:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def every_row(env: Environment, data: str) -> list[TaskRow]:
    """All rows of a data file, else the environment's own tasks. Raises `DataError` for a file that cannot be read."""
    if not data:
        return [TaskRow(f"task {task.id!r}", task) for task in training_tasks(env, "")]
    path = Path(data)
    code = isinstance(env, CodeEnvironment)
    convert = partial(row_to_task, modules=env.sandbox.modules) if isinstance(env, CodeEnvironment) else question_task
    rows = []
    for line, found in read_rows(path, numbered_lines(path), convert):
        why = "" if code or isinstance(found, DataError) else why_unusable(env, found)
        rows.append(TaskRow(f"{path}:{line}", DataError(f"{path}:{line}: {why}") if why else found))
    return rows


def check_rows(
    env: Environment,
    rows: Sequence[TaskRow],
    callback: Callback,
    *,
    renderer: Renderer | None = None,
    max_prompt_tokens: int = 0,
) -> CheckReport:
    """Scores the reference solution of every row, an empty answer and a wrong one; looks for duplicates and, with a
    renderer, for prompts that do not fit. Raises `SandboxError`."""
    tasks = [(row.place, row.found) for row in rows if isinstance(row.found, Task)]
    found = _Findings(problems=[str(row.found) for row in rows if isinstance(row.found, DataError)])
    _duplicates(tasks, found)
    limit = min(max_prompt_tokens, renderer.context_length - 1) if renderer else None
    longest = _lengths(tasks, renderer, limit, found, callback) if renderer and limit is not None else None
    references, passed = _references(env, tasks, found, callback)
    _wrong_answers(env, tasks, found, callback)
    return CheckReport(
        rows=len(rows),
        usable=len(tasks),
        references=references,
        passed=passed,
        longest=longest,
        limit=limit,
        examples=tuple(found.examples),
        problems=tuple(found.problems),
        notes=tuple(found.notes),
    )


def read_answers(path: Path) -> list[Answer]:
    """The answers of a JSONL file, `{"id": …, "answer": …}` a line; a task may have several. Raises `DataError`."""
    answers = []
    for line, text in numbered_lines(path, what="the file of answers"):
        row = Row(path, line, "answer", json_object(text, f"{path}:{line}"))
        for name in ("id", "answer"):
            if row.name_of(name) is None:
                row.fail(name, "text", "nothing", do='write {"id": …, "answer": …}')
        answers.append(Answer(row.id("id"), row.text("answer"), f"{path}:{line}"))
    return answers


def score_answers(
    env: Environment, rows: Sequence[TaskRow], answers: Sequence[Answer], callback: Callback
) -> Iterator[Score]:
    """One score an answer, in order. Raises `SandboxError`."""
    tasks = {row.found.id: row.found for row in rows if isinstance(row.found, Task)}
    counts: Counter[str] = Counter()
    for start in range(0, len(answers), SLICE):
        callback(Phase("scoring answers", start, len(answers)))
        part = answers[start : start + SLICE]
        pairs = []
        for answer in part:
            if answer.id in tasks:
                pairs.append((tasks[answer.id], Completion(f"{answer.id}-{counts[answer.id]}", answer.text)))
                counts[answer.id] += 1
        judged = iter(score_all(env, pairs))
        for answer in part:
            if answer.id in tasks:
                yield _score(answer.id, next(judged))
            else:
                fault = f"{answer.place}: no row that can be used has the id {answer.id!r}"
                yield Score(answer.id, None, "", UNKNOWN_ID, fault)


def _score(name: str, judged: Scored) -> Score:
    if isinstance(judged, Fault):
        return Score(name, None, "", str(judged.drop), f"{name!r} was not scored: {judged.text.strip()}")
    return Score(name, judged.reward, judged.feedback, _failure(judged))


def _failure(outcome: Outcome) -> str:
    """What failed, as the environment says, else whether anything did."""
    return str(outcome.details.get("failure", "none" if outcome.reward >= SOLVED else "wrong"))


def _duplicates(tasks: Sequence[tuple[str, Task]], found: _Findings) -> None:
    """Rows with the prompt of an earlier one: the same task twice where their tests are the same too."""
    whole, prompts = dict[tuple[object, str], str](), dict[object, str]()
    for place, task in tasks:
        key = (task.messages, json.dumps(task.spec, sort_keys=True, default=str))
        if key in whole:
            found.problems.append(f"{place}: the same prompt and tests as {whole[key]}")
        elif task.messages in prompts:
            found.notes.append(f"{place}: the same prompt as {prompts[task.messages]}, with other tests")
        whole.setdefault(key, place)
        prompts.setdefault(task.messages, place)


def _lengths(
    tasks: Sequence[tuple[str, Task]], renderer: Renderer, limit: int, found: _Findings, callback: Callback
) -> int:
    """The longest prompt in tokens; a run skips those beyond the limit."""
    longest = 0
    for number, (place, task) in enumerate(tasks):
        if number % SLICE == 0:
            callback(Phase("measuring prompts", number, len(tasks)))
        try:
            tokens = len(renderer.prompt(task.messages))
        except SelfDistillError as error:
            found.problems.append(f"{place}: {error}")
            continue
        longest = max(longest, tokens)
        if tokens > limit:
            found.problems.append(f"{place}: the prompt has {tokens:,} tokens; a run skips those over {limit:,}")
    return longest


def _references(
    env: Environment, tasks: Sequence[tuple[str, Task]], found: _Findings, callback: Callback
) -> tuple[int, int]:
    """How many rows have a reference solution, and of how many it gets the reward, by all tests of the row."""
    score = env.with_split("all") if isinstance(env, CodeEnvironment) else env
    own = [(place, task) for place, task in tasks if task.demonstration.strip()]
    pairs = [(task, Completion(f"{task.id}-reference", task.demonstration)) for _, task in own]
    passed = 0
    verdicts = _judged(score, pairs, "scoring reference solutions", callback)
    for (place, _), pair, judged in zip(own, pairs, verdicts, strict=True):
        if isinstance(judged, Outcome) and _failure(judged) == "timeout":  # beside others it had half a processor
            (judged,) = score_all(score, [pair])
        if isinstance(judged, Fault):
            found.problems.append(f"{place}: the reference solution was not scored: {_last_line(judged)}")
        elif judged.reward >= SOLVED:
            passed += 1
        else:
            found.problems.append(
                f"{place}: the reference solution fails: {_failure(judged)}\n{judged.feedback}".strip()
            )
    if 0 < len(own) < len(tasks):
        found.notes.append(f"{len(tasks) - len(own)} of {len(tasks)} rows have no reference solution")
    return len(own), passed


def _wrong_answers(env: Environment, tasks: Sequence[tuple[str, Task]], found: _Findings, callback: Callback) -> None:
    """An empty answer has to fail, and a program that does nothing; some of the feedback on them is shown."""
    tried = [(place, task, "") for place, task in tasks]
    tried += [(place, task, _idle(task)) for place, task in tasks if task.spec.get("kind") in MODES]
    pairs = [(task, Completion(f"{task.id}-wrong", text)) for _, task, text in tried]
    verdicts = _judged(env, pairs, "scoring wrong answers", callback)
    for (place, task, text), judged in zip(tried, verdicts, strict=True):
        if isinstance(judged, Fault):
            found.problems.append(f"{place}: a wrong answer was not scored: {_last_line(judged)}")
        elif judged.reward >= SOLVED:
            what = "a program that does nothing" if text else "an empty answer"
            found.problems.append(f"{place}: {what} passes\n{text}".strip())
        elif len(found.examples) < EXAMPLES and (text or task.spec.get("kind") not in MODES):
            found.examples.append(Example(task.id, text, judged.feedback))


def _judged(env: Environment, pairs: Sequence[Pair], what: str, callback: Callback) -> list[Scored]:
    judged: list[Scored] = []
    for start in range(0, len(pairs), SLICE):
        callback(Phase(what, start, len(pairs)))
        judged += score_all(env, pairs[start : start + SLICE])
    return judged


def _idle(task: Task) -> str:
    """A program that does nothing, in whole: where a function is called, one that returns None."""
    tests = [*task.spec.get("public", ()), *task.spec.get("private", ())]
    name = task.spec.get("fn_name") or (_called(tests[0]) if task.spec["kind"] == "assert" and tests else "")
    code = f"def {name}(*arguments, **named):\n    return None" if name else "pass"
    return f"```python\n{code}\n```"


def _called(test: str) -> str:
    """The first function that a test calls and Python does not have."""
    names = [name for name in _CALLED.findall(test) if not hasattr(builtins, name) and not iskeyword(name)]
    return names[0] if names else ""


def _last_line(fault: Fault) -> str:
    return fault.text.strip().rpartition("\n")[2]
