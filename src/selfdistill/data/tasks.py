"""The tasks of a run: where they come from, which can be used, and in which order steps draw them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

from selfdistill.data import lines
from selfdistill.data.chats import ChatRows, FromLog, chat_tasks
from selfdistill.data.load import AS_NAMED, RowOptions, question_task
from selfdistill.data.reading import BadRow, Convert, Drawn, LazyTasks, load_rows
from selfdistill.data.rows import row_to_task
from selfdistill.envs.base import Environment, prepared, tasks_of, why_unusable
from selfdistill.envs.chats import ChatOptions
from selfdistill.errors import ConfigError, DataError, EnvError, ModelError
from selfdistill.plugins import refuse_value
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import FixedCompletion, Stage
from selfdistill.runs.events import Callback, Note
from selfdistill.types import Message, RolloutGroup, Task, TokenIds

QUESTIONS = "questions"  # whose columns the environment reads
COMPARED = 100  # tasks of a long set that a resume compares
ORDERS = 16  # of passes, which are kept: they follow from their keys
_orders: dict[tuple[int, int | str, int], array[int]] = {}
KINDS = (QUESTIONS, "programs", "conversations")


class NoneFits(DataError):
    """Every prompt is longer than the model reads."""


def training_tasks(env: Environment, data: Any, options: RowOptions = AS_NAMED) -> Sequence[Task]:
    """The tasks of `data`, else the environment's own. Raises `DataError`, `ConfigError` when there are none."""
    tasks = data_tasks(env, data, options) if data else tasks_of(env, "train")
    if not tasks:
        do = "name a file of tasks: data=…, or --data my_tasks.jsonl on the command line"
        raise ConfigError(f"the environment {env.name!r} has no tasks of its own", do=do)
    return tasks


def data_tasks(env: Environment, data: Any, options: RowOptions = AS_NAMED) -> Sequence[Task]:
    """The tasks of a source as the model reads them. Raises `DataError`, also for a row to which no answer can be
    scored; of a long source that is known of the first rows."""
    if isinstance(data, str):
        refuse_value(data, "data")
    tasks = row_tasks(env, data, options)
    if row_kind(env) != QUESTIONS:
        return tasks
    checked = tasks.first(lines.FIRST_ROWS) if isinstance(tasks, LazyTasks) else tasks
    if why := next(iter(bad_rows(env, checked).values()), ""):
        raise _none_usable(f"{data}: {why}" if isinstance(data, str) else why)
    prepare = partial(prepared, env)
    return tasks.prepared(prepare) if isinstance(tasks, LazyTasks) else [prepare(task) for task in tasks]


def row_kind(env: Environment) -> str:
    """What the rows of data are to an environment. Raises `EnvError`."""
    kind: str = getattr(env, "row_kind", QUESTIONS)
    if kind not in KINDS:
        what = f"row_kind of the environment {env.name!r} should be one of {', '.join(KINDS)}"
        raise EnvError(what, got=repr(kind)[:80], do="leave it out for rows that the environment reads itself")
    return kind


def row_converter(env: Environment, *, compiled: bool = True) -> Convert:
    """How an environment reads a row."""
    kind = row_kind(env)
    if kind == "conversations":
        return ChatRows(_filters(env))
    return partial(row_to_task, compiled=compiled) if kind == "programs" else question_task


def row_tasks(env: Environment, data: Any, options: RowOptions = AS_NAMED) -> Sequence[Task]:
    """The tasks of the rows of a source, by what a row is to the environment. Raises `DataError`."""
    if row_kind(env) == "conversations":
        return chat_tasks(data, options, _filters(env))
    opened = options.open(data)
    compiled = len(opened.rows) <= lines.CHECKED_ROWS
    return load_rows(opened, options.mapped(row_converter(env, compiled=compiled)))


