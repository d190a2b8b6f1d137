"""Rows of a long data set, which stay where they are until one is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from selfdistill.errors import DataError
from selfdistill.files import json_object, read_text

T = TypeVar("T")

CHECKED_ROWS = 50_000  # a set of more rows is long: its rows are checked when they are drawn
FIRST_ROWS = 1000  # of a long set, which are checked when it is opened
_BOM = b"\xef\xbb\xbf"


class Lazily(Sequence[T], ABC):
    """A sequence whose items are made each time they are read; a slice is a list."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The item at a place from 0."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self.at(number) for number in range(*place.indices(len(self)))]
        return self.at(range(len(self))[place])


class FileLines(Lazily[tuple[int, bytes]]):
    """The lines of a file that are not blank, with their numbers from 1. The file is read once for the places of its
    lines, 12 bytes a line, of which the first `limit` are used."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self._starts, self._numbers, start = array("Q"), array("I"), 0
        try:
            self._file = path.open("rb")
        except OSError:
            read_text(path, what="the data file", do="check the name of the file")  # raises for a file that cannot be
            raise
        for number, line in enumerate(self._file, start=1):
            if len(self._starts) == limit:
                break
            if line.strip():
                self._starts.append(start)
                self._numbers.append(number)
            start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def at(self, place: int) -> tuple[int, bytes]:
        """A line and its number."""
        self._file.seek(self._starts[place])
        line = self._file.readline()
        return self._numbers[place], line if self._starts[place] else line.removeprefix(_BOM)


class Numbered(Lazily[tuple[int, Any]]):
    """Rows that can be read by their place, such as a list or a `datasets.Dataset`, with their numbers from 1."""

    def __init__(self, rows: Any, limit: int | None = None) -> None:
        self._rows, self._length = rows, len(rows) if limit is None else min(limit, len(rows))

    def __len__(self) -> int:
        return self._length

    def at(self, place: int) -> tuple[int, Any]:
        """A row and its number."""
        return place + 1, self._rows[place]


def json_line(line: bytes, place: str) -> dict[str, Any]:
    """The object that a line of a file holds. Raises `DataError` that begins with `place`."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        got = f"the byte 0x{line[error.start]:02x}, which is no UTF-8"
        raise DataError(f"{place}: the line cannot be read", got=got, do="give it as plain text in UTF-8") from None
    return json_object(text, place)
