"""All rows of a source as tasks: in a list, or of a long source made when they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from selfdistill.data import lines
from selfdistill.data.lines import Lazily
from selfdistill.data.row import short
from selfdistill.data.sources import Source
from selfdistill.errors import DataError
from selfdistill.types import Message, Task

Convert: TypeAlias = Callable[[dict[str, Any], str, int], Task | Sequence[Task]]


@dataclass(frozen=True, slots=True)
class BadRow(Task):
    """In place of the task of a row that cannot be used: why not. Nothing is sampled for it."""

    why: str = ""


class Drawn(ABC):
    """Tasks that are checked when they are drawn, and looked at when a run is opened for the first of them alone."""

    @abstractmethod
    def first(self, count: int) -> list[Task]:
        """About so many tasks from the beginning."""


def first_tasks(tasks: Sequence[Task], count: int) -> Sequence[Task]:
    """The first tasks, of a mixture those of every set."""
    return tasks.first(count) if isinstance(tasks, Drawn) else tasks[:count]


class LazyTasks(Drawn, Lazily[Task]):
    """The tasks of a long source, each made from its row when it is read; a `BadRow` where that fails.

    `places` holds, for rows of several tasks, the row of each task and its place among those of the row. `prepare` is
    the last thing done to a task.
    """

    def __init__(
        self,
        source: Source,
        convert: Convert,
        places: tuple[array[int], array[int]] | None = None,
        prepare: Callable[[Task], Task] = lambda task: task,
    ) -> None:
        self.source, self.convert, self.places, self.prepare = source, convert, places, prepare

    def __len__(self) -> int:
        return len(self.places[0] if self.places else self.source.rows)

    def at(self, place: int) -> Task:
        """The task at a place."""
        row, part = (self.places[0][place], self.places[1][place]) if self.places else (place, 0)
        number, raw = self.source.rows[row]
        try:
            task = row_tasks(self.source, self.convert, number, raw)[part]
        except DataError as error:
            where = f"{Path(self.source.label).stem}-{number}"
            return BadRow(where, (Message("user", where),), why=str(error))
        return task if isinstance(task, BadRow) else self.prepare(task)

    def first(self, count: int) -> list[Task]:
        """The first tasks."""
        return self[:count]

    def prepared(self, prepare: Callable[[Task], Task]) -> LazyTasks:
        """The same tasks, each as `prepare` makes it."""
        return LazyTasks(self.source, self.convert, self.places, prepare)


def read_rows(source: Source, convert: Convert) -> Iterator[tuple[str, Task | DataError]]:
    """Every row with its place: its task or tasks, or why it cannot be used, an id that was used before too."""
    seen: dict[str, int] = {}
    for number, raw in source.rows:
        place = f"{source.label}:{number}"
        try:
            tasks = row_tasks(source, convert, number, raw)
            for task in tasks:
                if task.id in seen:
                    first = f"{source.label}:{seen[task.id]}"
                    what = f"{place}: field 'id': the id {short(task.id)} was used in {first} already"
                    raise DataError(what, do="give each row its own id")
        except DataError as error:
            yield place, error
        else:
            for task in tasks:
                seen[task.id] = number
                yield place, task


def load_rows(source: Source, convert: Convert) -> Sequence[Task]:
    """All tasks of a source, in order: a list. Raises `DataError` for the first row that cannot be used.

    Of a source of more than `CHECKED_ROWS` rows that holds for the first `FIRST_ROWS`, and the tasks are `LazyTasks`.
    """
    long = len(source.rows) > lines.CHECKED_ROWS
    tasks = list[Task]()
    for _, found in read_rows(source._replace(rows=source.rows[: lines.FIRST_ROWS]) if long else source, convert):
        if isinstance(found, DataError):
            raise found
        tasks.append(found)
    return LazyTasks(source, convert) if long else tasks


def row_tasks(source: Source, convert: Convert, number: int, raw: Any) -> Sequence[Task]:
    """The tasks of one row. Raises `DataError`."""
    found = source.decode(raw, f"{source.label}:{number}")
    made = found if isinstance(found, Task) else convert(found, source.label, number)
    return [made] if isinstance(made, Task) else made
