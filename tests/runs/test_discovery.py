"""Estimators of discovery against sums that a reader can redo, and against the published numbers."""

from __future__ import annotations

import itertools
import math
import random
from math import comb
from statistics import fmean

import pytest

from selfdistill.runs.discovery import (
    Independent,
    Sequential,
    attempts_to_reach,
    discovery_at,
    mean_attempts,
    mean_log,
    mean_of,
    paired_ratio,
    pass_at_k,
    ratio_of_means,
)
from selfdistill.runs.stats import wilson_interval

# Hübotter et al. 2026, Table 10: nine very hard questions, of which four had one success in 2,944 samples and five
# none, and ten hard ones that sampling certainly solves within 2,750.
SAMPLES, BUDGET = 2944, 2750
ONCE, NEVER, OFTEN = Independent(SAMPLES, 1), Independent(SAMPLES, 0), Independent(SAMPLES, 200)
VERY_HARD = [ONCE] * 4 + [NEVER] * 5
HARD = [OFTEN] * 10 + VERY_HARD


def test_the_published_discovery_of_sampling() -> None:
    assert ONCE.by(BUDGET) == pytest.approx(2750 / 2944)
    assert discovery_at(VERY_HARD, BUDGET).value == pytest.approx(4 * (2750 / 2944) / 9)
    assert round(100 * discovery_at(VERY_HARD, BUDGET).value, 1) == 41.5
    assert round(100 * discovery_at(HARD, BUDGET).value, 1) == 72.3


def test_the_published_mean_of_one_success_in_2944_samples() -> None:
    """Σ_{k < 2750} (1 − k / 2944) = 2750 − (2749 · 2750 / 2) / 2944."""
    assert mean_of(ONCE, BUDGET) == pytest.approx(2750 - 2749 * 2750 / 2 / 2944)
    assert round(mean_of(ONCE, BUDGET)) == 1466
    assert mean_of(NEVER, BUDGET) == BUDGET
    assert mean_attempts(VERY_HARD, BUDGET).value == pytest.approx((4 * 1466 + 5 * 2750) / 9, abs=0.1)


