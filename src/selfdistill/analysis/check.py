"""Checks of a file of tasks before a run: which rows can be used, whether their tests tell right answers from wrong
ones, which prompts fit; and scores of answers from a file."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

from selfdistill.data.chats import ChatRows
from selfdistill.data.lines import CHECKED_ROWS
from selfdistill.data.load import AS_NAMED, RowOptions
from selfdistill.data.reading import read_rows
from selfdistill.data.row import Row
from selfdistill.data.tasks import QUESTIONS, row_converter, row_kind, training_tasks
from selfdistill.envs.base import (
    SOLVED,
    Fault,
    Pair,
    Scored,
    ScoringEnvironment,
    has_reward,
    prepared,
    score_all,
    why_unusable,
)
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.scoring import MODES, entry_of
from selfdistill.errors import DataError, SelfDistillError
from selfdistill.files import json_object, numbered_lines
from selfdistill.prompts.render import Renderer
from selfdistill.runs import read_run
from selfdistill.runs.events import Callback, Phase
from selfdistill.types import ANSWER, Completion, Outcome, Task

SLICE = 32  # answers between two signs of progress
EXAMPLES = 2  # of feedback
UNKNOWN_ID = "unknown_id"
Placed: TypeAlias = Sequence[tuple[str, Task]]
"""Tasks behind their places in the file."""


class TaskRow(NamedTuple):
    """A row and its place: the task, or the error in place of one."""

    place: str
    found: Task | DataError


class TaskRows(Iterable[TaskRow]):
    """All rows of a data set, else the environment's own tasks, read anew in every pass. After one, `left_out` counts
    the answers of a log that became no tasks, by the key of `REASONS`. Raises `DataError` for a file that cannot be
    read."""

    def __init__(self, env: ScoringEnvironment, data: str, options: RowOptions) -> None:
        self.env, self.options, self.left_out = env, options, Counter[str]()
        self.source = options.open(data) if data else None

    def __iter__(self) -> Iterator[TaskRow]:
        if self.source is None:
            yield from (TaskRow(f"task {task.id!r}", task) for task in training_tasks(self.env, ""))
            return
        convert, own = row_converter(self.env), row_kind(self.env) == QUESTIONS
        for place, found in read_rows(self.source, self.options.mapped(convert)):
            if isinstance(found, Task) and own:
                why = why_unusable(self.env, found)
                found = DataError(f"{place}: {why}") if why else prepared(self.env, found)
            yield TaskRow(place, found)
        self.left_out = convert.left_out if isinstance(convert, ChatRows) else Counter()

    @property
    def tasks(self) -> Iterator[Task]:
        """Those of the rows that can be used."""
        return (row.found for row in self if isinstance(row.found, Task))


class Example(NamedTuple):
    """A wrong answer, and the feedback on it."""

    task: str
    answer: str
    feedback: str


class Answer(NamedTuple):
    """An answer to the task `id`, from a file."""

    id: str
    text: str
    place: str


class Score(NamedTuple):
    """The reward of an answer. `failure` names what failed ("none" for a success); without a reward, why there is none:
    unknown_id, or the reason under which a run would drop it, with `fault` as the details."""

    id: str
    reward: float | None
    feedback: str
    failure: str
    fault: str = ""


@dataclass(slots=True)
class CheckReport:
    """What was found. `problems` should be corrected before a run, each with its place; `notes` need not be.

    `references` and `passed` count reference solutions and those that get the reward; `longest` is the longest prompt
    in tokens, None where no tokenizer was given.
    """

    rows: int
    usable: int
    references: int = 0
    passed: int = 0
    longest: int | None = None
    limit: int | None = None
    examples: list[Example] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def every_row(env: ScoringEnvironment, data: str, options: RowOptions = AS_NAMED) -> TaskRows:
    """All rows of a data set, else the environment's own tasks. Raises `DataError` for a file that cannot be read."""
    return TaskRows(env, data, options)


