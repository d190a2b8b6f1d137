"""Reading a user's files: text as UTF-8 with or without a byte order mark, and one JSON object a line.

Lines end at "\\n" alone (a "\\r" before it is white space to JSON): strings may hold other line separators.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from selfdistill.errors import ConfigError, DataError, SelfDistillError

T = TypeVar("T")

MAX_DEPTH = 200  # of nested lists and objects, for code that recurses into them
_FORMATS = {
    b"\x1f\x8b": "compressed by gzip", b"BZh": "compressed by bzip2", b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd", b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")
# A line without a match needs no `_check`, but for deep nesting.
_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|NaN|Infinity|\d[eE]\+?\d{3}|\d{300}")


def read_text(
    path: str | Path, *, what: str = "the file", do: str = "", kind: type[SelfDistillError] = DataError
) -> str:
    """The text of a file, without its byte order mark. Raises `kind` for a file that is missing, no file, or no UTF-8,
    with the line of the first byte that is none."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{what} cannot be read", got=f"{path}: {reason}", do=do) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = next((name for magic, name in _FORMATS.items() if data.startswith(magic)), "")
        line = data.count(b"\n", 0, error.start) + 1
        got = f"{path}: {found}" if found else f"{path}:{line}: the byte 0x{data[error.start]:02x}, which is no UTF-8"
        raise kind(f"{what} cannot be read", got=got, do="give it as plain text in UTF-8") from None


def numbered_lines(path: str | Path, *, what: str = "the data file") -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1. Raises `DataError`, also for none."""
    lines = read_text(path, what=what, do="check the name of the file").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError(f"{path} has no rows", do="give one JSON object a line")
    return numbered


def read_settings(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of a TOML or JSON file, and the file and line of each dotted key. Raises `ConfigError`."""
    text = read_text(file, what="the config file", do="check --config", kind=ConfigError)
    form, load = ("JSON", json.loads) if text.lstrip().startswith("{") else ("TOML", tomllib.loads)
    try:
        tree = load(text)
    except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits, and of deep nesting
        raise ConfigError(f"the config file is not {form}", got=f"{file}: {error}", do="correct that line") from error
    return tree, {key: f"{file}, line {line}" for key, line in _lines(text).items()}


def _lines(text: str) -> dict[str, int]:
    """The line on which each dotted key is written (tables and bare keys; enough to point a reader to it)."""
    table, lines = "", {}
    for number, line in enumerate(text.split("\n"), start=1):
        if header := re.match(r"\s*\[+\s*([\w.\- ]+?)\s*\]+", line):
            table = header[1].replace(" ", "") + "."
            lines[table[:-1]] = number
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            lines[table + key[1]] = number
    return lines


def json_object(line: str, place: str) -> dict[str, Any]:
    """The object that a line holds. Raises `DataError` that begins with `place` (the file and the line)."""
    return json_value(line, place, dict)


def json_value(text: str, place: str, kind: type[T]) -> T:
    """The object or the list that a text holds. Raises `DataError` that begins with `place`."""
    try:
        value = decode_json(text)
    except BadJson as error:
        where = f"field {error.field!r}: " if error.field else ""
        raise DataError(f"{place}: {where}{error.what}", got=error.got, why=error.why, do=error.do) from None
    if isinstance(value, kind):
        return value
    raise DataError(f"{place}: expected a JSON object", got=f"{value!r:.200}", do="give one JSON object a line")


class BadJson(DataError):
    """Text that is no JSON value, or one that could not be used; `field` is the place within it."""

    def __init__(self, what: str, *, got: object = None, why: str = "", do: str = "", field: str = "") -> None:
        super().__init__(what, got=got, why=why, do=do)
        self.field = field


def decode_json(text: str) -> Any:
    """A JSON value by the standard: no NaN, no number out of range, no duplicate key, whole characters, nested at most
    `MAX_DEPTH` deep. Raises `BadJson`."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        got = f"{error.msg}, {line}column {error.colno}"
        raise BadJson("not JSON", got=got, do="give one JSON object a line") from None
    except RecursionError:
        raise _too_deep("") from None
    except BadJson:
        raise
    except ValueError:  # Python reads no integer of so many digits
        do = "write it as text"
        raise BadJson("a number is too long", got="an integer of more than 4,300 digits", do=do) from None
    if _SUSPECT.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
        _check(value)
    return value


def is_whole(text: str) -> bool:
    """Whether text can be written as UTF-8: half of a surrogate pair cannot."""
    return not _SURROGATE.search(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadJson("a key occurs twice", got=ascii(twice), why="only one of the values would be read", field=twice)
    return found


def _check(value: Any) -> None:
    """Raises `BadJson` for the first value that cannot be used."""
    rest: list[tuple[str, Any, int]] = [("", value, 0)]
    while rest:
        field, value, depth = rest.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(field)
        if isinstance(value, float) and not math.isfinite(value):
            do = "JSON has finite numbers alone: write null, or text"
            raise BadJson("not a number that JSON has", got=value, do=do, field=field)
        if isinstance(value, str) and not is_whole(value):
            why = "it is no character, and no tokenizer reads it"
            do = "write the whole character, or leave it out"
            raise BadJson("half of a surrogate pair", got=ascii(value)[:200], why=why, do=do, field=field)
        if isinstance(value, list):
            rest += [(f"{field}[{place}]", item, depth + 1) for place, item in enumerate(value)][::-1]
        elif isinstance(value, dict):
            for key, item in reversed(value.items()):
                inside = f"{field}." * bool(field) + key.encode("utf-8", "backslashreplace").decode()
                rest += [(inside, item, depth + 1), (inside, key, depth)]


def _too_deep(field: str) -> BadJson:
    got = f"lists and objects nested more than {MAX_DEPTH} deep"
    return BadJson("nested too deeply", got=got, do="give a flatter value, or the text of it", field=f"{field:.80}")
