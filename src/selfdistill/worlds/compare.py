"""When is what a program gave the same as what was expected? Python's `==`, loosened where data files force it.

- Lists and tuples are alike: JSON has only lists. A set equals a set, never a list.
- Numbers are alike by value: 2 and 2.0, True and 1. Integers are exact; where one is a float they may differ by
  `RELATIVE` of the larger or by `ABSOLUTE`, because files print five decimals (1.66667). From 2**53 on, where floats
  skip integers, an integer is again compared exactly. NaN equals NaN.
- Dictionary keys are compared as JSON writes them: {1: "a"} equals {"1": "a"}.
- Printed text is compared token by token; layout does not count, case does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

RELATIVE = 1e-6
ABSOLUTE = 1e-5
_EXACT_FLOATS = 2**53
_INTEGER = re.compile(r"[+-]?\d{1,4000}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")


def same_value(got: Any, expected: Any) -> bool:
    """Whether the value `got` of a program counts as `expected`; both hold plain containers and scalars."""
    if isinstance(got, (int, float)) and isinstance(expected, (int, float)):
        return same_number(got, expected)
    if isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(map(same_value, got, expected))
    if isinstance(got, dict) and isinstance(expected, dict):
        return _same_mapping(got, expected)
    return type(got) is type(expected) and bool(got == expected)


def same_number(got: float, expected: float) -> bool:
    """Equality of two numbers within the tolerance above."""
    if isinstance(got, int) and isinstance(expected, int):
        return got == expected
    if math.isnan(got) or math.isnan(expected):
        return math.isnan(got) and math.isnan(expected)
    if any(isinstance(number, int) and abs(number) >= _EXACT_FLOATS for number in (got, expected)):
        return got == expected
    return math.isclose(got, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def same_output(got: str, expected: str) -> bool:
    """Whether printed text counts as `expected`: the same tokens between white space, numbers within tolerance."""
    got_tokens, expected_tokens = got.split(), expected.split()
    return len(got_tokens) == len(expected_tokens) and all(map(_same_token, got_tokens, expected_tokens))


def _same_token(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if _INTEGER.fullmatch(got) and _INTEGER.fullmatch(expected):
        return int(got) == int(expected)
    if _NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected):
        return same_number(_number(got), _number(expected))
    return False


def _number(token: str) -> float:
    return int(token) if _INTEGER.fullmatch(token) else float(token)


def _same_mapping(got: Mapping[Any, Any], expected: Mapping[Any, Any]) -> bool:
    by_key = {_json_key(key): value for key, value in got.items()}
    wanted = {_json_key(key): value for key, value in expected.items()}
    return (
        len(by_key) == len(got)
        and by_key.keys() == wanted.keys()
        and all(same_value(by_key[key], value) for key, value in wanted.items())
    )


def _json_key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(key, default=repr)
