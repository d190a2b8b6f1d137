"""What travels between the trainer, a worker and a scored program: framed JSON, and values in a form JSON can carry.

`encode` keeps what JSON would lose: tuples, sets, keys that are not text, large integers, decimals, fractions. Whatever
else a program returns travels as its repr, and comes back as an `Opaque`. A value is one flat list, parts before the
container that holds them, so that no nesting is too deep for it:

    encode((1, [2.5]))   ->  [1, 2.5, ["list", 1], ["tuple", 2]]
    encode({1: "a"})     ->  [1, "a", ["dict", 1]]
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from json import loads
from typing import Any

MAX_NODES = 500_000
REPR_CHARACTERS = 1000  # more than is shown, since what is shown is cleaned of paths first
MAX_FRACTION_BITS = 100_000  # reducing a longer one takes the trainer too long; it travels as its repr
_SAFE_INTEGER = 1 << 63
_WRITABLE_BITS = 14_000  # Python writes no integer of more than 4,300 digits
_write = os.write  # a scored program may rebind the attributes of `os`


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A value of a type that does not travel: only its repr is left, and it equals nothing but itself."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, eq=False)
class DictItems:
    """A program's dictionary. Its keys are never hashed by Python: a program can choose numbers that all collide."""

    pairs: Sequence[tuple[Any, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class SetItems:
    """A program's set or frozenset, for the same reason."""

    items: Sequence[Any]
    frozen: bool = False


class TooLargeError(ValueError):
    """A value with more parts than anyone would read."""


class MalformedError(Exception):
    """Bytes that are no message."""


def encode(value: object, max_nodes: int = MAX_NODES) -> list[Any]:
    """`value` as a flat list for JSON. Raises TooLargeError past `max_nodes` parts."""
    # Built back to front: a container, then its parts from the last to the first.
    nodes: list[Any] = []
    waiting = [value]
    while waiting:
        if len(nodes) + len(waiting) > max_nodes:
            raise TooLargeError(f"more than {max_nodes} parts")
        node, parts = _node(waiting.pop())
        nodes.append(node)
        waiting += parts
    nodes.reverse()
    return nodes


def _node(value: object) -> tuple[Any, list[Any]]:
    """A container's tag and size, with its parts in order; anything else without parts.

    Methods of the base classes are called, so that a subclass of the program's cannot lie about what it holds.
    """
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            parts = list(kind.__iter__(value))
            return [kind.__name__, len(parts)], parts
    if isinstance(value, dict):
        pairs = list(dict.items(value))
        return ["dict", len(pairs)], [part for pair in pairs for part in pair]
    return _scalar(value), []


def _scalar(value: object) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if abs(number) < _SAFE_INTEGER else ["int", f"{number:x}"]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["complex", complex.__complex__(value).real, complex.__complex__(value).imag]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", (bytes if isinstance(value, bytes) else bytearray).hex(value)]  # type: ignore[arg-type]
    if isinstance(value, Decimal):
        return ["decimal", Decimal.__str__(value)]
    if type(value) is Fraction:  # written in Python: a subclass could lie about its numerator
        over, under = int.__index__(value.numerator), int.__index__(value.denominator)
        if max(over.bit_length(), under.bit_length()) <= MAX_FRACTION_BITS:
            return ["fraction", f"{over:x}", f"{under:x}"]
    return ["repr", short_repr(value)]


def decode(nodes: Sequence[Any]) -> Any:
    """The value that `encode` was given: containers are plain lists and tuples, `DictItems` and `SetItems`.

    Raises ValueError, TypeError, ArithmeticError or LookupError for what `encode` never made.
    """
    done: list[Any] = []
    for node in nodes:
        if isinstance(node, dict):
            raise TypeError("an object is no part of a value")
        if not isinstance(node, list):
            done.append(node)
            continue
        tag, *content = node
        if tag in _SCALARS:
            done.append(_SCALARS[tag](*content))
            continue
        size = 2 * content[0] if tag == "dict" else content[0]
        if not 0 <= size <= len(done):
            raise ValueError("a container with more parts than there are")
        start = len(done) - size
        done[start:] = [_CONTAINERS[tag](done[start:])]
    (value,) = done
    return value


def _fraction(over: str, under: str) -> Fraction:
    if 4 * max(len(over), len(under)) > 2 * MAX_FRACTION_BITS:
        raise ValueError("a fraction with too many digits")
    return Fraction(int(over, 16), int(under, 16))


_SCALARS: dict[str, Any] = {
    "int": lambda digits: int(digits, 16), "decimal": lambda text: Decimal(str(text)), "fraction": _fraction,
    "complex": complex, "bytes": bytes.fromhex, "repr": lambda text: Opaque(str(text)),
}  # fmt: skip
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": lambda items: SetItems(tuple(items)),
    "frozenset": lambda items: SetItems(tuple(items), frozen=True),
    "dict": lambda parts: DictItems(tuple(zip(parts[::2], parts[1::2], strict=True))),
}


def short_repr(value: object) -> str:
    """At most `REPR_CHARACTERS` of a repr, which is the program's own code and may do anything."""
    if isinstance(value, int) and (bits := int.bit_length(value)) > _WRITABLE_BITS:
        return f"<an integer of about {int(bits * 0.30103) + 1} digits>"
    try:
        text = str.__str__(repr(value))
    except BaseException as error:  # noqa: BLE001 - a program's __repr__ may even call exit
        text = f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    text = text if len(text) <= REPR_CHARACTERS else text[:REPR_CHARACTERS] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def frame(body: bytes) -> bytes:
    """A message as it travels: its length, then itself."""
    return struct.pack("!Q", len(body)) + body


def receive(read: Callable[[int], bytes], limit: int = 1 << 40) -> dict[str, Any]:
    """The next framed message; `read` gives at most so many bytes, and none when the other end is gone.

    Raises EOFError then, and MalformedError for bytes that are no message, or one longer than `limit`.
    """
    (length,) = struct.unpack("!Q", _read_all(read, 8))
    if length > limit:
        raise MalformedError(f"a message of {length} bytes")
    try:
        message = loads(_read_all(read, length))
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None
    if not isinstance(message, dict):
        raise MalformedError("not a message")
    return message


def _read_all(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        part = read(min(size, 1 << 20))
        if not part:
            raise EOFError("the other process is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, however the pipe cuts it. Raises OSError (BrokenPipeError) without a reader."""
    view = memoryview(data)
    while view:
        view = view[_write(descriptor, view) :]
