"""Group-relative advantages: how much better an answer was than its group members."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

REWARD_TOLERANCE = 1e-6
"""Rewards this close to each other are equal, relative to the larger one where that is above 1. The sum of a thousand
float32 numbers is still rounded by less; a partial reward of one test in a hundred thousand is more."""


def equal_rewards(rewards: Sequence[float]) -> bool:
    """Whether all rewards are the same up to rounding, as 0.1 + 0.2 and 0.3 are: a zero-advantage group. None are."""
    return not rewards or max(rewards) - min(rewards) <= _tolerance(rewards)


def group_advantages(rewards: Sequence[float], *, divide_by_std: bool = False) -> tuple[float, ...]:
    """r − mean(r) for the answers of one group, e.g. (1, 0, 0, 0) gives (.75, −.25, −.25, −.25).

    `divide_by_std` also divides by the sample standard deviation (n − 1), as GRPO was published; leaving it out does
    not favour questions that are almost always or almost never solved (Dr. GRPO). A group whose rewards are equal up to
    `REWARD_TOLERANCE` gives exact zeros, also when it has one member; so does a reward that is the mean up to it, for
    the sign of an advantage decides more than its size in some methods.

    Source: Shao et al., arXiv 2402.03300, §4.1; Liu et al., arXiv 2503.20783.
    """
    if equal_rewards(rewards):
        return (0.0,) * len(rewards)
    mean, tolerance = fmean(rewards), _tolerance(rewards)
    spread = stdev(rewards) if divide_by_std else 1.0
    return tuple((reward - mean) / spread if abs(reward - mean) > tolerance else 0.0 for reward in rewards)


def _tolerance(rewards: Sequence[float]) -> float:
    return REWARD_TOLERANCE * max(1.0, *map(abs, rewards))