def check_rows(
    env: ScoringEnvironment,
    rows: Iterable[TaskRow],
    callback: Callback,
    *,
    renderer: Renderer | None = None,
    max_prompt_tokens: int = 0,
) -> CheckReport:
    """Scores the reference solution of every row, an empty answer and a wrong one; looks for duplicates and, with a
    renderer, for prompts that do not fit. Rows are read in parts of `CHECKED_ROWS`. Raises `SandboxError`."""
    report, seen, left = CheckReport(0, 0), _Seen(), iter(rows)
    if renderer is not None:
        report.limit = min(max_prompt_tokens, renderer.context_length - 1)
    while part := list(islice(left, CHECKED_ROWS)):
        tasks = [(row.place, row.found) for row in part if isinstance(row.found, Task)]
        report.problems += [str(row.found) for row in part if isinstance(row.found, DataError)]
        report.rows, report.usable = report.rows + len(part), report.usable + len(tasks)
        _find_duplicates(tasks, seen, report)
        if renderer is not None and report.limit is not None:
            _measure_prompts(tasks, renderer, report.limit, report, callback)
        rewarded = [(place, task) for place, task in tasks if has_reward(env, task)]
        _score_references(env, rewarded, report, callback)
        _score_wrong_answers(env, rewarded, report, callback)
    if 0 < report.references < report.usable:
        without = report.usable - report.references
        report.notes.append(f"{without} of {report.usable} rows have no reference solution")
    return report


def read_answers(path: Path) -> list[Answer]:
    """The answers of a JSONL file, `{"id": …, "answer": …}` a line, or of a run's directory; a task may have several.
    Raises `DataError`, `RunError`."""
    if path.is_dir():
        own = (record for record in read_run(path).rollouts() if record.stage == ANSWER and not record.turns)
        return [Answer(record.task, record.completion, f"{path}: {record.uid}") for record in own]
    answers = []
    for line, text in numbered_lines(path, what="the file of answers"):
        row = Row(str(path), line, "answer", json_object(text, f"{path}:{line}"))
        for name in ("id", "answer"):
            if row.name_of(name) is None:
                row.fail(name, "text", "nothing", do='write {"id": …, "answer": …}')
        answers.append(Answer(row.id("id"), row.text("answer"), f"{path}:{line}"))
    return answers


def score_answers(
    env: ScoringEnvironment, rows: Iterable[TaskRow], answers: Sequence[Answer], callback: Callback
) -> Iterator[Score]:
    """One score an answer, in order. Raises `SandboxError`."""
    pairs = answered(rows, answers)
    known = {task.id for task, _ in pairs}
    scored = _scored(env, pairs, "scoring answers", callback)
    for name, _, place in answers:
        if name not in known:
            yield Score(name, None, "", UNKNOWN_ID, f"{place}: no row that can be used has the id {name!r}")
        elif isinstance(found := next(scored), Fault):
            yield Score(name, None, "", str(found.drop), f"{name!r} was not scored: {found.text.strip()}")
        else:
            yield Score(name, found.reward, found.feedback, _failure(found))


def answered(rows: Iterable[TaskRow], answers: Sequence[Answer]) -> list[Pair]:
    """The tasks of the answers, and these as completions; answers to unknown tasks are left out."""
    wanted = {answer.id for answer in answers}
    tasks = {row.found.id: row.found for row in rows if isinstance(row.found, Task) and row.found.id in wanted}
    numbers = defaultdict[str, Iterator[int]](itertools.count)
    return [
        (tasks[name], Completion(f"{name}-{next(numbers[name])}", text)) for name, text, _ in answers if name in tasks
    ]


def _failure(outcome: Outcome) -> str:
    """What failed, as the environment's details name it, else whether anything did."""
    return str(outcome.details.get("failure", "none" if outcome.reward >= SOLVED else "wrong"))


@dataclass(slots=True)
class _Seen:
    """The places of the rows so far, by the hash of prompt and columns, and by that of the prompt."""

    whole: dict[bytes, str] = field(default_factory=dict)
    prompts: dict[bytes, str] = field(default_factory=dict)


