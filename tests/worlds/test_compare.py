"""What counts as the same answer."""

import math

import pytest

from selfdistill.worlds.compare import same_output, same_value
from selfdistill.worlds.sandbox.wire import Opaque, decode, encode


@pytest.mark.parametrize(("got", "expected"), [
    (2, 2.0), (0.1 + 0.2, 0.3), (1.6666666667, 1.66667), (1e12 + 1, 1e12), (True, 1), (False, 0.0), (None, None),
    ((1, 2), [1, 2]), ([(1,), [2]], [[1], (2,)]), ({1: "a"}, {"1": "a"}), ({"a": (1, 2)}, {"a": [1, 2.0]}),
    ({1, 2}, {2, 1}), (math.nan, math.nan), ([math.inf], [math.inf]), ("a b", "a b"), (2**80, 2**80),
    ({True: 1, None: 2}, {"true": 1, "null": 2}), ([], ()),
])  # fmt: skip
def test_alike(got, expected):
    assert same_value(got, expected)
    assert same_value([got], [expected])


@pytest.mark.parametrize(("got", "expected"), [
    (2, 3), (1.6667, 1.66667), (2**53 + 1, float(2**53)), (10**18 + 1, 1e18), (10**18, 10**18 + 1), ("1", 1), (1, "1"),
    (None, 0), (None, False), ([1, 2], [2, 1]), ([1], [1, 1]), ([1, 2], {1, 2}), ({"a": 1}, {"a": 1, "b": 2}),
    ({1: "a", "1": "b"}, {"1": "a"}), (math.nan, 0.0), (math.inf, -math.inf), ("A", "a"), ([], None), ({}, []),
])  # fmt: skip
def test_different(got, expected):
    assert not same_value(got, expected)
    assert not same_value((got,), (expected,))


@pytest.mark.parametrize(("got", "expected"), [
    ("1 2\n3\n", "1 2 3"), ("YES", "YES\n"), ("0.333333333", "0.33333"), ("2.0", "2"), ("007", "7"), ("1e3", "1000"),
    ("", "\n"), ("-0.0", "0"), ("[1, 2]", "[1, 2]"), ("1" * 5000, "1" * 5000),
])  # fmt: skip
def test_outputs_alike(got, expected):
    assert same_output(got, expected)


@pytest.mark.parametrize(("got", "expected"), [
    ("1 2", "1 2 3"), ("Yes", "YES"), ("0.3333", "0.33333"), ("1", "one"), ("", "0"), ("12", "1 2"), ("nan", "1"),
    ("100000000000000001", "100000000000000002"), ("1_0", "10"),
])  # fmt: skip
def test_outputs_different(got, expected):
    assert not same_output(got, expected)


def test_values_survive_the_wire():
    for value in (None, True, -3, 2**70, 1.5, "ü\ud800", [1, (2, {3}), {(1, 2): [None]}], {}, (), set()):
        back = decode(encode(value))
        assert (back, type(back)) == (value, type(value))
    assert math.isnan(decode(encode(math.nan)))


def test_a_subclass_cannot_lie_about_what_it_holds():
    class Liar(list[int]):
        def __iter__(self):
            return iter([1, 2, 3])

        def __eq__(self, other):
            return True

    assert decode(encode(Liar([9]))) == [9]


def test_an_opaque_value_equals_nothing():
    back = decode(encode(object()))
    assert isinstance(back, Opaque)
    assert not same_value(back, repr(back))
    assert not same_value([back], [object()])
