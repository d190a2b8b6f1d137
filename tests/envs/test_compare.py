"""What counts as the same answer."""

import json
import math
import random
import sys
import time
from decimal import Decimal
from fractions import Fraction

import pytest

from selfdistill.envs.compare import identity, same_exactly, same_output, same_value
from selfdistill.envs.sandbox.wire import Opaque, TooLargeError, decode, encode, short_repr
from selfdistill.envs.shown import show_value

LONG = "9" * 5000


def name(value):
    return short_repr(value)[:20]


def nested(depth, core=0):
    for _ in range(depth):
        core = [core]
    return core


def travelled(value):
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(("got", "expected"), [
    (2, 2.0), (0.1 + 0.2, 0.3), (1.6666666667, 1.66667), (1e12 + 1, 1e12), (True, 1), (False, 0.0), (None, None),
    ((1, 2), [1, 2]), ([(1,), [2]], [[1], (2,)]), ({1: "a"}, {"1": "a"}), ({"a": (1, 2)}, {"a": [1, 2.0]}),
    ({1, 2}, {2, 1}), (math.nan, math.nan), ([math.inf], [math.inf]), ("a b", "a b"), (2**80, 2**80),
    ({True: 1, None: 2}, {"true": 1, "null": 2}), ([], ()), (Decimal("2.5"), 2.5), (Decimal("0.1"), 0.1),
    (Fraction(1, 3), 0.333333), (Fraction(4, 2), 2), (Decimal("1e400"), 10**400), (2 + 0j, 2), (1j, 0.0000001 + 1j),
    (Decimal("Infinity"), math.inf), (Decimal("NaN"), math.nan), ({(1, 2): "a"}, {(1.0, 2): "a"}), (b"ab", b"ab"),
    ({10**5000: 1}, {"1" + "0" * 5000: 1}), ({frozenset({1}), 2}, {2, frozenset({1})}), (2**2000, Decimal(2**2000)),
    (Decimal("123456789012345678901234567890.5"), Fraction(246913578024691357802469135781, 2)),
], ids=name)  # fmt: skip
def test_alike(got, expected):
    assert same_value(got, expected)
    assert same_value([got], [expected])
    assert same_value(travelled(got), expected)


@pytest.mark.parametrize(("got", "expected"), [
    (2, 3), (1.6667, 1.66667), (2**53 + 1, float(2**53)), (10**18 + 1, 1e18), (10**18, 10**18 + 1), ("1", 1), (1, "1"),
    (None, 0), (None, False), ([1, 2], [2, 1]), ([1], [1, 1]), ([1, 2], {1, 2}), ({"a": 1}, {"a": 1, "b": 2}),
    ({1: "a", "1": "b"}, {"1": "a"}), (math.nan, 0.0), (math.inf, -math.inf), ("A", "a"), ([], None), ({}, []),
    (2**2000, 0.5), (0.5, 2**2000), (2**2000, math.inf), (10**4000, Decimal("1e4001")), (Decimal("1e400"), math.inf),
    (Decimal("sNaN"), 1), (Decimal("1e999999999"), 5), (Decimal("1e999999999"), 0.5), (Fraction(10**400), math.inf),
    (Decimal("2.5"), "2.5"), (Fraction(1, 3), Decimal("0.3333333333")), (1 + 1j, 1), ({10**5000: 1}, {LONG: 1}),
    ({10**5000: 1}, {10**5000 + 1: 1}), ({Decimal(5): 1}, {"5": 1}), ({2**2000}, {2**2001}), (b"ab", "ab"),
    ({1, 2}, {1, 3}), (Decimal(2**60) + Decimal("0.5"), float(2**60)),
], ids=name)  # fmt: skip
def test_different(got, expected):
    assert not same_value(got, expected)
    assert not same_value((got,), (expected,))
    assert not same_value(travelled(got), expected)