@pytest.mark.parametrize(("samples", "solved", "k"), [(6, 2, 3), (5, 1, 5), (7, 7, 1), (8, 3, 6), (4, 0, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(samples: int, solved: int, k: int) -> None:
    subsets = list(itertools.combinations(range(samples), k))
    assert pass_at_k(samples, solved, k) == pytest.approx(fmean(any(i < solved for i in s) for s in subsets))
    assert pass_at_k(samples, solved, k) == pytest.approx(1 - comb(samples - solved, k) / comb(samples, k))


def test_pass_at_k_is_unbiased_where_one_draw_is_not_enough_to_see_it() -> None:
    """Samples that are right with probability 0.1: the mean of pass@5 over many sets of 20 is 1 − 0.9⁵."""
    rng = random.Random(0)
    found = [pass_at_k(20, sum(rng.random() < 0.1 for _ in range(20)), 5) for _ in range(20_000)]
    assert fmean(found) == pytest.approx(1 - 0.9**5, abs=0.005)


def test_means_without_replacement_are_those_of_all_orders() -> None:
    """2 of 5 samples are right. Over all 10 places of the two: the first one, capped at 3."""
    firsts = [min(places) + 1 for places in itertools.combinations(range(5), 2)]
    assert mean_of(Independent(5, 2), 5) == pytest.approx(fmean(firsts))
    assert mean_of(Independent(5, 2), 3) == pytest.approx(fmean(min(first, 3) for first in firsts))


def test_runs_count_as_shares_of_task_and_seed() -> None:
    tasks = [Sequential((3, None), 10), Sequential((10, 1), 10)]
    assert [discovery_at(tasks, k).value for k in (0, 1, 3, 9, 10)] == pytest.approx([0, 1 / 4, 2 / 4, 2 / 4, 3 / 4])
    assert mean_attempts(tasks, 10).value == pytest.approx((3 + 10 + 10 + 1) / 4)
    assert mean_attempts(tasks, 5).value == pytest.approx((3 + 5 + 5 + 1) / 4)
    assert mean_of(tasks[0], 10) == sum(1 - tasks[0].by(k) for k in range(10)), "one definition for both kinds"


def test_the_published_shares_of_runs() -> None:
    """16 of 45 runs of nine questions: 35.6 %."""
    tasks = [Sequential((5, 5, None, None, None), 2750)] * 7 + [Sequential((5, None, None, None, None), 2750)] * 2
    assert discovery_at(tasks, 2750).value == pytest.approx(16 / 45)


def test_rounds_are_attempts_in_batches() -> None:
    assert Independent(64, 1, per=16).by(2) == pytest.approx(32 / 64)
    assert Independent(60, 1, per=16).by(4) == 1.0


def test_the_interval_is_over_tasks_and_not_over_runs() -> None:
    """Every seed agrees, so that seeds add nothing: the interval of 20 observations, half of them solved."""
    tasks = [Sequential((1,) * 50 if n % 2 else (None,) * 50, 9) for n in range(20)]
    found = discovery_at(tasks, 9)
    assert (found.value, found.n) == (0.5, 20)
    assert (found.low, found.high) == pytest.approx(wilson_interval(10, 20))
    same = discovery_at([Sequential((1, None), 9)] * 20, 9)
    assert 0.31 < same.low < 0.36, "tasks that do not differ: 40 runs say more than 20 tasks, and not everything"


def test_nothing_solved_and_everything_solved_are_not_certain() -> None:
    never, always = [Sequential((None,) * 3, 100)] * 10, [Sequential((1,) * 3, 100)] * 10
    assert (discovery_at(never, 100).low, discovery_at(never, 100).high) == wilson_interval(0, 10)
    assert (discovery_at(always, 1).low, discovery_at(always, 1).high) == wilson_interval(10, 10)
    assert mean_attempts(never, 100).low == pytest.approx(100 * wilson_interval(10, 10)[0])


def test_few_successes_of_many_samples_are_one_set_of_k() -> None:
    """One success in 2,944 samples says next to nothing of 2,750 more: each task is one observation."""
    assert [ONCE.runs(k) for k in (1, 10, 2750)] == [2944, 294, 1]
    found = discovery_at([ONCE] * 9, BUDGET)
    assert (found.low, found.high) == pytest.approx(wilson_interval(9 * 2750 / 2944, 9))


def test_the_mean_of_attempts_has_an_interval_over_tasks() -> None:
    """Ten tasks at 4 and ten at 40 of 100 attempts: the mean is 22, its standard error 18 / √19 = 4.1."""
    found = mean_attempts([Sequential((4,) * 5 if n % 2 else (40,) * 5, 100) for n in range(20)], 100)
    assert found.value == pytest.approx(22)
    assert 8 < found.low < 14 < 30 < found.high < 38
    one = mean_attempts([Sequential((4, 6), 10)], 10)
    assert (one.value, one.n) == (5, 1)
    assert (one.low, one.high) == pytest.approx([10 * end for end in wilson_interval(0.5, 1)]), "one task"


def test_attempts_to_reach_a_level() -> None:
    tasks = [Sequential((time,), 100) for time in (2, 7, 30, None)]
    reached = [attempts_to_reach(tasks, level, 100) for level in (0.25, 0.26, 0.5, 0.75, 0.76)]
    assert reached == [2, 7, 7, 30, None]
    assert attempts_to_reach([Independent(2944, 1)], 0.5, 2750) == 1472


def test_speed_is_told_at_every_level_and_in_the_mean() -> None:
    slow = [Sequential((time,), 100) for time in (20, 60, None)]
    fast = [Sequential((time,), 100) for time in (10, 10, 50)]
    levels = (1 / 3, 2 / 3, 1.0)
    assert [attempts_to_reach(slow, level, 100) for level in levels] == [20, 60, None]
    assert [attempts_to_reach(fast, level, 100) for level in levels] == [10, 10, 50]
    assert ratio_of_means(slow, fast, 100).value == pytest.approx((20 + 60 + 100) / (10 + 10 + 50))


def test_the_ratio_of_means_is_paired() -> None:
    """Where one way always needs half of what the other does, no resampling of tasks can doubt it."""
    slow = [Sequential((2 * time,), 100) for time in (1, 5, 25, 50)]
    fast = [Sequential((time,), 100) for time in (1, 5, 25, 50)]
    found = ratio_of_means(slow, fast, 100)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


def test_the_paired_ratio_is_a_geometric_mean_over_tasks() -> None:
    """Task one: seeds need 2 and 8 attempts against 4 and 1: √16 / √4 = 2. Task two, of a budget of 32: 32 (none)
    against 4: 8. Together √(2 · 8) = 4, whose logarithm varies by ln 2 about ln 4: t(1) = 12.706, over √2 · √2 / √2."""
    own = [Sequential((2, 8), 32), Sequential((None, 32), 32)]
    other = [Sequential((4, 1), 32), Sequential((4, 4), 32)]
    found = paired_ratio(own, other, 32)
    assert found.value == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx((4 * 2**-12.706, 4 * 2**12.706))
    assert paired_ratio(other, own, 32).value == pytest.approx(1 / 4)
    assert paired_ratio([*own, *own], [*other, *other], 32).high < found.high, "more tasks are worth more"
    assert mean_log(Sequential((None,), 32), 8) == pytest.approx(math.log(8)), "capped at the budget"


def test_the_mean_logarithm_of_independent_attempts_is_that_of_all_orders() -> None:
    """Two right ones of five, a budget of three: the first is at 1, 2 or 3, or counts as 3."""
    first = [min(chosen) for chosen in itertools.combinations(range(1, 6), 2)]
    assert mean_log(Independent(5, 2), 3) == pytest.approx(fmean(math.log(min(at, 3)) for at in first))
    assert mean_log(Independent(5, 0), 3) == pytest.approx(math.log(3))
