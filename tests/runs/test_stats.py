from math import isclose

import pytest

from selfdistill.runs import mean, share, wilson_interval


def test_wilson_interval_by_hand():
    # 8 of 10, z² = 3.8415: centre (8 + 1.9207) / 13.8415 = 0.7167
    # half 1.95996 / 13.8415 · √(8 · 2 / 10 + 0.96037) = 0.1416 · 1.6001 = 0.2266
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_wilson_interval_is_never_empty_and_never_outside():
    assert wilson_interval(0, 10)[0] == 0.0 < wilson_interval(0, 10)[1] < 0.31
    assert wilson_interval(10, 10)[1] == 1.0 > wilson_interval(10, 10)[0] > 0.69
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_share_carries_its_n():
    estimate = share(3, 4)
    assert (estimate.value, estimate.n) == (0.75, 4)
    assert estimate.low < 0.75 < estimate.high


def test_mean_of_three_seeds_by_hand():
    # mean 0.8, deviation 0.1, t(2) = 4.303: half 4.303 · 0.1 / √3 = 0.2484
    estimate = mean([0.7, 0.8, 0.9])
    assert isclose(estimate.value, 0.8)
    assert estimate.high - estimate.value == pytest.approx(0.2484, abs=1e-4)


def test_mean_of_one_value_claims_no_spread():
    assert mean([0.5]) == mean([0.5])
    assert (mean([0.5]).low, mean([0.5]).high, mean([0.5]).n) == (0.5, 0.5, 1)
