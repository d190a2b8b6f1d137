"""Group-relative advantages and reductions, by hand."""

from __future__ import annotations

import math

import pytest
import textbook
import torch

from selfdistill.losses import (
    LossSpec,
    Reduction,
    TeacherStates,
    TokenWeights,
    denominators,
    equal_rewards,
    fused_loss,
    group_advantages,
)
from selfdistill.losses.reduction import REWARD_TOLERANCE, reduction_weights


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


def test_weights_by_hand() -> None:
    over = denominators([2, 6])
    each = reduction_weights([2, 6], "sequence-mean", over)
    torch.testing.assert_close(each, torch.tensor([1 / 4] * 2 + [1 / 12] * 6))
    torch.testing.assert_close(reduction_weights([2, 6], "token-mean", over), torch.full((8,), 1 / 8))
    assert torch.equal(reduction_weights([2, 6], "sum", over), torch.ones(8))


def test_a_sum_is_diluted_by_nothing() -> None:
    assert torch.equal(reduction_weights([2], "sum", denominators([2], [5, 7], count_dropped=True)), torch.ones(2))


@pytest.mark.parametrize("how", ["sequence-mean", "token-mean"])
def test_dropped_answers_dilute_only_when_asked(how: Reduction) -> None:
    kept, dropped = [2, 6], [3, 1]
    assert reduction_weights(kept, how, denominators(kept, dropped)).sum().item() == pytest.approx(1.0)
    diluted = reduction_weights(kept, how, denominators(kept, dropped, count_dropped=True)).sum().item()
    assert diluted == pytest.approx({"sequence-mean": 2 / 4, "token-mean": 8 / 12}[how])


@pytest.mark.parametrize("how", ["sequence-mean", "token-mean", "sum"])
def test_loss_and_gradient_do_not_depend_on_micro_batches(how: Reduction) -> None:
    """Check 9: any split of a step of answers of 1, 4, 2 and 5 tokens gives the same sums."""
    lengths = [1, 4, 2, 5]
    case = textbook.problem(positions=12)
    over = denominators(lengths)
    starts = [0, 1, 5, 7, 12]
    seen = []
    for split in ([[0, 1, 2, 3]], [[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0], [1, 2, 3]]):
        loss = torch.zeros((), dtype=torch.float64)
        for batch in split:
            rows = slice(starts[batch[0]], starts[batch[-1] + 1])
            weights = TokenWeights(distil_N=reduction_weights([lengths[i] for i in batch], how, over))
            view = TeacherStates(case.teacher.hidden_ND[rows], case.teacher.head)
            part = fused_loss(LossSpec(), case.hidden_ND[rows], case.head, case.tokens_N[rows], weights, teacher=[view])
            loss = loss + part.loss
        seen.append([loss.detach(), *textbook.gradients(loss, case)])
    for other in seen[1:]:
        for one, first in zip(other, seen[0], strict=True):
            torch.testing.assert_close(one, first, rtol=0, atol=1e-14)


def test_reductions_differ_when_lengths_do() -> None:
    over = denominators([1, 9])
    assert reduction_weights([1, 9], "sequence-mean", over)[0].item() == pytest.approx(0.5)
    assert reduction_weights([1, 9], "token-mean", over)[0].item() == pytest.approx(0.1)


def test_nothing_gives_nothing() -> None:
    assert reduction_weights([], "token-mean", denominators([])).shape == (0,)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence-mean, token-mean, sum"):
        reduction_weights([1], "mean", denominators([1]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="drop empty completions"):
        reduction_weights([1, 0], "token-mean", denominators([1, 0]))