def described_tasks(tasks: Sequence[Task]) -> str:
    """What stands in the config for tasks in memory: equal for equal tasks, so that a resume takes no others. Of a long
    set `COMPARED` tasks are read, evenly spread."""
    digest, apart = sha256(), -(-len(tasks) // COMPARED) if isinstance(tasks, LazyTasks) else 1
    for place in range(0, len(tasks), apart):
        digest.update(repr(tasks[place]).encode("utf-8", "backslashreplace"))
    return f"{len(tasks)} tasks, sha256 {digest.hexdigest()[:16]}"


def _filters(env: Environment) -> ChatOptions:
    options = getattr(env, "options", None)
    return options if isinstance(options, ChatOptions) else ChatOptions()


def bad_rows(env: Environment, tasks: Sequence[Task]) -> dict[str, str]:
    """By task id why no answer can be scored, of the rows that cannot be used and the tasks for which the environment
    knows that."""
    reasons = {task.id: task.why if isinstance(task, BadRow) else why_unusable(env, task) for task in tasks}
    return {name: why for name, why in reasons.items() if why}


def too_long(tasks: Sequence[Task], renderer: Renderer, longest: int) -> dict[str, str]:
    """By task id why its prompt cannot be read, of tasks that were not measured when the run was opened."""
    limit, reasons = min(longest, renderer.context_length - 1), dict[str, str]()
    for task in tasks:
        try:
            if (tokens := len(renderer.prompt(task.messages))) > limit:
                reasons[task.id] = f"the prompt has {tokens} tokens, more than {limit}"
        except ModelError as error:
            reasons[task.id] = str(error)
    return reasons


def all_usable(env: Environment, tasks: Sequence[Task], from_file: bool) -> bool:
    """Whether every one of a run's tasks is known to be usable: those of a file of up to `CHECKED_ROWS` rows are, since
    they were checked when it was read; those of a longer file are checked when they are drawn."""
    return len(tasks) <= lines.CHECKED_ROWS and (from_file or not bad_rows(env, tasks))


def fitting_tasks(tasks: Sequence[Task], renderer: Renderer, longest: int, callback: Callback) -> Sequence[Task]:
    """The tasks whose prompts fit; a note counts the others. Raises `NoneFits` when none does. Of a long set the first
    are measured, and the others when they are drawn.

    `longest` is the most tokens a prompt may have; one token of the context must be left for the answer.
    """
    if isinstance(tasks, LazyTasks):
        callback(Note(f"{len(tasks):,} tasks: those behind the first {lines.FIRST_ROWS:,} are checked when drawn"))
        fitting_tasks(tasks[: lines.FIRST_ROWS], renderer, longest, callback)
        return tasks
    limit = min(longest, renderer.context_length - 1)
    fitting = [task for task in tasks if len(written(renderer, task, task.messages)) <= limit]
    if not fitting:
        got, do = f"{len(tasks)} tasks, all longer than {limit} tokens", "shorten them, or take a model that reads more"
        why = f"the model reads {renderer.context_length} tokens, context.max_prompt_tokens is {longest}"
        raise NoneFits("no question fits the model", got=got, why=why, do=do)
    if len(fitting) < len(tasks):
        callback(Note(f"{len(tasks) - len(fitting)} of {len(tasks)} tasks are skipped: longer than {limit} tokens"))
    return fitting


def usable_tasks(tasks: Sequence[Task], bad: Mapping[str, str], callback: Callback, *, least: int = 1) -> list[Task]:
    """The tasks that are not among the `bad` ones, by id with the reason; a note counts these. Raises `DataError` when
    fewer than `least` are left."""
    usable = [task for task in tasks if task.id not in bad]
    if bad:
        why = next(iter(bad.values()))
        if len(usable) < least:
            raise _none_usable(why)
        callback(Note(f"{len(bad)} of {len(tasks)} tasks are left out, no answer to them can be scored: {why}"))
    return usable


def _none_usable(why: str) -> DataError:
    do = "correct the row, leave it out, or name its columns (docs/data.md)"
    return DataError("no answer to a task can be scored", got=why, do=do)


def note_shared(tasks: Sequence[Task], held_out: Sequence[Task], callback: Callback) -> None:
    """A note counts the held-out tasks that have the prompt of a training task; a long set is not searched for them."""
    if isinstance(tasks, Drawn):
        return
    prompts = {task.messages for task in tasks}
    shared = sum(task.messages in prompts for task in held_out)
    if shared:
        callback(Note(f"{shared} of {len(held_out)} held-out tasks are trained on: they have the same prompts"))


def note_left_out(tasks: Sequence[Task], callback: Callback) -> None:
    """A note counts the answers of a log that became no tasks."""
    if isinstance(tasks, FromLog) and tasks.left_out:
        callback(Note(tasks.summary))


def check_conversations(
    renderer: Renderer, tasks: Sequence[Task], conversations: Callable[[Task], Sequence[tuple[Message, ...]]]
) -> None:
    """Renders the conversations about one task of each kind, by the roles in its prompt. Raises `ModelError` for one
    that the chat template refuses: better now than after hours of sampling."""
    looked_at = tasks.first(lines.FIRST_ROWS) if isinstance(tasks, Drawn) else tasks
    kinds = {tuple(message.role for message in task.messages): task for task in reversed(looked_at)}
    for task in kinds.values():
        for messages in conversations(task):
            written(renderer, task, messages)


def written(renderer: Renderer, task: Task, messages: Sequence[Message]) -> TokenIds:
    """The prompt of a conversation about a task. Raises `ModelError`, which names the task."""
    try:
        return renderer.prompt(messages)
    except ModelError as error:
        what = f"a prompt of task {task.id!r} cannot be written: {error.what}"
        raise ModelError(what, got=error.got, why=error.why, do=error.do) from error


def draw_tasks(tasks: Sequence[Task], count: int, step: int, seed: int | str) -> list[Task]:
    """The tasks of one step: pass after pass over all of them, each in an order of its own. They follow from the step
    alone, so that a resumed run draws what the uninterrupted one would have drawn."""
    found = list[Task]()
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, len(tasks))
        if (key := (len(tasks), seed, epoch)) not in _orders:
            while len(_orders) >= ORDERS:
                _orders.pop(next(iter(_orders)))
            _orders[key] = array("I", range(len(tasks)))
            random.Random(f"{seed} {epoch}").shuffle(_orders[key])
        found.append(tasks[_orders[key][place]])
    return found


def wanted_answers(
    tasks: Sequence[Task], stages: Sequence[Stage], rollouts: int, draws: int, seed: int
) -> tuple[int, int]:
    """How many answers the first stage samples, and how many are fixed, when `draws` tasks have been drawn in all; what
    the other stages request depends on these. Of a long set, or a mixture, it is estimated from the first tasks."""
    if isinstance(tasks, Drawn):
        first = tasks.first(lines.FIRST_ROWS)
        sampled, given = wanted_answers(first, stages, rollouts, len(first), seed)
        return sampled * draws // len(first), given * draws // len(first)
    passes, rest = divmod(draws, len(tasks))
    begun = {task.id for task in draw_tasks(tasks, len(tasks), passes, seed)[:rest]}
    counts = {True: 0, False: 0}  # by whether they are fixed
    for task in tasks if stages else ():
        for request in stages[0].requests(RolloutGroup(task, ()), rollouts):
            counts[isinstance(request, FixedCompletion)] += passes + (task.id in begun)
    return counts[False], counts[True]
