"""Whether the value that a program gave equals the expected one: Python's `==`, loosened where data files force it.

- Lists and tuples are alike: JSON has only lists. A set equals a set, never a list.
- Numbers are alike by value: 2 and 2.0, True and 1, Decimal("2.5") and 2.5. Where one is a float they may differ by
  `RELATIVE` of the larger or by `ABSOLUTE`, because files print five decimals (1.66667); all other numbers are exact.
  From 2**53 on, where floats skip integers, any other number is again compared exactly. NaN equals NaN, but in no set.
- Dictionary keys are compared as JSON writes them: {1: "a"} equals {"1": "a"}.
- Printed text is compared token by token; layout does not count, case does. Tokens that are numbers are compared as
  numbers, unless the expected one is a digit string with a leading zero (a bit string, an identifier).

What a program gave may be hostile: nothing here recurses, hashes its numbers, or takes longer than a few times reading.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

from selfdistill.envs.sandbox.wire import DictItems, SetItems

RELATIVE = 1e-6
ABSOLUTE = 1e-5
_EXACT_FLOATS = 2**53
_DIGITS_PER_BIT = math.log10(2)
_SHORT_INTEGER = 600  # digits that Python converts fast, and whatever limit is set for them
_PRIME = 31415926535897932384626433832795028841971693993751058209749445923078164062963  # any large one
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,9}+)?")
_LEADING_ZERO = re.compile(r"0[0-9]+")
_unequal = itertools.count()  # each number of it stands for a value that equals no other

Real: TypeAlias = int | float | Decimal | Fraction
_NUMBERS = (int, float, complex, Decimal, Fraction)


def same_value(got: Any, expected: Any) -> bool:
    """Whether the value `got` of a program counts as `expected`; both hold containers and scalars, nested at will."""
    waiting = [(got, expected)]
    while waiting:
        one, other = waiting.pop()
        if isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS):
            same = same_number(one, other)
        elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            same = len(one) == len(other)
            waiting += zip(one, other, strict=False)
        elif isinstance(one, (dict, DictItems)) and isinstance(other, (dict, DictItems)):
            values = _values_by_key(_parts(one)[1], _parts(other)[1])
            same = values is not None
            waiting += values or ()
        else:
            same = same_exactly(one, other)
        if not same:
            return False
    return True


def same_exactly(got: Any, expected: Any) -> bool:
    """Whether two values are equal in Python, with nothing loosened. A value never equals itself by identity."""
    return identity(got) == identity(expected)


def same_number(got: Any, expected: Any) -> bool:
    """Equality of two numbers within the tolerance above."""
    if isinstance(got, complex) or isinstance(expected, complex):
        return same_number(got.real, expected.real) and same_number(got.imag, expected.imag)
    if _is_nan(got) or _is_nan(expected):
        return _is_nan(got) and _is_nan(expected)
    others = [number for number in (got, expected) if not isinstance(number, float)]
    if len(others) == 2 or not all(-_EXACT_FLOATS < number < _EXACT_FLOATS for number in others):
        return same_exactly(got, expected)
    return math.isclose(got, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _is_nan(number: Real) -> bool:
    return number.is_nan() if isinstance(number, Decimal) else isinstance(number, float) and math.isnan(number)


def _values_by_key(got: Sequence[Any], expected: Sequence[Any]) -> list[tuple[Any, Any]] | None:
    """The pairs of values under equal keys; None where the keys differ."""
    longest = max((len(key) for key, _ in expected if isinstance(key, str)), default=0)
    by_key, wanted = ({_json_key(key, longest): value for key, value in pairs} for pairs in (got, expected))
    if len(got) != len(expected) or len(by_key) != len(got) or by_key.keys() != wanted.keys():
        return None
    return [(by_key[key], value) for key, value in wanted.items()]


def _json_key(key: Any, longest: int) -> tuple[str, str]:
    """The key as JSON writes it. A long integer is not written out when no expected text is as long (`longest`)."""
    if isinstance(key, str):
        return "written", key
    if key is None or isinstance(key, (bool, float)):
        return "written", json.dumps(key)
    if isinstance(key, int) and key.bit_length() * _DIGITS_PER_BIT < max(longest + 1, _SHORT_INTEGER):
        return "written", str(Decimal(key))  # which has no limit of digits, as str(int) has
    return "equal", identity(key)


def identity(value: Any) -> str:
    """A text that two values share when they are equal in Python, and else never by any real chance.

    It takes the place of Python's `==` and hash, of which a program can choose the costs and the collisions. NaN and
    objects of other types equal nothing. Linear in the size.
    """
    order, waiting = [], [value]
    while waiting:
        name, parts = _parts(waiting.pop())
        order.append((name, len(parts)))
        waiting += parts
    done: list[str] = []
    for name, size in reversed(order):  # now the parts stand before what holds them
        if name not in ("list", "tuple", "set", "dict"):
            done.append(name)
            continue
        start = len(done) - size
        texts = done[start:] if name in ("list", "tuple") else sorted(done[start:])
        body = "".join(f"{len(text)}:{text}" for text in texts).encode("utf-8", "surrogatepass")
        done[start:] = [f"{name} {hashlib.blake2b(body, digest_size=32).hexdigest()}"]
    return done[0]


def _parts(value: Any) -> tuple[str, Sequence[Any]]:
    """The kind of a container and what it holds (a dictionary: its pairs); the identity of any other value."""
    match value:
        case list() | tuple():
            return "list" if isinstance(value, list) else "tuple", value
        case set() | frozenset() | SetItems():
            return "set", list(value.items if isinstance(value, SetItems) else value)
        case dict() | DictItems():
            return "dict", value.pairs if isinstance(value, DictItems) else list(value.items())
        case complex(imag=imag) if imag:
            return f"{_residue(value.real)} + {_residue(imag)}j", ()
        case int() | float() | complex() | Decimal() | Fraction():
            return f"number {_residue(value.real)}", ()
        case None | str() | bytes():
            return f"{type(value).__name__} {value!r}", ()
    return f"object {next(_unequal)}", ()


def _residue(number: Real) -> str:
    """The number modulo a prime, as Python's own hash is made, but of 255 bits: cheap also for 1e999999999."""
    if _is_nan(number):
        return f"nan {next(_unequal)}"
    if number in (math.inf, -math.inf):
        return f"{float(number)}"
    if isinstance(number, Decimal):
        return f"{_decimal_residue(number):x}"
    over, under = number.as_integer_ratio()
    return f"{over * pow(under, -1, _PRIME) % _PRIME:x}"