def _find_duplicates(tasks: Placed, seen: _Seen, report: CheckReport) -> None:
    """Rows with the prompt of an earlier one: the same task twice where their tests are the same too."""
    for place, task in tasks:
        columns = {name: value for name, value in task.spec.items() if name != "id"}
        prompt = _digest(repr(task.messages))
        key = _digest(json.dumps(columns, sort_keys=True, default=str), prompt)
        if key in seen.whole:
            report.problems.append(f"{place}: the same prompt and tests as {seen.whole[key]}")
        elif prompt in seen.prompts:
            report.notes.append(f"{place}: the same prompt as {seen.prompts[prompt]}, with other tests")
        seen.whole.setdefault(key, place)
        seen.prompts.setdefault(prompt, place)


def _digest(text: str, before: bytes = b"") -> bytes:
    return sha256(before + text.encode("utf-8", "backslashreplace")).digest()[:16]


def _measure_prompts(tasks: Placed, renderer: Renderer, limit: int, report: CheckReport, callback: Callback) -> None:
    """Prompts beyond the limit, which a run skips."""
    report.longest = report.longest or 0
    for number, (place, task) in enumerate(tasks):
        if number % SLICE == 0:
            callback(Phase("measuring prompts", number, len(tasks)))
        try:
            tokens = len(renderer.prompt(task.messages))
        except SelfDistillError as error:
            report.problems.append(f"{place}: {error}")
            continue
        report.longest = max(report.longest, tokens)
        if tokens > limit:
            report.problems.append(f"{place}: the prompt has {tokens:,} tokens; a run skips those over {limit:,}")


def _score_references(env: ScoringEnvironment, tasks: Placed, report: CheckReport, callback: Callback) -> None:
    """Reference solutions that do not get the reward, by all tests of their row: of the row, else of the
    environment."""
    env = env.with_split("all") if isinstance(env, CodeEnvironment) else env
    known: Callable[[Task], str] = getattr(env, "reference", lambda task: "")
    own = [(place, task, text) for place, task in tasks if (text := task.demonstration.strip() or known(task))]
    report.references += len(own)
    pairs = [(task, Completion(f"{task.id}-reference", text)) for _, task, text in own]
    scores = _scored(env, pairs, "scoring reference solutions", callback)
    for (place, *_), pair, scored in zip(own, pairs, scores, strict=True):
        if isinstance(scored, Outcome) and _failure(scored) == "timeout":  # beside others it had half a processor
            (scored,) = score_all(env, [pair])
        if isinstance(scored, Fault):
            report.problems.append(f"{place}: the reference solution was not scored: {_last_line(scored)}")
        elif scored.reward >= SOLVED:
            report.passed += 1
        else:
            text = f"{place}: the reference solution fails: {_failure(scored)}\n{scored.feedback}"
            report.problems.append(text.strip())


def _score_wrong_answers(env: ScoringEnvironment, tasks: Placed, report: CheckReport, callback: Callback) -> None:
    """Rows that an empty answer passes, or a program that does nothing: where a function is called, one that returns
    None. Some of the feedback on them becomes the examples."""
    tried = [(place, task, "") for place, task in tasks]
    for place, task in tasks:
        if task.spec.get("kind") in MODES:
            name = entry_of(task)
            code = f"def {name}(*arguments, **named):\n    return None" if name else "pass"
            tried.append((place, task, f"```python\n{code}\n```"))
    pairs = [(task, Completion(f"{task.id}-wrong", text)) for _, task, text in tried]
    scores = _scored(env, pairs, "scoring wrong answers", callback)
    for (place, task, text), scored in zip(tried, scores, strict=True):
        if isinstance(scored, Fault):
            report.problems.append(f"{place}: a wrong answer was not scored: {_last_line(scored)}")
        elif scored.reward >= SOLVED:
            what = "a program that does nothing" if text else "an empty answer"
            report.problems.append(f"{place}: {what} passes\n{text}".strip())
        elif len(report.examples) < EXAMPLES and (text or task.spec.get("kind") not in MODES):
            report.examples.append(Example(task.id, text, scored.feedback))


def _scored(env: ScoringEnvironment, pairs: Sequence[Pair], what: str, callback: Callback) -> Iterator[Scored]:
    for start in range(0, len(pairs), SLICE):
        callback(Phase(what, start, len(pairs)))
        yield from score_all(env, pairs[start : start + SLICE])


def _last_line(fault: Fault) -> str:
    return fault.text.strip().rpartition("\n")[2]
