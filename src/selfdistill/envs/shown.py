"""What feedback shows of a program's run. Every text of a program's goes through here on its way into feedback.

The same run gives the same text: addresses are replaced, sets are shown in order. And no text names a folder of this
machine: `/python` stands for the interpreter's folders, `/work` for the program's own, `/selfdistill` for ours.
What is compared with an expected value is never changed.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from selfdistill.envs.sandbox.wire import REPR_CHARACTERS, DictItems, SetItems, short_repr

_SHOWN_CHARACTERS = 250
_MAX_DEPTH = 100
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]*…?")
_LONG_NUMBER = re.compile(r"(?<![\w.])(?:0x[0-9a-f]{9,16}|[1-9][0-9]{11,19})(?![\w.])")
_PATH = re.compile(r"/[^\s'\"<>|:;,()\[\]{}…]*…?")
_DONE = "\udcff"  # the slash of a name that was put in; no text holds it, for it cannot be written down
# Folders of every Linux: their names reveal nothing.
_COMMON = {
    "/", "/bin", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/tmp", "/usr", "/usr/lib", "/usr/local", "/var",
}  # fmt: skip


def show_value(value: Any, memory: tuple[range, ...] = ()) -> str:
    """The repr of a value from the sandbox or of an expected one, in at most 250 characters."""
    text = ""
    for piece in _pieces(value, _MAX_DEPTH):
        text += piece
        if len(text) > REPR_CHARACTERS:
            text = text[:REPR_CHARACTERS] + "…"
            break
    text = show_text(text, memory)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def show_text(text: str, memory: tuple[range, ...] = ()) -> str:
    """A text with neutral names in place of this machine's folders, without addresses, and fit to be written down.

    Numbers that lie in `memory`, that of the process it comes from, are addresses too (`id`, and `hash` of an object).
    """
    text = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    if "0x" in text:
        text = _ADDRESS.sub("at 0x…", text)
    if memory:
        text = _LONG_NUMBER.sub(lambda found: _unless_address(found[0], memory), text)
    if "/" not in text:
        return text
    whole, names = _folders()
    text = whole.sub(lambda found: _DONE + names.get(found[0], "/work")[1:], text)
    return _PATH.sub(lambda found: _uncut(found[0], tuple(names)), text).replace(_DONE, "/")


def _unless_address(number: str, memory: tuple[range, ...]) -> str:
    value = int(number, 0)
    found = any(address in span for address in (value, 16 * value) for span in memory)
    return "<address>" if found else number


def _uncut(path: str, folders: tuple[str, ...]) -> str:
    """`/…` for the beginning of one of our folders, where a path was cut."""
    begun = path.removesuffix("…")
    cut = begun != path and begun not in _COMMON and any(folder.startswith(begun) for folder in folders)
    return "/…" if cut else path


@cache
def _folders() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern for the folders that a program can meet, and a name for each; the program's own has none."""
    ours, scratch = str(Path(__file__).parents[1]), tempfile.gettempdir()
    named = [
        ("/python", [os.path.dirname(os.__file__), *map(sysconfig.get_path, ("stdlib", "platstdlib"))]),
        ("/python/site-packages", [*map(sysconfig.get_path, ("purelib", "platlib"))]),
        ("/python/bin", [os.path.dirname(sys.executable), os.path.dirname(os.path.realpath(sys.executable))]),
        ("/python", [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]),
        ("/selfdistill", [ours]),
        ("/tmp", [scratch]),
    ]
    written = [
        (path, name) for name, folders in named for folder in folders for path in (folder, os.path.realpath(folder))
    ]
    home = os.path.expanduser("~")
    above = [(str(path), "/…") for folder, _ in written for path in Path(folder).parents if len(path.parts) > 2]
    names = {path: name for path, name in [*above, (home, "/…"), *reversed(written)] if path not in _COMMON}
    work = "|".join(
        rf"{re.escape(folder)}/selfdistill-[^/\s'\"…]+(?:/work(?:/[^/\s'\"…]+)?)?"
        for folder in {scratch, os.path.realpath(scratch)}
    )
    known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?:{work}|{known})(?![\w~-]|\.\w)"), names


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str | bytes):
        yield repr(value[: REPR_CHARACTERS + 1])
    elif depth == 0 and isinstance(value, list | tuple | dict | set | frozenset | DictItems | SetItems):
        yield "…"
    elif isinstance(value, list | tuple):
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        yield from _joined(opening, zip(value, strict=True), closing, depth)
    elif isinstance(value, dict | DictItems):
        yield from _joined("{", value.pairs if isinstance(value, DictItems) else value.items(), "}", depth)
    elif isinstance(value, set | frozenset | SetItems):
        frozen = value.frozen if isinstance(value, SetItems) else isinstance(value, frozenset)
        items = sorted(value.items if isinstance(value, SetItems) else value, key=_order)
        opening, closing = ("frozenset({", "})") if frozen else ("{", "}")
        empty = "frozenset()" if frozen else "set()"
        yield from _joined(opening, zip(items, strict=True), closing, depth) if items else [empty]
    else:
        yield short_repr(value)


def _joined(opening: str, rows: Iterable[tuple[Any, ...]], closing: str, depth: int) -> Iterator[str]:
    """Items as rows of one, entries of a dictionary as rows of key and value."""
    yield opening
    for place, row in enumerate(rows):
        yield ", " if place else ""
        for column, part in enumerate(row):
            yield ": " if column else ""
            yield from _pieces(part, depth - 1)
    yield closing


def _order(item: Any) -> tuple[bool, float, str]:
    """Small numbers by value, then everything else by its text."""
    if isinstance(item, int | float) and abs(item) < 2**53:
        return False, item, ""
    return True, 0, show_value(item)
