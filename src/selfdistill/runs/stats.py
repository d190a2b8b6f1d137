"""Estimates that carry their uncertainty: a number without an interval is not a result.

Tasks are the independent units. Several answers to one task, several seeds of one search, are clustered by task in
every interval here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import sqrt
from statistics import NormalDist, fmean, stdev

Z_95 = 1.959963985
RESAMPLES = 2000  # of a bootstrap
DRAWS = 10_000  # choices of signs, where they are too many to count
COUNTED = 5_000_000  # additions, at most, to count them all

# Student's t, two-sided 95 %, for 1 … 30 degrees of freedom.
# fmt: off
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value measured on `n` observations, and its 95 % interval [low, high]."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def t_quantile(freedom: int) -> float:
    """Student's t, two-sided 95 %; above 30 degrees of freedom by two terms of its expansion, to 2e-4."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    first = (Z_95**3 + Z_95) / 4
    second = (5 * Z_95**5 + 16 * Z_95**3 + 3 * Z_95) / 96
    return Z_95 + first / freedom + second / freedom**2


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share.

        (k + z²/2) / (n + z²)  ±  z / (n + z²) · √( k (n − k) / n + z²/4 )

    It stays inside [0, 1] and is not empty at 0 or n successes. Wilson 1927. No trials: [0, 1].
    """
    if n == 0:
        return 0.0, 1.0
    assert 0 <= successes <= n, f"{successes} successes of {n}"
    centre = (successes + Z_95**2 / 2) / (n + Z_95**2)
    half = Z_95 / (n + Z_95**2) * sqrt(successes * (n - successes) / n + Z_95**2 / 4)
    # Exactly 0 and 1 at the ends, where rounding would leave a trace.
    return max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0


def share(successes: float, n: int) -> Estimate:
    """The share of `n` independent trials that succeeded, with its Wilson interval. `n` must be positive."""
    low, high = wilson_interval(successes, n)
    return Estimate(successes / n, n, low, high)


def clustered_share(groups: Sequence[tuple[float, int]]) -> Estimate:
    """The share of successes over all samples of all tasks; of each task how many of its samples succeeded.

    The Wilson interval of as many independent samples as these are worth (Kish 1965, Korn & Graubard 1998):

        n_eff = K · p (1 − p) / s² · (t(N − 1) / t(K − 1))²       at least K, at most N

    with K tasks, N samples and s² the variance of the tasks' shares. One task all right and one all wrong are added to
    p and s²: a few tasks that happen to agree do not prove that all tasks do. With one sample a task, n_eff = K = N:
    Wilson's interval as it stands. One task is one observation, however often it was sampled. Tasks with unequal
    numbers of samples weigh by these, and K is then N² / Σ m².
    """
    samples = sum(m for _, m in groups)
    successes = sum(k for k, _ in groups)
    tasks = samples**2 / sum(m * m for _, m in groups)
    n = _independent(groups, samples, tasks)
    low, high = wilson_interval(min(successes * n / samples, n) if successes < samples else n, n)
    return Estimate(successes / samples, samples, low, high)


def _independent(groups: Sequence[tuple[float, int]], samples: int, tasks: float) -> float:
    """n_eff of `clustered_share`."""
    count = len(groups)
    if samples == count or count == 1:
        return tasks
    typical = samples / count
    padded = [*groups, (0.0, typical), (typical, typical)]
    total = samples + 2 * typical
    p = sum(k for k, _ in padded) / total
    variance = sum(m * (k / m - p) ** 2 for k, m in padded) / total
    adjusted = min(tasks * p * (1 - p) / variance, samples) * (t_quantile(samples - 1) / t_quantile(count - 1)) ** 2
    return max(tasks, adjusted)


def share_error(groups: Sequence[tuple[float, int]]) -> float:
    """The standard error of the mean over tasks of their shares of successes. One task all right and one all wrong are
    added, as in `clustered_share`: a few tasks that agree leave room for doubt."""
    shares = [0.0, *(k / m for k, m in groups), 1.0]
    centre = fmean(shares)
    return sqrt(sum((share - centre) ** 2 for share in shares)) / len(shares)


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent values (seeds) with its 95 % interval by Student's t.

    The interval of one value is the value itself.
    """
    n, centre = len(values), fmean(values)
    if n == 1:
        return Estimate(centre, 1, centre, centre)
    half = t_quantile(n - 1) * stdev(values) / sqrt(n)
    return Estimate(centre, n, centre - half, centre + half)


def mean_of_shares(found: Sequence[Estimate]) -> Estimate:
    """The mean of shares that were each measured under another seed; `n` counts seeds.

    Its 95 % interval is that of Student's t over seeds, widened to what the seeds' own intervals leave open if they
    are independent (MOVER: Zou & Donner 2008): a few seeds that happen to agree do not prove that all do.
    """
    average = mean([one.value for one in found])
    below = sqrt(sum((one.value - one.low) ** 2 for one in found)) / len(found)
    above = sqrt(sum((one.high - one.value) ** 2 for one in found)) / len(found)
    low, high = min(average.low, average.value - below), max(average.high, average.value + above)
    return Estimate(average.value, len(found), max(0.0, low), min(1.0, high))


