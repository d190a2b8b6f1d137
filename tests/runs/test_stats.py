"""Intervals and tests against numbers worked out by hand, and against simulations of how often they are right."""

import itertools
import random
from math import isclose
from statistics import fmean

import pytest

from selfdistill.runs.stats import (
    COUNTED,
    Estimate,
    SignFlipTest,
    bootstrap,
    clustered_share,
    holm,
    mean,
    mean_of_shares,
    paired_difference,
    share,
    t_quantile,
    wilson_interval,
)


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


@pytest.mark.parametrize("right", range(9))
def test_one_sample_a_task_is_wilsons_interval(right: int) -> None:
    assert clustered_share([(1, 1)] * right + [(0, 1)] * (8 - right)) == share(right, 8)


def test_samples_of_a_task_that_agree_count_once() -> None:
    """Each of 16 tasks gives the same answer to all its samples, 11 tasks the right one: 16 observations, not 128."""
    found = clustered_share([(8, 8)] * 11 + [(0, 8)] * 5)
    assert (found.n, found.value) == (128, 11 / 16)
    assert (found.low, found.high) == pytest.approx(wilson_interval(11, 16), rel=1e-12)
    assert (clustered_share([(64, 64)]).low, clustered_share([(64, 64)]).high) == wilson_interval(1, 1), "one task"
    for right, many in ((0, 0.0), (8, 1.0)):
        all_alike = clustered_share([(right, 8)] * 16)
        assert (all_alike.low, all_alike.high) == wilson_interval(16 * many, 16), "nothing says that tasks agree"


def test_a_clustered_share_by_hand() -> None:
    """Ten tasks, five with 3 of 4 and five with 1 of 4. With one task all right and one all wrong added, p = 1/2 and
    s² = (10 · (1/4)² + 2 · (1/2)²) / 12 = 0.09375: n = 10 · 0.25 / 0.09375 · (t(39) / t(9))² = 26.67 · 0.7993."""
    found = clustered_share([(3, 4), (1, 4)] * 5)
    assert t_quantile(39) == pytest.approx(2.0227, abs=3e-4)
    n = 10 * 0.25 / 0.09375 * (t_quantile(39) / t_quantile(9)) ** 2
    assert n == pytest.approx(21.3, abs=0.05)
    assert (found.low, found.high) == pytest.approx(wilson_interval(n / 2, n))


def test_samples_that_tell_something_of_their_own_narrow_the_interval() -> None:
    widths = [found.high - found.low for m in (1, 4, 16) if (found := clustered_share([(m / 2, m)] * 24))]
    assert widths[0] > 1.7 * widths[1] > 2.4 * widths[2]


def binomial(rng: random.Random, n: int, p: float) -> int:
    return sum(rng.random() < p for _ in range(n))


def beta(rng: random.Random, p: float, icc: float) -> float:
    """The share of one task: Beta with mean p and intraclass correlation icc."""
    return rng.betavariate(p * (1 / icc - 1), (1 - p) * (1 / icc - 1)) if icc else p


@pytest.mark.parametrize("tasks", [5, 12, 60])
def test_a_clustered_share_covers_what_it_should(tasks: int) -> None:
    """In at least 93 % of simulations, whatever tasks have in common; in each cell of the table, over all shares, and
    for none of them below what discrete numbers do to Wilson's own interval of so few tasks."""
    rng = random.Random(f"coverage {tasks}")
    draws = 2000 // tasks + 130
    for samples, icc in ((1, 0.0), (2, 0.0), (2, 0.8), (4, 0.2), (16, 0.05), (16, 0.4)):
        covered = dict.fromkeys((0.07, 0.3, 0.5, 0.8), 0)
        for p in covered:
            for _ in range(draws):
                drawn = [(binomial(rng, samples, beta(rng, p, icc)), samples) for _ in range(tasks)]
                found = clustered_share(drawn)
                covered[p] += found.low <= p <= found.high
        assert fmean(covered.values()) / draws >= 0.93, (samples, icc, covered)
        assert min(covered.values()) / draws >= 0.88, (samples, icc, covered)


def test_seeds_that_agree_are_no_surer_than_what_they_measured() -> None:
    """Three seeds with 14 of 16: no spread over seeds, and 14 of 16 is .640 to .965 each; over three, / √3."""
    low, high = wilson_interval(14, 16)
    found = mean_of_shares([share(14, 16)] * 3)
    assert (found.value, found.n) == (0.875, 3)
    assert found.low == pytest.approx(0.875 - (0.875 - low) / 3**0.5) == pytest.approx(0.739, abs=1e-3)
    assert found.high == pytest.approx(0.875 + (high - 0.875) / 3**0.5) == pytest.approx(0.927, abs=1e-3)
    apart = [share(40, 100), share(60, 100), share(80, 100)]
    assert mean_of_shares(apart).low == mean([0.4, 0.6, 0.8]).low, "seeds that differ: Student's t, as it was"


def test_the_quantile_goes_on_where_its_table_ends() -> None:
    assert t_quantile(31) == pytest.approx(2.0395, abs=2e-4)
    assert t_quantile(100) == pytest.approx(1.9840, abs=1e-4)


