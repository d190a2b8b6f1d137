"""Group-relative advantages."""

from __future__ import annotations

import math

import pytest

from selfdistill.signal import group_advantages


def test_by_hand() -> None:
    assert group_advantages([1, 0, 0, 0]) == (0.75, -0.25, -0.25, -0.25)


def test_divided_by_the_sample_deviation() -> None:
    # mean 1/4, squared deviations 9/16 + 3/16 = 3/4, over n − 1 = 3: variance 1/4, deviation 1/2
    assert group_advantages([1, 0, 0, 0], divide_by_std=True) == pytest.approx((1.5, -0.5, -0.5, -0.5))


def test_they_sum_to_zero() -> None:
    assert math.fsum(group_advantages([0.1, 0.7, 0.35, 1.0, 0.0])) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("rewards", [[], [0.3], [0.1] * 3, [1, 1, 1]])
@pytest.mark.parametrize("divide", [False, True])
def test_flat_groups_are_exactly_zero(rewards: list[float], divide: bool) -> None:
    assert group_advantages(rewards, divide_by_std=divide) == (0.0,) * len(rewards)
