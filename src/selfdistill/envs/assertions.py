"""Assertions about one value: the program's process evaluates the value, and what it is held to stays on this side.

    assert f(1) == 2          assert f(2) is None          assert not f(3)          assert f(4) in (5, 6), "too far"

The comparison is Python's own, on plain values: no tolerance, a tuple equals no list, a subclass counts as the built-in
type that it derives from. So nothing that a program makes of `==`, `bool` or the built-ins decides. A value of another
type equals no literal. Other assertions (chained comparisons, several statements, a right side that is no literal) run
as they are, inside the program's process.
"""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from selfdistill.envs.compare import same_value

_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_TURNED = {"==": "==", "!=": "!=", "is": "is", "is not": "is not", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_ARITHMETIC: dict[type[ast.operator], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_MAKERS = (set, frozenset, list, tuple, dict, int, float, complex, bool)
_LARGEST = 10**4  # of an operand of arithmetic with powers


@dataclass(frozen=True, slots=True)
class Assertion:
    """`expression` is what to evaluate; what it gives is to stand in `relation` to `expected`. The relations "true" and
    "false" ask for the truth of the value alone."""

    expression: str
    relation: str
    expected: Any = None
    message: str = ""

    @property
    def asks_truth(self) -> bool:
        """Whether the truth of the value is to be sent beside it."""
        return self.relation in ("true", "false")

    def holds(self, value: Any, truth: bool | None = None) -> bool:
        """Whether the value that came out satisfies the assertion; `truth` is that of the value, if it is known."""
        match self.relation:
            case "true" | "false":
                return truth is (self.relation == "true")
            case "==" | "!=":
                return same_value(value, self.expected, exact=True) is (self.relation == "==")
            case "is" | "is not":
                return (value is self.expected) is (self.relation == "is")
            case "in" | "not in":
                return _is_in(value, self.expected) is (self.relation == "in")
        ordered = (int, float) if isinstance(self.expected, (int, float)) else str
        return isinstance(value, ordered) and bool(_ORDERS[self.relation](value, self.expected))


@lru_cache(maxsize=4096)  # a task's tests are asked for with every answer to it
def read_assertion(source: str) -> Assertion | None:
    """The assertion in a test's source; None where it has to run as it is."""
    try:
        body = ast.parse(source).body
        only = body[0] if len(body) == 1 else None
        if not isinstance(only, ast.Assert):
            return None
        message = "" if only.msg is None else str(_literal(only.msg))
        return _read(only.test, source, message)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _read(test: ast.expr, source: str, message: str) -> Assertion | None:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return Assertion(_text(test.operand, source), "false", message=message)
    if not isinstance(test, ast.Compare):
        return Assertion(_text(test, source), "true", message=message)
    if len(test.ops) > 1:
        return None
    relation, value, literal = _OPERATORS[type(test.ops[0])], test.left, test.comparators[0]
    if _is_literal(value) and not _is_literal(literal):
        relation, value, literal = _TURNED.get(relation, ""), literal, value
    expected = _literal(literal)
    fits = {
        "is": expected is None or isinstance(expected, bool), "in": isinstance(expected, (str, list, tuple, set, dict)),
        "<": isinstance(expected, (int, float, str)), "==": True,
    }  # fmt: skip
    kind = {"is not": "is", "not in": "in", "!=": "=="}.get(relation, "<" if relation in _ORDERS else relation)
    return Assertion(_text(value, source), relation, expected, message) if fits.get(kind) else None


def _text(node: ast.expr, source: str) -> str:
    return ast.get_source_segment(source, node) or ast.unparse(node)


def _is_literal(node: ast.expr) -> bool:
    try:
        _literal(node)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return False
    return True


def _literal(node: ast.expr) -> Any:
    """The value of an expression of constants alone, such as `set([1, 2])`, `10**9 + 7` or `float("inf")`. Raises
    ValueError for any other."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if len(arguments) <= 1:
            maker = next((maker for maker in _MAKERS if maker.__name__ == name), None)
            if maker is None:
                raise ValueError(name)
            return maker(*map(_literal, arguments))
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(op, _literal(left), _literal(right))
        case ast.List(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_literal(part) for part in parts)
        case ast.Set(elts=parts):
            return {_literal(part) for part in parts}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True) if key is not None}
    return ast.literal_eval(node)


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    power = isinstance(op, ast.Pow) and max(abs(left), abs(right)) > _LARGEST
    if type(op) not in _ARITHMETIC or power or not all(isinstance(n, (int, float, complex)) for n in (left, right)):
        raise ValueError("no arithmetic of small numbers")
    return _ARITHMETIC[type(op)](left, right)


def _is_in(value: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return isinstance(value, str) and value in expected
    return any(same_value(value, item, exact=True) for item in expected)
