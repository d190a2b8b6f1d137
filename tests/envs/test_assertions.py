"""Assertions about one value: what is evaluated, what is compared, and that patching Python gains nothing."""

import textwrap

import pytest

from sandbox_parts import needs_isolation
from selfdistill.data.rows import row_to_task
from selfdistill.envs.assertions import read_assertion
from selfdistill.envs.code import CodeEnvironment, CodeOptions
from selfdistill.types import Completion


def score(code: str, *tests: str):
    task = row_to_task({"text": "p", "test_list": list(tests)})
    answer = Completion("u", f"```python\n{textwrap.dedent(code)}\n```")
    return CodeEnvironment(CodeOptions(time_limit_s=5)).score(task, answer)


@pytest.mark.parametrize(("source", "expression", "relation", "expected"), [
    ("assert f(1) == 2", "f(1)", "==", 2), ("assert 2 == f(1)", "f(1)", "==", 2),
    ("assert (f(1)) == (2)", "f(1)", "==", 2), ("assert f(1) is None", "f(1)", "is", None),
    ("assert f(1) is not True", "f(1)", "is not", True), ("assert not f(1)", "f(1)", "false", None),
    ("assert f(1)", "f(1)", "true", None), ("assert set(f(1)) == set([1, (2,)])", "set(f(1))", "==", {1, (2,)}),
    ("assert f(1) != -1.5", "f(1)", "!=", -1.5), ("assert f(1) == 10**9 + 7", "f(1)", "==", 10**9 + 7),
    ("assert f(1) == {'a': [1, None]}", "f(1)", "==", {"a": [1, None]}),
    ("assert f(1) == float('inf')", "f(1)", "==", float("inf")),
    ("assert f('a') in ('b', 'c')", "f('a')", "in", ("b", "c")),
    ("assert 1e-6 > abs(f(1) - 2)", "abs(f(1) - 2)", "<", 1e-6),
    ("assert f(\n  1,\n) == 2 # two", "f(\n  1,\n)", "==", 2),
    ("assert f(1)==frozenset()", "f(1)", "==", frozenset()), ("assert ''==f('ü', 1)", "f('ü', 1)", "==", ""),
])  # fmt: skip
def test_what_is_evaluated_and_what_it_is_held_to(source, expression, relation, expected):
    assertion = read_assertion(source)
    found = (assertion.expression, assertion.relation, assertion.expected, type(assertion.expected))
    assert found == (expression, relation, expected, type(expected))


@pytest.mark.parametrize("source", [
    "assert f(1) == g(2)", "assert 1 < f(1) < 3", "x = 1\nassert f(x) == 1", "assert f(1) is 257", "assert 1 in f(1)",
    "assert f(1) == 2, f'{x}'", "assert f(1) == 9 ** 9 ** 9", "assert f(1) == [*x]", "check(f)", "assert f(", "",
    "assert f(1) < [1]", "assert f(1) == {**x}", "assert f(1) == {[]: 1}", "assert f(1) == 1 // 0",
])  # fmt: skip
def test_what_runs_as_it_is(source):
    assert read_assertion(source) is None


@needs_isolation
@pytest.mark.parametrize(("returned", "test", "reward"), [
    ("2", "assert f() == 2", 1), ("2.0", "assert f() == 2", 1), ("True", "assert f() == 1", 1),
    ("2", "assert f() is True", 0), ("[1]", "assert f() == (1,)", 0), ("(1,)", "assert f() == (1,)", 1),
    ("0.1 + 0.2", "assert f() == 0.3", 0), ("{1: 2}", "assert f() == {'1': 2}", 0),
    ("{2, 1}", "assert f() == {1, 2}", 1), ("frozenset({1})", "assert f() == {1}", 1),
    ("float('nan')", "assert f() == float('nan')", 0), ("float('nan')", "assert f() != float('nan')", 1),
    ("b'a'", "assert f() == b'a'", 1), ("1j", "assert f() == 1j", 1), ("10**30", "assert f() == 10**30", 1),
    ("None", "assert f() is None", 1), ("0", "assert f() is False", 0), ("1 == 1", "assert f() is True", 1),
    ("0", "assert not f()", 1), ("[]", "assert not f()", 1), ("[0]", "assert f()", 1), ("''", "assert f()", 0),
    ("object()", "assert f()", 1), ("__import__('re').match('a', 'a')", "assert f()", 1),
    ("range(0)", "assert not f()", 1),
    ("__import__('collections').Counter('aab')", "assert f() == {'a': 2, 'b': 1}", 1),
    ("iter([])", "assert f() == []", 0), ("__import__('fractions').Fraction(1, 2)", "assert f() == 0.5", 1),
    ("3", "assert f() in (1, 2)", 0), ("3", "assert f() not in (1, 2)", 1), ("'b'", "assert f() in 'abc'", 1),
    ("3", "assert f() >= 3", 1), ("'3'", "assert f() >= 3", 0), ("1e-9", "assert 1e-6 > f()", 1),
    ("3", "assert f() == 3, 'no'", 1),
    ("__import__('collections').namedtuple('P', 'x y')(1, 2)", "assert f() == (1, 2)", 1),
    ("7", "assert sorted(map(abs, [f(), -1])) == [1, 7]", 1), ("7", "assert 1 < f() < 9", 1),
    ("7", "assert 7 in [f()]", 1), ("7", "n = 7\nassert f() == n", 1),
])  # fmt: skip
def test_the_comparison_is_python_s(returned, test, reward):
    assert score(f"def f(): return {returned}", test).reward == reward