def paired_difference(differences: Sequence[float]) -> Estimate:
    """The mean over tasks of the difference of two shares on the same task, each in [−1, 1], with its 95 % interval.

    One task that gains 1 and one that loses 1 are added for the interval, which so is never empty and keeps its
    coverage for few tasks (Bonett & Price 2012, for one sample a task). No task: 0 in [−1, 1].
    """
    n, total = len(differences), sum(differences)
    centre = total / (n + 2)
    variance = (sum(d * d for d in differences) + 2) / (n + 2) - centre**2
    half = Z_95 * sqrt(variance / (n + 2))
    value = total / n if n else 0.0
    return Estimate(value, n, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


@dataclass(frozen=True)
class SignFlipTest:
    """The exact one-sided test of whether paired differences are above 0: their sum against all choices of signs.

    Without an effect the difference of a task is as likely as its negative. `p` is the share of all 2ⁿ choices of signs
    whose sum is at least the one observed (Fisher 1935); with one answer a task this is the sign test. Where more than
    a few million sums had to be counted, `p` is estimated from `DRAWS` choices, always the same ones.
    """

    differences: tuple[int, ...]

    @property
    def p(self) -> float:
        """P(sum ≥ the one observed) without an effect."""
        above = (sum(self._sizes) + sum(self.differences)) // 2  # what the positive differences add up to
        tails = _tails(self._sizes)
        return tails[above] if tails else _drawn_tail(self._sizes, above)

    def chance(self, level: float) -> float:
        """P(p ≤ level) without an effect: below `level` where few tasks, or many ties, allow few values of p."""
        tails = _tails(self._sizes)
        return next((tail for tail in tails if tail <= level * (1 + 1e-9)), 0.0) if tails else level

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(sorted(abs(d) for d in self.differences if d))


@lru_cache(maxsize=1024)
def _tails(sizes: tuple[int, ...]) -> tuple[float, ...]:
    """P(the positive part ≥ t) for t = 0, 1, …, when signs are drawn at random; () where that is too much to count."""
    if len(sizes) * sum(sizes) > COUNTED:
        return ()
    arms = [1]  # choices of signs by the sum of what is positive
    for size in sizes:
        arms = [a + b for a, b in zip([*arms, *[0] * size], [*[0] * size, *arms], strict=True)]
    return tuple(tail / 2 ** len(sizes) for tail in reversed(list(accumulate(reversed(arms)))))


@lru_cache(maxsize=64)
def _drawn_tail(sizes: tuple[int, ...], above: int) -> float:
    rng, times = random.Random("signs"), Counter(sizes)
    sums = (sum(s * rng.getrandbits(count).bit_count() for s, count in times.items()) for _ in range(DRAWS))
    return (1 + sum(found >= above for found in sums)) / (1 + DRAWS)


def holm(hypotheses: Sequence[Sequence[SignFlipTest]]) -> list[float]:
    """For each of several hypotheses the smallest level at which all are tested together and it still holds.

    A hypothesis holds where *all* its tests reject: its p is their largest. Holm's (1979) step-down correction, in
    which each other hypothesis counts by its chance to come so far at all rather than by the whole level (Tarone 1990,
    Westfall & Wolfinger 1997): one that has no chance, for its ties, costs the others nothing.
    """
    found = [max(test.p for test in tests) for tests in hypotheses]
    order = sorted(range(len(found)), key=lambda place: found[place])
    adjusted, least = [0.0] * len(found), 0.0
    for rank, place in enumerate(order):
        chances = (max(test.chance(found[place]) for test in hypotheses[other]) for other in order[rank:])
        adjusted[place] = least = min(1.0, max(least, sum(chances)))
    return adjusted


def bootstrap(rows: Sequence[Sequence[float]], statistic: Callable[[list[float]], float], *, seed: int = 0) -> Estimate:
    """A statistic of the columns' means over tasks, one row a task, with its 95 % interval over resampled tasks.

    Percentiles, further out the fewer tasks there are: at Φ(−t √(n / (n − 1))), which gives the width of Student's t
    (the expanded percentile interval, Hesterberg 2015). The interval of one task is the value itself. The same seed
    resamples the same tasks.
    """
    rng, size = random.Random(f"bootstrap {seed}"), len(rows)
    columns = [list(column) for column in zip(*rows, strict=True)]
    value = statistic([fmean(column) for column in columns])
    if size == 1:
        return Estimate(value, 1, value, value)
    drawn = []
    for _ in range(RESAMPLES):
        places = rng.choices(range(size), k=size)
        drawn.append(statistic([sum(column[place] for place in places) / size for column in columns]))
    drawn.sort()
    edge = int(NormalDist().cdf(-t_quantile(size - 1) * sqrt(size / (size - 1))) * RESAMPLES)
    return Estimate(value, size, drawn[edge], drawn[-1 - edge])