def test_a_paired_difference_by_hand() -> None:
    """1, 0, 1/2 and 0 with one task of 1 and one of −1: mean 1/4 over six, variance 3.25 / 6 − 1/16 = 0.4792."""
    found = paired_difference([1.0, 0.0, 0.5, 0.0])
    assert (found.value, found.n) == (0.375, 4)
    assert found.low == pytest.approx(0.25 - 1.959964 * (0.479167 / 6) ** 0.5)
    assert found.high == pytest.approx(0.25 + 1.959964 * (0.479167 / 6) ** 0.5)
    assert paired_difference([]) == Estimate(0.0, 0, -1.0, 1.0)
    assert paired_difference([1.0] * 6).low == pytest.approx(0.2917, abs=1e-4), "six tasks that all gain: no certainty"
    assert paired_difference([1.0] * 6).high == 1.0


@pytest.mark.parametrize("tasks", [6, 24])
def test_a_paired_difference_covers_what_it_should(tasks: int) -> None:
    rng = random.Random(f"paired {tasks}")
    shares = ((0.02, 0.02), (0.5, 0.5), (0.0, 0.3), (0.3, 0.6), (0.5, 0.95))
    for samples, icc, (before, after) in itertools.product((1, 4), (0.0, 0.5), shares):
        covered = 0
        for _ in range(250):
            differences = [
                (binomial(rng, samples, beta(rng, after, icc))
                 - (binomial(rng, samples, beta(rng, before, icc)) if before else 0)) / samples
                for _ in range(tasks)
            ]  # fmt: skip
            found = paired_difference(differences)
            covered += found.low <= after - before <= found.high
        assert covered / 250 >= 0.91, (samples, icc, before, after)


def test_the_sign_flip_test_counts_all_choices_of_signs() -> None:
    """3, −1, 2, 0, 1: of the 16 choices of signs of 3, 1, 2, 1 those whose sum is at least 5."""
    differences = (3, -1, 2, 0, 1)
    sums = [sum(signs) for signs in itertools.product((3, -3), (1, -1), (2, -2), (1, -1))]
    assert SignFlipTest(differences).p == sum(total >= 5 for total in sums) / 16
    for level in (0.02, 0.1, 0.3, 1.0):
        reached = [sum(a >= b for a in sums) / 16 for b in sums]
        assert SignFlipTest(differences).chance(level) == max((p for p in reached if p <= level), default=0.0)


def test_with_one_answer_a_task_it_is_the_sign_test() -> None:
    """Of six tasks that change five gain: (6 + 1) / 64. Tasks that do not change say nothing."""
    assert SignFlipTest((1, 1, 1, 1, 1, -1, 0, 0, 0)).p == 7 / 64
    assert SignFlipTest((1,) * 6).p == SignFlipTest((1,) * 6).chance(0.05) == 1 / 64
    assert (SignFlipTest((0,) * 9).p, SignFlipTest((0,) * 9).chance(0.05), SignFlipTest(()).p) == (1.0, 0.0, 1.0)


def test_too_many_tasks_to_count_are_drawn_and_the_same_ones_again() -> None:
    many = SignFlipTest((3,) * 1600 + (-3,) * 1500)
    assert COUNTED < 3100 * 9300
    assert many.p == SignFlipTest(many.differences).p
    assert many.p == pytest.approx(0.0375, abs=0.006), "100 / √3100 = 1.796 standard deviations, less half a step"
    assert many.chance(0.02) == 0.02


def test_holm_by_hand() -> None:
    """p = 1/64, 1/32 and 42/64. At 1/64 the second has no chance, for five tasks are too few, and the third 1/64."""
    first, second = SignFlipTest((1,) * 6), SignFlipTest((1,) * 5)
    some = SignFlipTest((1, 1, 1, -1, -1, -1))
    assert holm([[some], [first], [second]]) == [42 / 64, 2 / 64, 1 / 32 + 1 / 64]
    assert holm([[first], [first], [first]]) == [3 / 64] * 3
    assert holm([[first], [SignFlipTest((1, -1))], [SignFlipTest(())]])[0] == 1 / 64
    assert holm([[first, second]]) == [1 / 32], "both tests have to reject"
    assert holm([]) == []


def test_the_bootstrap_agrees_with_theory_and_with_itself() -> None:
    """50 ones among 100: the mean's standard error is 0.05, its interval 0.5 ± 1.984 · 0.0503."""
    rows = [[1.0]] * 50 + [[0.0]] * 50
    found = bootstrap(rows, lambda row: row[0], seed=3)
    assert (found.low, found.high) == (pytest.approx(0.4, abs=0.02), pytest.approx(0.6, abs=0.02))
    assert bootstrap(rows, lambda row: row[0], seed=3) == found
    assert bootstrap([[0.25]] * 9, lambda row: row[0]) == Estimate(0.25, 9, 0.25, 0.25)
    assert bootstrap([[0.5]], lambda row: row[0]) == Estimate(0.5, 1, 0.5, 0.5)


def test_the_bootstrap_of_few_tasks_is_as_wide_as_students_t() -> None:
    values = [0.3, 1.4, -0.8, 2.2, 0.9, 1.7, -0.1, 0.6]
    found, known = bootstrap([[value] for value in values], lambda row: row[0]), mean(values)
    assert found.high - found.low == pytest.approx(known.high - known.low, rel=0.1)
