"""Which tasks a step draws: from several data sets by weight, and without those that were solved lately."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from selfdistill.data.lines import Lazily
from selfdistill.data.load import RowOptions
from selfdistill.data.reading import Drawn, first_tasks
from selfdistill.data.tasks import described_tasks, draw_tasks, row_tasks, training_tasks
from selfdistill.envs.base import Environment
from selfdistill.errors import ConfigError, Ranged, option
from selfdistill.plugins import FROM_PYTHON
from selfdistill.types import Task


@dataclass(frozen=True, slots=True)
class DataSet(Ranged):
    """One of the data sets of a mixture. Raises `ConfigError`."""

    source: str = option("", "a file, or a data set of the hub")
    weight: float = option(1.0, "share of the tasks drawn, relative to those of the other sets", above=0)


class MixedTasks(Drawn, Lazily[Task]):
    """Several data sets in one, each with the weight by which it is drawn. The id of a task begins with the name of its
    set, which is its `data_set` too."""

    def __init__(self, sets: Mapping[str, Sequence[Task]], weights: Sequence[float]) -> None:
        self.sets, self.weights = sets, tuple(weights)
        self._ends = list(accumulate(len(tasks) for tasks in sets.values()))

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, place: int) -> Task:
        """The task at a place: set after set."""
        number = bisect(self._ends, place)
        name, tasks = list(self.sets.items())[number]
        return _of_set(tasks[place - self._ends[number]], name)

    def first(self, count: int) -> list[Task]:
        """The first tasks of every set, as many of each as its weight is worth, and one at least."""
        shares = [max(1, round(count * weight / sum(self.weights))) for weight in self.weights]
        pairs = zip(self.sets.items(), shares, strict=True)
        return [_of_set(task, name) for (name, tasks), share in pairs for task in first_tasks(tasks, share)]

    def each(self, change: Callable[[Sequence[Task]], Sequence[Task]]) -> MixedTasks:
        """The mixture of changed sets."""
        return MixedTasks({name: change(tasks) for name, tasks in self.sets.items()}, self.weights)


def set_names(sources: Sequence[str]) -> list[str]:
    """A name for each set of a mixture: of its file, with a number where that is taken."""
    names = list[str]()
    for source in sources:
        # Of rows of a program, described as "python:data1 16 tasks, sha256 …", the label.
        stem = source.removeprefix(FROM_PYTHON).split()[0] if source.startswith(FROM_PYTHON) else Path(source).stem
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def as_tables(data: Any) -> Any:
    """The setting `data`, with the entries of a mixture as tables where they are names, or names and weights. Raises
    `ConfigError`."""
    if not isinstance(data, list | tuple):
        return data
    if not data:
        raise ConfigError("data names no data set", do="name one or more, or leave it out")
    pairs = [(one, 1.0) if isinstance(one, str) else one for one in data]
    return [
        {"source": one[0], "weight": one[1]} if isinstance(one, list | tuple) and len(one) == 2 else one
        for one in pairs
    ]


def mixed_tasks(
    env: Environment, data: Sequence[DataSet], held: Sequence[Any] | None, options: RowOptions
) -> MixedTasks:
    """The tasks of all sets of a mixture; `held` are those that a program passed. Raises `DataError`."""
    names, weights = set_names([one.source for one in data]), [one.weight for one in data]
    sets = [
        training_tasks(env, one.source if own is None else own, options)
        for one, own in zip(data, held or [None] * len(data), strict=True)
    ]
    return MixedTasks(dict(zip(names, sets, strict=True)), weights)


def tasks_of_values(
    env: Environment, rows: Any, data: str | tuple[DataSet, ...], options: RowOptions
) -> tuple[Any, str | tuple[DataSet, ...]]:
    """The tasks of rows that a program passed, and the setting `data` that describes them. Raises `DataError`."""
    if isinstance(data, str):
        tasks = row_tasks(env, rows, options)
        return tasks, FROM_PYTHON + described_tasks(tasks)
    held, described = list[Sequence[Task] | None](), list[DataSet]()
    for number, (one, own) in enumerate(zip(data, rows, strict=True), start=1):
        label = replace(options, label=f"{options.label}{number}")
        held.append(None if own is None else row_tasks(env, own, label))
        named = "" if held[-1] is None else f"{FROM_PYTHON}{label.label} {described_tasks(held[-1])}"
        described.append(replace(one, source=named or one.source))
    return held, tuple(described)


def next_tasks(
    tasks: Sequence[Task],
    count: int,
    step: int,
    seed: int,
    *,
    drawn: dict[str, int],
    solved: Mapping[str, int],
    skip: int,
) -> tuple[list[Task], int]:
    """The tasks of a step, and how many were passed over.

    Of a mixture every step draws by weight, to one task exactly, and each set has passes of its own; `drawn` counts
    the places of them that were used, and is brought up to date. A task that was `solved` within the last `skip` steps,
    by id, is passed over, unless a whole pass holds no other. All else follows from the seed and the step.
    """
    sets = tasks.sets if isinstance(tasks, MixedTasks) else {"": tasks}
    found, passed_over = list[Task](), 0
    for name in _picked(tasks, count, step, seed) if isinstance(tasks, MixedTasks) else [""] * count:
        own, seeded = sets[name], f"{seed} {name}" if name else seed
        start = place = drawn.get(name, 0)
        while True:
            (task,) = draw_tasks(own, 1, place, seeded)
            task = _of_set(task, name) if name else task
            place += 1
            if not skip or place - start > len(own) or step - solved.get(task.id, step - skip - 1) > skip:
                break
        found.append(task)
        passed_over += place - start - 1
        drawn[name] = place
    return found, passed_over


def _picked(tasks: MixedTasks, count: int, step: int, seed: int) -> list[str]:
    """The set of each task of a step: equally spaced points over the weights laid end to end, in random order."""
    ends, names = list(accumulate(tasks.weights)), list(tasks.sets)
    source = random.Random(f"{seed} mixture {step}")
    offset = source.random()
    picked = [names[min(bisect(ends, (offset + n) / count * ends[-1]), len(names) - 1)] for n in range(count)]
    source.shuffle(picked)
    return picked


def _of_set(task: Task, name: str) -> Task:
    return replace(task, id=f"{name}/{task.id}", data_set=name)