@pytest.mark.parametrize(("got", "expected"), [
    ("1 2\n3\n", "1 2 3"), ("YES", "YES\n"), ("0.333333333", "0.33333"), ("2.0", "2"), ("007", "7"), ("1e3", "1000"),
    ("", "\n"), ("-0.0", "0"), ("[1, 2]", "[1, 2]"), ("1" * 5000, "1" * 5000), (LONG + ".0", LONG), ("0" + LONG, LONG),
    ("+5", "5"), ("1e400", "1" + "0" * 400), ("0.5", "00.5"),
], ids=name)  # fmt: skip
def test_outputs_alike(got, expected):
    assert same_output(got, expected)


@pytest.mark.parametrize(("got", "expected"), [
    ("1 2", "1 2 3"), ("Yes", "YES"), ("0.3333", "0.33333"), ("1", "one"), ("", "0"), ("12", "1 2"), ("nan", "1"),
    ("100000000000000001", "100000000000000002"), ("1_0", "10"), (LONG, "8" * 5000), (LONG, LONG + "9"), ("7", "007"),
    (LONG + ".5", LONG), ("1e400", "1e401"), ("1e999999999", "2e999999999"), ("0101", "00101"), ("1", "01"),
    ("٣", "3"), ("1e9999999999", "1e9999999998"), ("inf", "1e400"),
], ids=name)  # fmt: skip
def test_outputs_different(got, expected):
    assert not same_output(got, expected)


def test_values_survive_the_wire():
    values = [
        None, True, -3, 2**70, 1.5, 2 - 1j, b"\xff\0", Decimal("-1.50"), Fraction(-1, 3), "ü\ud800",
        [1, (2, {3}), {(1, 2): [None]}], {}, (), set(), frozenset({frozenset(), 1}), nested(3_000), [LONG],
    ]  # fmt: skip
    for value in values:
        back = travelled(value)
        assert same_exactly(back, value)
        assert show_value(back) == show_value(value)
    assert math.isnan(travelled(math.nan))
    assert str(travelled(Decimal("-1.50"))) == "-1.50"


def test_nesting_of_any_depth_is_compared():
    deep, deeper = nested(20_000), nested(20_001)
    assert same_value(travelled(deep), nested(20_000))
    assert not same_value(travelled(deep), deeper)
    assert not same_value(travelled(deep), nested(20_000, 1))
    assert short_repr(deep) == "<list: its repr raised RecursionError>"


def test_a_value_of_too_many_parts_is_refused():
    endless = []
    endless.append(endless)
    for value in (endless, [0] * 11, {n: n for n in range(6)}):
        with pytest.raises(TooLargeError, match="more than 10 parts"):
            encode(value, 10)
    assert encode([0] * 9, 10)


def test_a_long_integer_is_shown_by_its_length():
    assert short_repr(-(10**5000)) == "<an integer of about 5001 digits>"
    assert show_value(travelled({10**5000: 1})) == "{<an integer of about 5001 digits>: 1}"


RANDOM_SCALARS = (
    0, 1, -1, 2, True, False, None, 0.0, 1.0, 0.5, -0.0, 2**53, 2**53 + 1, float(2**53), 10**400, math.inf, -math.inf,
    "", "a", "1", b"a", 1j, 1 + 0j, Decimal(1), Decimal("0.5"), Decimal("1.0"), Decimal("Infinity"), Decimal("1e400"),
    Decimal("0.1"), 0.1, Fraction(1, 2), Fraction(1, 10), Fraction(1), Fraction(1, 3),
)  # fmt: skip


def random_value(pick, depth, hashable=False):
    kind = pick.choice("ssstf" if hashable else "sslltdef") if depth else "s"
    size = pick.randrange(4)
    if kind in "sltf":
        within = [random_value(pick, depth - 1, hashable or kind in "ef") for _ in range(size)] if kind != "s" else []
        make = {"l": list, "t": tuple, "f": lambda items: frozenset(random_value(pick, depth - 1, True) for _ in items)}
        return pick.choice(RANDOM_SCALARS) if kind == "s" else make[kind](within)
    items = [random_value(pick, depth - 1, True) for _ in range(size)]
    return set(items) if kind == "e" else {item: random_value(pick, depth - 1) for item in items}


