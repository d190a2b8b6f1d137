"""Tasks from any rows: which columns are the prompt, the answer and the rest.

load_data("openai/gsm8k", name="main", prompt="question", answer=final)
load_data("rows.parquet", prompt="problem", answer="reward_model.ground_truth", image=None)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeAlias

from selfdistill.data import lines, rows
from selfdistill.data.reading import Convert, load_rows
from selfdistill.data.row import Row, short
from selfdistill.data.rows import row_to_task
from selfdistill.data.sources import Source, as_json, open_source
from selfdistill.errors import DataError, missing_column
from selfdistill.plugins import is_file_name, load_from_file
from selfdistill.types import Task

Column: TypeAlias = str | Callable[[dict[str, Any]], Any] | None

_TEXTS = ("demonstration", "document", "logged_answer", "user_reply")


@dataclass(frozen=True, slots=True)
class RowOptions:
    """Which rows of a data set are read, and under each name which column, or which function of the row: `a.b` is the
    key b of the column a, `FILE.py:NAME` a function; "" or None leaves the column of that name out."""

    name: str = ""
    split: str = "train"
    limit: int | None = None
    label: str = "row"  # of rows in memory, for errors and ids
    columns: Mapping[str, Column] = field(default_factory=dict)

    def open(self, source: Any) -> Source:
        """The rows of a source. Raises `DataError`."""
        without = [name for name, column in self.columns.items() if not column]
        return open_source(source, self.label, self.name, self.split, limit=self.limit, without=without)

    def mapped(self, convert: Convert) -> Convert:
        """`convert`, for rows that have these names. Raises `ConfigError`."""
        found = {
            name: load_from_file(column, name)[0] if isinstance(column, str) and is_file_name(column) else column
            for name, column in self.columns.items()
        }
        return lambda fields, path, line: convert(map_columns(fields, found, f"{path}:{line}"), path, line)


AS_NAMED = RowOptions()


def load_data(
    source: Any,
    *,
    name: str | None = None,
    split: str = "train",
    prompt: Column = "prompt",
    answer: Column = None,
    id: Column = None,
    limit: int | None = None,
    **columns: Column,
) -> Sequence[Task]:
    """The tasks of a data set: a path (JSONL, JSON, Parquet), a hub name with its configuration `name` and `split`, a
    `datasets.Dataset`, or any iterable of rows or tasks, of which the first `limit` are read.

    A column is named, or made by a function of the row. `prompt` is text or a list of messages. All columns stay in
    `Task.spec`, where `task["answer"]` reads them; `demonstration`, `document`, `logged_answer` and `user_reply` among
    `columns` become fields of the task. Rows of programming tasks, in one of the shapes of `data.rows`, are recognised
    where no column is mapped. Of more than 50,000 rows a task is made each time it is read. Raises `DataError`.
    """
    given = {"prompt": None if prompt == "prompt" else prompt, "answer": answer, "id": id}
    mapped = {**{key: column for key, column in given.items() if column is not None}, **columns}
    options = RowOptions(name or "", split, limit, columns=mapped)
    opened = options.open(source)
    number, raw = opened.rows[0]
    first = opened.decode(raw, f"{opened.label}:{number}")
    code = not mapped and not isinstance(first, Task) and rows.is_code(first)
    return load_rows(opened, code_rows(opened) if code else options.mapped(question_task))


def load_tasks(source: Any, options: RowOptions = AS_NAMED) -> Sequence[Task]:
    """The tasks of rows in one of the shapes of `data.rows`, in order. Raises `DataError` for the first row that cannot
    be used, for an id that occurs twice and for a source without rows."""
    opened = options.open(source)
    return load_rows(opened, options.mapped(code_rows(opened)))


def question_rows(source: Any, options: RowOptions = AS_NAMED) -> Sequence[Task]:
    """Tasks for an environment that reads its rows itself. Raises `DataError` naming file, line and field."""
    return load_rows(options.open(source), options.mapped(question_task))


def code_rows(source: Source) -> Convert:
    """Reads the rows of programming tasks. Their code is compiled in sources of up to `CHECKED_ROWS` rows; of longer
    ones a run looks at every row that it draws."""
    return partial(row_to_task, compiled=len(source.rows) <= lines.CHECKED_ROWS)


def question_task(fields: Mapping[str, Any], path: str, line: int) -> Task:
    """One row `{"prompt": "…" or messages, "id": …, "demonstration": …, "document": …, "logged_answer": …,
    "user_reply": …}` as a task; all columns are its `spec`. Raises `DataError`."""
    scored = fields.get("reward_model")  # of the rows of verl
    if "answer" not in fields and isinstance(scored, Mapping) and "ground_truth" in scored:
        fields = {**fields, "answer": scored["ground_truth"]}
    row = Row(path, line, "question", fields)
    if "prompt" not in fields:
        raise missing_column("prompt", fields, "prompt", f"{path}:{line}")
    return Task(
        row.id("id", default=f"{Path(path).stem}-{line}"),
        row.messages("prompt"),
        fields,
        **{text: row.text(text) for text in _TEXTS},
    )


def map_columns(fields: Mapping[str, Any], columns: Mapping[str, Column], place: str) -> dict[str, Any]:
    """The row with the mapped columns under their names. Raises `DataError`."""
    found = {name: value for name, value in fields.items() if columns.get(name, name)}
    for name, column in columns.items():
        if callable(column):
            try:
                value = column(dict(fields))
            except Exception as error:
                frame = extract_tb(error.__traceback__)[-1]
                got = f"{type(error).__name__}: {error}, in {frame.filename}, line {frame.lineno}"
                raise DataError(f"{place}: the function of the column {name!r} fails", got=got) from error
            if value is None and name == "prompt":
                do = "return the question, as text or as a list of messages; leave the row out where it has none"
                raise DataError(f"{place}: the function of the column 'prompt' returns None", got=short(fields), do=do)
            found[name] = as_json(value, name, place)
        elif column:
            found[name] = _value(fields, column, name, place)
    return found


def _value(fields: Mapping[str, Any], column: str, name: str, place: str) -> Any:
    value: Any = fields
    for key in [column] if column in fields else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            inner = (f"{own}.{key}" for own, held in fields.items() if isinstance(held, Mapping) for key in held)
            raise missing_column(column, [*fields, *inner], name, place)
        value = value[key]
    return value
