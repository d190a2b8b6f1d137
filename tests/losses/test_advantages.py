"""Group-relative advantages."""

from __future__ import annotations

import math

import pytest

from selfdistill.losses import REWARD_TOLERANCE, equal_rewards, group_advantages


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


ROUNDED = [[0.1 + 0.2, 0.3], [sum([0.1] * 10), 1.0, 1.0], [1 / 3 + 1 / 3 + 1 / 3, 1.0], [0.3, 0.30000001192092896]]


@pytest.mark.parametrize("rewards", ROUNDED)
@pytest.mark.parametrize("divide", [False, True])
def test_rewards_that_differ_by_rounding_are_equal(rewards: list[float], divide: bool) -> None:
    """Also those of a sum in float32: 0.30000001… is its 0.3. Divided by a deviation of 1e-17 they would be ±0.7."""
    assert equal_rewards(rewards)
    assert group_advantages(rewards, divide_by_std=divide) == (0.0,) * len(rewards)


def test_the_smallest_difference_that_counts() -> None:
    assert equal_rewards([0.5, 0.5 + REWARD_TOLERANCE / 2])
    assert not equal_rewards([0.5, 0.5 + REWARD_TOLERANCE * 2])
    assert group_advantages([0.0, 1e-5], divide_by_std=True) == pytest.approx((-(0.5**0.5), 0.5**0.5))
    assert equal_rewards([3e6, 3e6 + 1]), "relative to large ones"


def test_a_reward_that_is_the_mean_up_to_rounding_has_an_advantage_of_zero() -> None:
    """0.1 + 0.2 is 0.30000000000000004, the mean is 0.3: without a tolerance its advantage would be positive."""
    assert group_advantages([0.0, 0.1 + 0.2, 0.6])[1] == 0.0
