"""The tasks of a run: where they come from, which can be used, and in which order steps draw them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from selfdistill.data import rows
from selfdistill.data.chats import ChatTasks, chat_tasks
from selfdistill.data.load import AS_NAMED, RowOptions, load_tasks, question_rows
from selfdistill.envs.base import Environment, prepared, tasks_of, why_unusable
from selfdistill.envs.chats import ChatsEnvironment
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.turns import AroundScoring
from selfdistill.errors import ConfigError, DataError, ModelError
from selfdistill.plugins import refuse_value
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import FixedCompletion, Stage
from selfdistill.runs.events import Callback, Note
from selfdistill.types import Message, RolloutGroup, Task, TokenIds


class NoneFits(DataError):
    """Every prompt is longer than the model reads."""


def training_tasks(env: Environment, data: Any, options: RowOptions = AS_NAMED) -> list[Task]:
    """The tasks of `data`, else the environment's own. Raises `DataError`, `ConfigError` when there are none."""
    tasks = data_tasks(env, data, options) if data else tasks_of(env, "train")
    if not tasks:
        do = "name a file of tasks: data=…, or --data my_tasks.jsonl on the command line"
        raise ConfigError(f"the environment {env.name!r} has no tasks of its own", do=do)
    return tasks


def data_tasks(env: Environment, data: Any, options: RowOptions = AS_NAMED) -> list[Task]:
    """The tasks of a source as in `load_data`, in the form that the environment reads. Raises `DataError`, also for a
    row to which no answer can be scored."""
    if isinstance(data, str):
        refuse_value(data, "data")
    scorer = env.env if isinstance(env, AroundScoring) else env
    if isinstance(scorer, CodeEnvironment):
        return load_tasks(data, options)
    if isinstance(env, ChatsEnvironment):
        return chat_tasks(data, options, env.options)
    tasks = question_rows(data, options)
    why = next(filter(None, (why_unusable(env, task) for task in tasks[: rows.CHECKED_ROWS])), "")
    if why:
        raise _none_usable(f"{data}: {why}" if isinstance(data, str) else why)
    return [prepared(env, task) for task in tasks]


def bad_rows(env: Environment, tasks: Sequence[Task]) -> dict[str, str]:
    """By task id why no answer can be scored, of the tasks for which the environment knows that."""
    return {task.id: why for task in tasks if (why := why_unusable(env, task))}


def all_usable(env: Environment, tasks: Sequence[Task], data: str) -> bool:
    """Whether every one of a run's tasks is known to be usable: those of a file of up to `CHECKED_ROWS` rows are, since
    they were checked when it was read; those of a longer file are checked when they are drawn."""
    return len(tasks) <= rows.CHECKED_ROWS and (bool(data) or not bad_rows(env, tasks))


def fitting_tasks(tasks: Sequence[Task], renderer: Renderer, longest: int, callback: Callback) -> list[Task]:
    """The tasks whose prompts fit; a note counts the others. Raises `NoneFits` when none does.

    `longest` is the most tokens a prompt may have; one token of the context must be left for the answer.
    """
    limit = min(longest, renderer.context_length - 1)
    fitting = [task for task in tasks if len(written(renderer, task, task.messages)) <= limit]
    if not fitting:
        got, do = f"{len(tasks)} tasks, all longer than {limit} tokens", "shorten them, or take a model that reads more"
        why = f"the model reads {renderer.context_length} tokens, context.max_prompt_tokens is {longest}"
        raise NoneFits("no question fits the model", got=got, why=why, do=do)
    if len(fitting) < len(tasks):
        callback(Note(f"{len(tasks) - len(fitting)} of {len(tasks)} tasks are skipped: longer than {limit} tokens"))
    return fitting


def usable_tasks(tasks: Sequence[Task], env: Environment, callback: Callback, *, least: int = 1) -> list[Task]:
    """The tasks whose answers the environment can score; a note counts the others. Raises `DataError` when fewer than
    `least` are left."""
    bad = bad_rows(env, tasks)
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
    """A note counts the held-out tasks that have the prompt of a training task."""
    prompts = {task.messages for task in tasks}
    shared = sum(task.messages in prompts for task in held_out)
    if shared:
        callback(Note(f"{shared} of {len(held_out)} held-out tasks are trained on: they have the same prompts"))


def note_left_out(tasks: Sequence[Task], callback: Callback) -> None:
    """A note counts the answers of a log that became no tasks."""
    if isinstance(tasks, ChatTasks) and tasks.left_out:
        callback(Note(tasks.summary))


def check_conversations(
    renderer: Renderer, tasks: Sequence[Task], conversations: Callable[[Task], Sequence[tuple[Message, ...]]]
) -> None:
    """Renders the conversations about one task of each kind, by the roles in its prompt. Raises `ModelError` for one
    that the chat template refuses: better now than after hours of sampling."""
    kinds = {tuple(message.role for message in task.messages): task for task in reversed(tasks)}
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


def draw_tasks(tasks: Sequence[Task], count: int, step: int, seed: int) -> list[Task]:
    """The tasks of one step: pass after pass over all of them, each in an order of its own. They follow from the step
    alone, so that a resumed run draws what the uninterrupted one would have drawn."""
    places = [divmod(position, len(tasks)) for position in range(step * count, (step + 1) * count)]
    orders = {epoch: list(range(len(tasks))) for epoch, _ in places}
    for epoch, order in orders.items():
        random.Random(f"{seed} {epoch}").shuffle(order)
    return [tasks[orders[epoch][place]] for epoch, place in places]


def wanted_answers(
    tasks: Sequence[Task], stages: Sequence[Stage], rollouts: int, draws: int, seed: int
) -> tuple[int, int]:
    """How many answers the first stage samples, and how many are fixed, when `draws` tasks have been drawn in all; what
    the other stages request depends on these."""
    passes, rest = divmod(draws, len(tasks))
    begun = {task.id for task in draw_tasks(tasks, len(tasks), passes, seed)[:rest]}
    counts = {True: 0, False: 0}  # by whether they are fixed
    for task in tasks if stages else ():
        for request in stages[0].requests(RolloutGroup(task, ()), rollouts):
            counts[isinstance(request, FixedCompletion)] += passes + (task.id in begun)
    return counts[False], counts[True]
