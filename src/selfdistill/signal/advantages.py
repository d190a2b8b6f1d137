"""Group-relative advantages: how much better an answer was than its siblings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def group_advantages(rewards: Sequence[float], *, divide_by_std: bool = False) -> tuple[float, ...]:
    """r − mean(r) for the answers of one group, e.g. (1, 0, 0, 0) gives (.75, −.25, −.25, −.25).

    `divide_by_std` also divides by the sample standard deviation (n − 1), as GRPO was published; leaving it out does
    not favour questions that are almost always or almost never solved (Dr. GRPO). A group whose rewards are all equal
    gives exact zeros, also when it has one member.

    Source: Shao et al., arXiv 2402.03300, §4.1; Liu et al., arXiv 2503.20783.
    """
    if not rewards or min(rewards) == max(rewards):
        return (0.0,) * len(rewards)
    mean = fmean(rewards)
    spread = stdev(rewards) if divide_by_std else 1.0
    return tuple((reward - mean) / spread for reward in rewards)