TRICKS = {
    "eq": "class T:\n    def __eq__(self, o): return True\n    def __bool__(self): return True\ndef f(x): return T()",
    "int": "class T(int):\n    def __eq__(self, o): return True\n    __lt__ = __ge__ = __eq__\ndef f(x): return T(7)",
    "str": "class T(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x): return T('')",
    "list": "class T(list):\n    def __eq__(self, o): return True\ndef f(x): return T()",
    "meta": "class M(type):\n    def __eq__(self, o): return True\n    __hash__ = type.__hash__\n"
            "class f(metaclass=M):\n    def __new__(cls, x): return cls",
    "builtins": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.set = builtins.sorted = lambda x: []\n"
                "builtins.AssertionError = SystemExit\ndef f(x): return 7",
    "error": "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E\ndef f(x): return 7",
    "patched": "import ast, operator, sys\nast.parse = lambda *a, **k: None\noperator.eq = lambda a, b: True\n"
               "sys.modules['__main__'].print = print\ndef f(x): return 7",
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "raise": "def f(x): raise AssertionError",
    "any": "import unittest.mock\ndef f(x): return unittest.mock.ANY",
}  # fmt: skip


@needs_isolation
@pytest.mark.parametrize("test", [
    "assert f(1) == 2", "assert 2 == f(1)", "assert f(1) is None", "assert not f(1)", "assert abs(f(1) - 2.0) < 1e-6",
    "assert f(1) in (2, 3)", "assert f(1) < 3", "assert [f(1)] == [2]", "assert {'a': f(1)} == {'a': 2}",
])  # fmt: skip
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_earn_nothing(trick, test):
    if (trick, test) not in {("str", "assert not f(1)"), ("list", "assert not f(1)")}:  # these do hold
        assert score(TRICKS[trick], test).reward == 0.0


@needs_isolation
def test_a_truth_that_the_program_writes_itself_does_not_count():
    code = (
        "class T:\n    n = 0\n    def __bool__(self):\n        T.n += 1\n        return T.n == 1\ndef f(x): return T()"
    )
    assert score(code, "assert f(1)").reward == 0.0


@needs_isolation
def test_feedback_shows_what_came_out_beside_what_was_expected():
    assert score("def f(x): return [x, 'a']", "assert f(1) == [2, 'a']").feedback == (
        "Wrong answer.\nInput: f(1)\nOutput: [1, 'a']\nExpected: [2, 'a']"
    )
    assert score("def f(x): return x", "assert not f(3), 'odd'").feedback.endswith(
        "Input: f(3)\nOutput: 3\nExpected: a false value (odd)"
    )
    assert score("def f(x): return x", "assert f(3) < 2").feedback.endswith("Output: 3\nExpected: < 2")
    assert score("def f(x): return x", "assert f(3) is None").feedback.endswith("Output: 3\nExpected: None")
    raised = score("def f(x): return x.y", "assert f(3) == 2").feedback
    assert raised.endswith("Line 1 in f\nLast input: assert f(3) == 2")


@needs_isolation
@pytest.mark.parametrize("error", [
    "StopIteration", "StopAsyncIteration", "GeneratorExit", "KeyboardInterrupt", "SystemExit", "RecursionError",
    "MemoryError", "AssertionError", "RuntimeError", "IndexError",
])  # fmt: skip
@pytest.mark.parametrize("test", ["assert f(1) == 2", "assert f(1) == f(2)", "assert f(1)", "x = f(1)\nassert x == 2"])
def test_an_exception_is_reported_as_itself(error, test):
    feedback = score(f"def f(x):\n    raise {error}('why')", test).feedback
    assert feedback.startswith(f"Runtime error.\n{error}: why\nLine 2 in f\nLast input: ")


@needs_isolation
def test_a_spent_iterator_is_reported_as_stop_iteration():
    feedback = score("def f(x): return next(iter(x))", "assert f([]) == 1").feedback
    assert feedback == "Runtime error.\nStopIteration\nLine 1 in f\nLast input: assert f([]) == 1"
