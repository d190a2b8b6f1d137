"""Which tasks a run asks, in which order, and which it cannot ask."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from selfdistill.errors import ConfigError, DataError
from selfdistill.render import Renderer
from selfdistill.runs.progress import Reporter
from selfdistill.stages import Given, Stage
from selfdistill.types import Message, Role, RolloutGroup, Task
from selfdistill.worlds.base import World, tasks_of
from selfdistill.worlds.code import CodeWorld
from selfdistill.worlds.rows import load_tasks


class NoneFits(DataError):
    """Every question is longer than the model reads."""


def training_tasks(world: World, data: str) -> list[Task]:
    """The tasks of a data file, else the world's own. Raises `DataError`, `ConfigError` when there are none."""
    if data:
        return load_tasks(Path(data)) if isinstance(world, CodeWorld) else question_rows(Path(data))
    tasks = tasks_of(world, "train")
    if not tasks:
        raise ConfigError(
            f"the world {world.name!r} has no tasks of its own", do="name a file of tasks with --data my_tasks.jsonl"
        )
    return tasks


def question_rows(path: Path) -> list[Task]:
    """Tasks for a world that reads its rows itself: `{"prompt": "…" or messages, "id": …, "demonstration": …,
    "document": …, "logged_answer": …,
    "user_reply": …}`; every other key goes to `task.spec`. Raises `DataError` naming file, line and field."""
    tasks: dict[str, Task] = {}
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        task = _task(row, where, default=f"{path.stem}-{number}")
        if task.id in tasks:
            raise DataError("two tasks have the same id", got=f"{task.id!r} in {where}", do="give each row its own id")
        tasks[task.id] = task
    if not tasks:
        raise DataError("the data file holds no tasks", got=path, do="write one JSON object a line")
    return list(tasks.values())


def askable(tasks: Sequence[Task], renderer: Renderer, longest: int, reporter: Reporter) -> list[Task]:
    """The tasks whose questions fit; says how many do not. Raises `NoneFits` when none does.

    `longest` is the most tokens a question may have; one token of the context must be left for the answer.
    """
    limit = min(longest, renderer.context_length - 1)
    fitting = [task for task in tasks if len(renderer.prompt(task.messages)) <= limit]
    if not fitting:
        raise NoneFits(
            "no question fits the model",
            got=f"{len(tasks)} tasks, all longer than {limit} tokens",
            why=f"the model reads {renderer.context_length} tokens, context.max_prompt_tokens is {longest}",
            do="shorten the questions, or take a model that reads more",
        )
    if len(fitting) < len(tasks):
        reporter.note(f"{len(tasks) - len(fitting)} of {len(tasks)} tasks are skipped: longer than {limit} tokens")
    return fitting


def draw_tasks(tasks: Sequence[Task], count: int, step: int, seed: int) -> list[Task]:
    """The tasks of one step: pass after pass over all of them, each in an order of its own. Follows from the step
    alone, so that a resumed run asks what the uninterrupted one would have asked."""
    places = [divmod(position, len(tasks)) for position in range(step * count, (step + 1) * count)]
    orders = {epoch: list(range(len(tasks))) for epoch, _ in places}
    for epoch, order in orders.items():
        random.Random(f"{seed} {epoch}").shuffle(order)
    return [tasks[orders[epoch][place]] for epoch, place in places]


def wanted_answers(
    tasks: Sequence[Task], stages: Sequence[Stage], rollouts: int, draws: int, seed: int
) -> tuple[int, int]:
    """How many answers the first stage asks for, and how many it is given, when `draws` tasks have been drawn in all;
    what the other stages want depends on these."""
    passes, rest = divmod(draws, len(tasks))
    begun = draw_tasks(tasks, len(tasks), passes, seed)[:rest]

    def counted(drawn: Sequence[Task]) -> tuple[int, int]:
        wants = [w for stage in stages[:1] for task in drawn for w in stage.wanted(RolloutGroup(task, ()), rollouts)]
        given = sum(isinstance(want, Given) for want in wants)
        return len(wants) - given, given

    whole, part = counted(tasks), counted(begun)
    return passes * whole[0] + part[0], passes * whole[1] + part[1]


def _rows(path: Path) -> list[tuple[int, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the data file cannot be read", got=f"{path} ({error})", do="check --data") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise DataError("a line is not JSON", got=f"{path}, line {number}: {error}") from error
    return rows


def _task(row: Any, where: str, default: str) -> Task:
    if not isinstance(row, dict) or "prompt" not in row:
        raise DataError("a row needs a prompt", got=f"{where}: {str(row)[:80]}", do='write {"prompt": "…", …}')
    texts = ("demonstration", "document", "logged_answer", "user_reply")
    for field in texts:
        if not isinstance(row.get(field, ""), str):
            raise DataError(f"{field} should be text", got=f"{where}: {str(row[field])[:80]}")
    return Task(
        str(row.get("id", default)),
        _messages(row["prompt"], where),
        {key: value for key, value in row.items() if key not in ("id", "prompt", *texts)},
        **{field: row.get(field, "") for field in texts},
    )


def _messages(prompt: Any, where: str) -> tuple[Message, ...]:
    """Text is one message of the user's; else a list of {"role": …, "content": …}."""
    if isinstance(prompt, str) and prompt.strip():
        return (Message("user", prompt),)
    turns = prompt if isinstance(prompt, list) else []
    if not turns or not all(_is_message(turn) for turn in turns):
        raise DataError(
            "prompt should be text or messages",
            got=f"{where}: {str(prompt)[:80]!r}",
            do='write "…", or [{"role": "user", "content": "…"}] with roles system, user or assistant',
        )
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _is_message(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.keys() == {"role", "content"}
        and turn["role"] in get_args(Role)
        and isinstance(turn["content"], str)
    )