def _decimal_residue(number: Decimal) -> int:
    mantissa, _, exponent = str(number.copy_abs()).partition("E")
    whole, _, fraction = mantissa.partition(".")
    digits, residue = whole + fraction, 0
    for start in range(0, len(digits), _SHORT_INTEGER):
        chunk = digits[start : start + _SHORT_INTEGER]
        residue = (residue * pow(10, len(chunk), _PRIME) + int(chunk)) % _PRIME
    scaled = residue * pow(10, int(exponent or 0) - len(fraction), _PRIME) % _PRIME
    return -scaled % _PRIME if number.is_signed() else scaled


def same_output(got: str, expected: str) -> bool:
    """Whether printed text counts as `expected`: the same tokens between white space, numbers within tolerance."""
    got_tokens, expected_tokens = got.split(), expected.split()
    return len(got_tokens) == len(expected_tokens) and all(map(_same_token, got_tokens, expected_tokens))


def _same_token(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if _LEADING_ZERO.fullmatch(expected) or not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    return same_number(_number(got), _number(expected))


def _number(token: str) -> Real:
    """The number a token writes; a decimal where it is too long or too large for the other types."""
    if _INTEGER.fullmatch(token):
        return int(token) if len(token) <= _SHORT_INTEGER else Decimal(token)
    number = float(token)
    return number if math.isfinite(number) else Decimal(token)
