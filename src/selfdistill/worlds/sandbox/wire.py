"""What travels between the trainer, a worker and a judged program: framed JSON, and values in a form JSON can carry.

`encode` keeps what JSON would lose: tuples, sets, keys that are not text, large integers. Whatever else a program
returns travels as its repr, and comes back as an `Opaque`.

    encode((1, [2.5]))   ->  ["tuple", 1, ["list", 2.5]]
    encode({1: "a"})     ->  ["dict", [1, "a"]]
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from json import dumps, loads
from typing import Any

MAX_DEPTH = 60
MAX_NODES = 500_000
REPR_CHARACTERS = 250
_SAFE_INTEGER = 1 << 63
_write, _read = os.write, os.read  # a judged program may rebind the attributes of `os`


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A value of a type that does not travel: only its repr is left, and it equals nothing but itself."""

    text: str

    def __repr__(self) -> str:
        return self.text


class TooLargeError(ValueError):
    """A value with more parts than anyone would read."""


def encode(value: object) -> Any:
    """`value` as JSON. Raises TooLargeError past `MAX_NODES` parts."""
    return _encode(value, MAX_DEPTH, [MAX_NODES])


def _encode(value: object, depth: int, left: list[int]) -> Any:
    # Methods of the base classes, so that a subclass of the program's cannot lie about what it holds.
    left[0] -= 1
    if left[0] < 0:
        raise TooLargeError(f"more than {MAX_NODES} parts")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if abs(number) < _SAFE_INTEGER else ["int", f"{number:x}"]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if depth == 0:
        return ["repr", short_repr(value)]
    if isinstance(value, list):
        return ["list", *(_encode(item, depth - 1, left) for item in list.__iter__(value))]
    if isinstance(value, tuple):
        return ["tuple", *(_encode(item, depth - 1, left) for item in tuple.__iter__(value))]
    if isinstance(value, (set, frozenset)):
        return ["set", *(_encode(item, depth - 1, left) for item in frozenset.union(frozenset(), value))]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", *([_encode(key, depth - 1, left), _encode(item, depth - 1, left)] for key, item in pairs)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _encode(value.tolist(), depth - 1, left)
    return ["repr", short_repr(value)]


def decode(tree: Any) -> Any:
    """The value that `encode` was given, its containers as plain built-in ones."""
    if not isinstance(tree, list):
        return tree
    tag, *items = tree
    if tag == "int":
        return int(items[0], 16)
    if tag == "repr":
        return Opaque(items[0])
    if tag == "dict":
        return {_hashable(decode(key)): decode(item) for key, item in items}
    values = [decode(item) for item in items]
    if tag == "tuple":
        return tuple(values)
    return values if tag == "list" else {_hashable(value) for value in values}


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:  # only a forged message has such a key
        return Opaque(short_repr(value))
    return value


def short_repr(value: object) -> str:
    """At most 250 characters of a repr, which is the program's own code and may do anything."""
    try:
        text = str.__str__(repr(value))
    except BaseException as error:  # noqa: BLE001 - a program's __repr__ may even call exit
        text = f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    text = text if len(text) <= REPR_CHARACTERS else text[:REPR_CHARACTERS] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def send(descriptor: int, message: object) -> None:
    """Write one framed message. Raises OSError (BrokenPipeError) when nobody reads."""
    body = dumps(message).encode()
    write_all(descriptor, struct.pack("!Q", len(body)) + body)


def receive(descriptor: int) -> Any:
    """Read one framed message. Raises EOFError when the other side is gone."""
    return loads(_read_exactly(descriptor, struct.unpack("!Q", _read_exactly(descriptor, 8))[0]))


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, however the pipe cuts it."""
    view = memoryview(data)
    while view:
        view = view[_write(descriptor, view) :]


def _read_exactly(descriptor: int, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = _read(descriptor, min(left, 1 << 20))
        if not part:
            raise EOFError("the other side closed the pipe")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
