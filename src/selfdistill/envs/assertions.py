"""Assertions about one value: the program's process evaluates the value; the expected one stays outside of it.

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
from types import NoneType
from typing import Any

from selfdistill.envs.compare import same_exactly

_ORDERED, _CONTAINERS = (int, float, str), (str, list, tuple, set, dict)
# How each relation is written, and the types of a literal that it is compared with outside.
_RELATIONS: dict[type[ast.cmpop], tuple[str, Any]] = {
    ast.Eq: ("==", object), ast.NotEq: ("!=", object), ast.Is: ("is", (bool, NoneType)),
    ast.IsNot: ("is not", (bool, NoneType)), ast.In: ("in", _CONTAINERS), ast.NotIn: ("not in", _CONTAINERS),
    ast.Lt: ("<", _ORDERED), ast.LtE: ("<=", _ORDERED), ast.Gt: (">", _ORDERED), ast.GtE: (">=", _ORDERED),
}  # fmt: skip
_TURNED = {"==": "==", "!=": "!=", "is": "is", "is not": "is not", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_ARITHMETIC: dict[type[ast.operator], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_MAKERS: dict[str, Any] = {
    kind.__name__: kind for kind in (set, frozenset, list, tuple, dict, int, float, complex, bool)
}
_NUMBERS = (int, float, complex)
_LARGEST = 10**4  # of an operand of arithmetic with powers
_NO_LITERAL = (ValueError, TypeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class Assertion:
    """`expression` is evaluated; its value has to stand in `relation` to `expected`. The relations "true" and "false"
    are about the truth of the value alone."""

    expression: str
    relation: str
    expected: Any = None
    message: str = ""

    def condition(self, expected: str) -> str:
        """What the value has to be, in words around the expected value as text."""
        words = {"true": "a true value", "false": "a false value", "==": expected, "is": expected}
        text = words.get(self.relation, f"{self.relation} {expected}")
        return f"{text} ({self.message})" if self.message else text

    @property
    def needs_truth(self) -> bool:
        """Whether the sandbox sends the truth of the value beside it."""
        return self.relation in ("true", "false")

    def holds(self, value: Any, truth: bool | None = None) -> bool:
        """Whether the value that came out satisfies the assertion; `truth` is that of the value, if it is known."""
        match self.relation:
            case "true" | "false":
                return truth is (self.relation == "true")
            case "==" | "!=":
                return same_exactly(value, self.expected) is (self.relation == "==")
            case "is" | "is not":
                return (value is self.expected) is (self.relation == "is")
            case "in" | "not in":
                if isinstance(self.expected, str):
                    found = isinstance(value, str) and value in self.expected
                else:
                    found = any(same_exactly(value, item) for item in self.expected)
                return found is (self.relation == "in")
        ordered = (int, float) if isinstance(self.expected, (int, float)) else str
        return isinstance(value, ordered) and bool(_ORDERS[self.relation](value, self.expected))


@lru_cache(maxsize=4096)  # every answer to a task reads its tests again
def read_assertion(source: str) -> Assertion | None:
    """The assertion in a test's source; None where it has to run as it is."""
    try:
        body = ast.parse(source).body
        return _read(body[0], source) if len(body) == 1 and isinstance(body[0], ast.Assert) else None
    except (SyntaxError, MemoryError, *_NO_LITERAL):
        return None


def _read(statement: ast.Assert, source: str) -> Assertion | None:
    message = "" if statement.msg is None else str(_literal(statement.msg))
    test = statement.test
    relation, value, expected = "true", test, None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        relation, value = "false", test.operand
    elif isinstance(test, ast.Compare):
        if len(test.ops) > 1:
            return None
        (relation, types), value = _RELATIONS[type(test.ops[0])], test.left
        try:
            expected = _literal(test.comparators[0])
        except _NO_LITERAL:
            relation, value, expected = _TURNED.get(relation, ""), test.comparators[0], _literal(test.left)
        if not relation or not isinstance(expected, types):
            return None
    text = ast.get_source_segment(source, value) or ast.unparse(value)
    return Assertion(text, relation, expected, message)


def _literal(node: ast.expr | None) -> Any:
    """The value of an expression of constants alone, such as `set([1, 2])`, `10**9 + 7` or `float("inf")`. Raises
    ValueError for any other."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if len(arguments) <= 1:
            if name not in _MAKERS:
                raise ValueError(name)
            return _MAKERS[name](*map(_literal, arguments))
        case ast.BinOp(left=left, op=op, right=right):
            one, other = _literal(left), _literal(right)
            power = isinstance(op, ast.Pow) and max(abs(one), abs(other)) > _LARGEST
            if type(op) not in _ARITHMETIC or power or not all(isinstance(n, _NUMBERS) for n in (one, other)):
                raise ValueError("no arithmetic of small numbers")
            return _ARITHMETIC[type(op)](one, other)
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return _MAKERS[type(node).__name__.lower()](map(_literal, parts))
        case ast.Dict(keys=keys, values=values):
            return dict(zip(map(_literal, keys), map(_literal, values), strict=True))
        case ast.expr():
            return ast.literal_eval(node)
    raise ValueError("the entries of another dictionary")
