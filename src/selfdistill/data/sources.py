"""The rows of a data set, whatever holds it: a file, a folder, the hub, or values of a Python program."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from decimal import Decimal
from functools import partial
from itertools import chain, islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

from selfdistill.data import lines
from selfdistill.data.lines import FileLines, Numbered, json_line
from selfdistill.envs.base import check_conversation
from selfdistill.errors import DataError, nearest
from selfdistill.files import BadJson, decode_json, is_whole, json_object, json_value, numbered_lines, read_text
from selfdistill.plugins import import_extra
from selfdistill.types import Task

MAX_ROWS = 1_000_000  # of a source that does not know its length, such as a generator
_FILE, _CHECK = "the data file", "check the name of the file"
_TEXT = (".jsonl", ".json")
_PARQUET = ".parquet"
_TABLES = {
    ".csv": "read_csv",
    ".tsv": "read_table",
    ".xlsx": "read_excel",
    ".xls": "read_excel",
    ".feather": "read_feather",
    ".orc": "read_orc",
}  # and what reads them
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Source(NamedTuple):
    """Numbered rows of a data set, with the `label` that errors give them; `decode` makes the columns of one, or the
    task that it is."""

    label: str
    rows: Sequence[tuple[int, Any]]
    decode: Callable[[Any, str], dict[str, Any] | Task]


def open_source(
    source: Any, label: str, name: str, split: str, *, limit: int | None = None, without: Iterable[str] = ()
) -> Source:
    """The rows of a path (JSONL, JSON, Parquet, a folder of such), of a hub name, of a `datasets.Dataset`, or of any
    iterable of rows or tasks, which is read once and named `label` in errors. Columns `without` are not looked at.

    Raises `DataError`: nothing can be read, no rows, or no end of them; `ConfigError` for an extra that is missing.
    """
    if limit is not None and limit < 1:
        raise DataError("limit should be the number of rows to read", got=limit)
    decode = partial(python_row, without=frozenset(without))
    if isinstance(source, str | PathLike):
        label = fspath(source)
        path = Path(label)
        if path.suffix in _TABLES and path.is_file():
            raise _not_read(path)
        if path.suffix == _PARQUET:
            source = _parquet(label, limit)
        elif path.suffix not in _TEXT and (path.is_dir() or (_HUB_NAME.fullmatch(label) and not path.exists())):
            source, label = _hub_rows(label, name, split), f"{label}:{split}"
        elif path.suffix == ".json" and _is_list(path):
            source = json_value(read_text(path), label, list)
        else:
            found = FileLines(path, limit)
            if len(found) > lines.CHECKED_ROWS:
                return Source(label, found, json_line)
            return Source(label, numbered_lines(path)[:limit], json_object)
    if isinstance(source, Mapping):
        if split not in source:
            raise DataError("the data set has no such split", got=split, do=nearest(split, map(str, source)))
        source = source[split]
    if hasattr(source, "remove_columns"):  # of the package datasets: it decodes the images of every column left
        source = source.remove_columns([column for column in without if column in (source.column_names or ())])
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise DataError("data should be a path, a hub name or rows", got=repr(source)[:200])
    # What has columns is of the package datasets, and stays on the disk.
    by_place = isinstance(source, Sequence) or (hasattr(source, "column_names") and hasattr(source, "__getitem__"))
    if by_place and isinstance(source, Sized) and len(source) > lines.CHECKED_ROWS < (limit or len(source)):
        return Source(label, Numbered(source, limit), decode)
    unbounded = limit is None and not isinstance(source, Sized)
    rows = list(enumerate(islice(source, MAX_ROWS + 1 if unbounded else limit), start=1))
    if not rows:
        raise DataError(f"{label}: no rows", do="give one or more")
    if unbounded and len(rows) > MAX_ROWS:
        raise DataError(f"{label}: more than {MAX_ROWS:,} rows, of an unknown number", do="read the first n: limit=n")
    return Source(label, rows, decode)


def python_row(row: Any, place: str, *, without: frozenset[str] = frozenset()) -> dict[str, Any] | Task:
    """The columns of a row as JSON values: numbers and arrays of numpy, dates and tuples are converted. Raises
    `DataError` naming the column that JSON cannot hold."""
    if isinstance(row, Task):
        check_conversation(row)
        return row
    if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
        do = "for a table of pandas write table.to_dict('records')"
        raise DataError(f"{place}: expected a row, a mapping by column, or a Task", got=repr(row)[:200], do=do)
    return {column: as_json(value, column, place) for column, value in row.items() if column not in without}


def as_json(value: Any, column: str, place: str) -> Any:
    """The value of a column as JSON has it. Raises `DataError`."""
    if value is None or type(value) in (int, bool) or (type(value) is str and is_whole(value)):
        return value
    try:
        return decode_json(json.dumps(value, default=_plain))
    except BadJson as error:
        got, do = f"{error.what}: {error.got}" + (f" (at {error.field})" if error.field else ""), error.do
    except (TypeError, ValueError, RecursionError) as error:
        got, do = str(error), f"convert it, or leave the column out: {column}=None (on the command line {column}=)"
    raise DataError(f"{place}: column {column!r}: expected a value that JSON can hold", got=got, do=do)


def _plain(value: Any) -> Any:
    """What stands for a value that JSON lacks. Raises `TypeError`."""
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):  # dates of numpy
        value = value.astype(str)
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    what = "bytes" if isinstance(value, bytes) else f"a value of type {type(value).__name__}"
    raise TypeError(f"{what}: {value!r:.80}")


def _parquet(path: str, limit: int | None) -> Any:
    """The rows of a Parquet file: a list, or of a long one a data set on the disk, which `datasets` keeps for later
    runs. Raises `DataError`."""
    parquet = import_extra("pyarrow.parquet", "datasets", f"reading {path}")
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows <= lines.CHECKED_ROWS or (limit or math.inf) <= lines.CHECKED_ROWS:
                return list(islice(chain.from_iterable(batch.to_pylist() for batch in file.iter_batches()), limit))
        return import_extra("datasets", "datasets", f"reading {path}").Dataset.from_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError("the data file cannot be read", got=f"{path}: {error}") from error


def _is_list(path: Path) -> bool:
    """Whether a file of JSON holds a list, rather than an object a line."""
    try:
        with path.open("rb") as file:
            return next((line for line in file if line.strip()), b"").lstrip(b"\xef\xbb\xbf \t\r").startswith(b"[")
    except OSError:
        return False  # reading its lines names the error


def _not_read(path: Path) -> DataError:
    read = _TABLES[path.suffix]
    return DataError(
        "the data file has a format that is not read",
        got=path,
        why="read are JSONL (one object a line), JSON (a list of objects) and Parquet",
        do=f"convert it: pandas.{read}({path.name!r}).to_json({path.stem + '.jsonl'!r}, orient='records', lines=True)",
    )


def _hub_rows(path: str, name: str, split: str) -> Any:
    """A data set of the hub, or of a folder. Raises `DataError`."""
    datasets = import_extra("datasets", "datasets", f"reading {path}")
    saved = any((Path(path) / file).exists() for file in ("state.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(path) if saved else datasets.load_dataset(path, name or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        got = f"{path}, name {name!r}, split {split!r}: {error}"[:500]
        do = "check the name of the file or of the data set on the hub, its configuration and its split"
        raise DataError("the data set cannot be loaded", got=got, do=do) from error
