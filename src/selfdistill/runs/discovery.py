"""Time to the first solution of a task: discovery@k, mean attempts, and the comparison of two strategies.

T is the attempt that solves a task first. discovery@k = P(T ≤ k), averaged over tasks (Hübotter et al. 2026, arXiv
2601.20802, §5). P(T ≤ k) of a task comes from one of two kinds of
data:

    Independent   independent samples: the unbiased pass@k from `solved` of `samples`
    Sequential    runs whose attempts depend on earlier ones: the share of runs with T ≤ k

A task is one value with `by(k)`, a strategy a list of them, one a task. k counts attempts (or rounds, or tokens) from
1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log
from statistics import fmean
from typing import TypeAlias

from selfdistill.runs.stats import Estimate, bootstrap, clustered_share, mean


@dataclass(frozen=True, slots=True)
class Independent:
    """`solved` of `samples` independent attempts were right. `per` attempts are made at once: k counts such rounds."""

    samples: int
    solved: int
    per: int = 1

    def runs(self, k: int) -> int:
        """Disjoint sets of k samples (or rounds); at least one."""
        return max(1, self.samples // max(1, k * self.per))

    def by(self, k: int) -> float:
        """pass@k; for more than all samples, that of all samples."""
        return pass_at_k(self.samples, self.solved, min(k * self.per, self.samples))


@dataclass(frozen=True, slots=True)
class Sequential:
    """When each run (seed) of one task solved it, counted from 1; None: not within `budget`."""

    times: tuple[int | None, ...]
    budget: int

    def runs(self, k: int) -> int:
        """Seeds, whatever k is."""
        return len(self.times)

    def by(self, k: int) -> float:
        """The share of runs; beyond the budget, that at its end."""
        return fmean(time is not None and time <= k for time in self.times)


Discovery: TypeAlias = Independent | Sequential
"""The distribution of T for one task: `by(k)` is P(T ≤ k), `runs(k)` the number of independent runs of k attempts."""


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """The probability that k of the samples, drawn without replacement, hold one that is right.

        1 − C(samples − solved, k) / C(samples, k)

    Unbiased for every k up to `samples`. Chen et al. 2021 (arXiv 2107.03374).
    """
    assert 0 <= k <= samples
    if solved == 0:
        return 0.0
    missed = 1.0
    for right in range(solved):
        missed *= max(0, samples - k - right) / (samples - right)
    return 1.0 - missed


def mean_of(task: Discovery, budget: int) -> float:
    """E[min(T, budget)] = Σ_{k < budget} (1 − P(T ≤ k)): the mean time to the first success, capped at the budget."""
    if isinstance(task, Sequential):
        assert budget <= task.budget, "nothing is known beyond the budget of the runs"
        return fmean(budget if time is None else min(time, budget) for time in task.times)
    return sum(1.0 - task.by(k) for k in range(budget))


def discovery_at(tasks: Sequence[Discovery], k: int) -> Estimate:
    """discovery@k, with a 95 % interval whose clusters are tasks."""
    return _share([task.by(k) for task in tasks], [task.runs(k) for task in tasks])


def mean_attempts(tasks: Sequence[Discovery], budget: int) -> Estimate:
    """The mean of E[min(T, budget)] over tasks, with a 95 % interval whose clusters are tasks: that of the share of the
    budget that is used."""
    used = _share([mean_of(task, budget) / budget for task in tasks], [task.runs(budget) for task in tasks])
    return Estimate(used.value * budget, used.n, used.low * budget, used.high * budget)


def _share(values: Sequence[float], runs: Sequence[int]) -> Estimate:
    """The mean over tasks, all of the same weight; `n` counts tasks."""
    count = min(runs)
    found = clustered_share([(value * count, count) for value in values])
    return replace(found, n=len(values))


def ratio_of_means(slower: Sequence[Discovery], faster: Sequence[Discovery], budget: int) -> Estimate:
    """How many times fewer attempts `faster` needs in the mean, both capped at the budget; the same tasks in the same
    order. The 95 % interval resamples tasks, each with both of its means."""
    pairs = [[mean_of(a, budget), mean_of(b, budget)] for a, b in zip(slower, faster, strict=True)]
    return bootstrap(pairs, lambda row: row[0] / row[1])


def mean_log(task: Discovery, budget: int) -> float:
    """E[ln min(T, budget)] = Σ_{k ≤ budget} P(T = k) ln k + P(T > budget) ln budget."""
    by = [task.by(k) for k in range(budget)]  # at k = 0 nothing is solved, at the budget all that are left count
    chances = [*(now - before for before, now in pairwise(by)), 1 - by[-1]]
    return sum(chance * log(k) for k, chance in enumerate(chances, start=1))


def paired_ratio(own: Sequence[Discovery], other: Sequence[Discovery], budget: int) -> Estimate:
    """The geometric mean over tasks of how many times the attempts of `other` `own` needs, both capped at the budget;
    the same tasks in the same order.

        exp of the mean over tasks of  E[ln min(T_own, budget)] − E[ln min(T_other, budget)]

    The 95 % interval is Student's t over tasks, whose seeds so form one cluster. Unlike the ratio of means it weighs
    an easy task as much as a hard one.
    """
    found = mean([mean_log(a, budget) - mean_log(b, budget) for a, b in zip(own, other, strict=True)])
    return Estimate(exp(found.value), found.n, exp(found.low), exp(found.high))


def attempts_to_reach(tasks: Sequence[Discovery], level: float, budget: int) -> int | None:
    """The smallest k ≤ budget with discovery@k ≥ level; None when there is none."""
    every = range(1, budget + 1)
    place = bisect_left(every, level - 1e-9, key=lambda k: fmean(task.by(k) for task in tasks))
    return every[place] if place < budget else None
