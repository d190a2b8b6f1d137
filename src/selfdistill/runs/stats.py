"""Estimates that carry their uncertainty: a number without an interval is not a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

Z_95 = 1.959963985

# Student's t, two-sided 95 %, for 1 … 30 degrees of freedom; beyond them the normal quantile is within 4 %.
# fmt: off
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value measured on `n` independent units, and its 95 % interval [low, high]."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
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


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent values (seeds, tasks) with its 95 % interval by Student's t.

    One value says nothing of its spread: its interval is the value itself, and `n` says why.
    """
    n, centre = len(values), fmean(values)
    if n == 1:
        return Estimate(centre, 1, centre, centre)
    quantile = T_95[n - 2] if n - 1 <= len(T_95) else Z_95
    half = quantile * stdev(values) / sqrt(n)
    return Estimate(centre, n, centre - half, centre + half)