def test_exact_comparison_is_python_s():
    pick = random.Random(13)
    values = [random_value(pick, 3) for _ in range(600)]
    alike = 0
    for one in values:
        for other in pick.sample(values, 40):
            assert same_exactly(travelled(one), other) == (one == other), (one, other)
            alike += one == other and repr(one) != repr(other)
    assert alike > 100  # equal values of different types were met


def test_keys_are_identified_as_python_hashes_them():
    for one in RANDOM_SCALARS:
        for other in RANDOM_SCALARS:
            assert (identity((one, "x")) == identity((other, "x"))) == (one == other), (one, other)


def test_what_was_forged_is_refused_and_ends():
    forged = [
        [], [1, 2], [["list", 5]], [1, ["list", -1]], [["list"]], [["dict", 0.5]], [["what", 0]], [{"a": 1}], [[[], 0]],
        [["int", "zz"]], [["decimal", "x"]], [["fraction", "1", "0"]], [["fraction", "f" * 10**6, "3"]],
        [["bytes", "z"]], [["complex", "a", 1]], [[]],
    ]  # fmt: skip
    for nodes in forged:
        with pytest.raises((ArithmeticError, LookupError, TypeError, ValueError)):
            decode(nodes)


def test_printed_text_of_any_size_is_compared_at_once():
    digits = "9" * 10**6
    texts = [
        digits + "x",
        f"{digits}.{digits}e",
        "1e" + digits,
        digits,
        "." * 10**6,
        "+" * 10**6,
        "0" * 10**6,
        "1 " * 10**6,
    ]
    began = time.monotonic()
    for got in texts:
        for expected in ("1", "1.5", "8" * 10**6, "2 " * 10**6):
            assert not same_output(got, expected)
    assert time.monotonic() - began < 20  # what is not linear takes minutes


def test_values_of_any_size_are_compared_at_once():
    period = 2**61 - 1  # of Python's hash of numbers
    colliding = [part for n in range(1, 30_001) for part in (["int", f"{n * period:x}"], 1)]
    huge = ["decimal", "1E+999999999999999999"]
    began = time.monotonic()
    assert not same_value(decode([*colliding, ["dict", 30_000]]), {str(n): 1 for n in range(30_000)})
    assert not same_value(decode([*colliding, ["set", 60_000]]), set(range(60_000)))
    for expected in (0, 0.5, 10**4000, Fraction(1, 3), Decimal(3), -1):
        assert not same_value(decode([huge]), expected)
        assert not same_value(decode([huge, ["set", 1]]), {expected})
        assert not same_value(decode([["decimal", "0." + "3" * 10**6]]), expected)
        assert not same_value(decode([["decimal", "7" * 10**6]]), expected)
    assert time.monotonic() - began < 20  # what is not linear takes minutes


def test_a_limit_on_the_digits_of_integers_changes_nothing():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert same_value({10**4000: 1}, {"1" + "0" * 4000: 1})
        assert not same_output("1" * 3000, "1" * 2999 + "2")
        assert same_output("1" * 3000 + ".0", "1" * 3000)
    finally:
        sys.set_int_max_str_digits(before)


def test_a_subclass_cannot_lie_about_what_it_holds():
    class Liar(list[int]):
        def __iter__(self):
            return iter([1, 2, 3])

        def __eq__(self, other):
            return True

    assert decode(encode(Liar([9]))) == [9]

    class LyingDecimal(Decimal):
        def __str__(self):
            return "1"

        def __eq__(self, other):
            return True

        __hash__ = Decimal.__hash__

    class LyingFraction(Fraction):
        numerator = 1

        def __eq__(self, other):
            return True

        __hash__ = Fraction.__hash__

    assert decode(encode(LyingDecimal(9))) == 9
    assert isinstance(decode(encode(LyingFraction(9, 2))), Opaque)


def test_an_opaque_value_equals_nothing():
    back = decode(encode(object()))
    assert isinstance(back, Opaque)
    assert not same_value(back, repr(back))
    assert not same_value([back], [object()])
