"""What each token gets, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from signal_tables import table

from selfdistill.signal.allocation import Allocation


def test_by_default_every_counted_token_gets_the_same() -> None:
    rows = table([2, 1], counted=[True, False, True])
    assert Allocation().kept(rows).tolist() == [True, False, True]
    assert Allocation().factors(rows).tolist() == [1, 0, 1]


def test_answers_without_credit_get_nothing_and_still_take_part() -> None:
    rows = table([1, 1], distil=[1, 0])
    assert Allocation().factors(rows).tolist() == [1, 0]
    assert Allocation().kept(rows).tolist() == [True, True]


def test_first_tokens_are_skipped_in_both_terms_and_late_ones_in_distillation() -> None:
    rows, allocation = table([4, 2]), Allocation(skip_first=1, last=3)
    kept = allocation.kept(rows)
    assert kept.tolist() == [False, True, True, True, False, True]
    assert allocation.factors(rows.only(kept)).tolist() == [0, 1, 1, 0, 0, 1]


def test_rare_tokens_are_dropped_from_both_terms() -> None:
    rows = table([4], logprobs=[-1.0, -4.9, -5.0, -5.1])
    assert Allocation(min_logprob=-5.0).kept(rows).tolist() == [True, True, True, False]


def test_the_most_uncertain_tokens_stay() -> None:
    rows = table([5], entropy=[0.1, 0.9, 0.3, 0.8, 0.2])
    assert Allocation(entropy_top=0.4).factors(rows).tolist() == [0, 1, 0, 1, 0]
    assert Allocation(entropy_top=1e-9).factors(rows).tolist() == [0, 1, 0, 0, 0]


def test_the_share_is_one_of_counted_distilled_tokens() -> None:
    """Four of six tokens are distilled; half of them are two. The two highest entropies are not among them."""
    rows = table([1, 5], distil=[0, 1], entropy=[9, 9, 1, 4, 3, 2], counted=[True, False, True, True, True, True])
    assert Allocation(entropy_top=0.5).factors(rows).tolist() == [0, 0, 0, 1, 1, 0]


def test_confidence_by_hand() -> None:
    """H_T = log 1, log 2, log 4: e^−H is 1, 1/2, 1/4 with mean 7/12, so the weights are 12/7, 6/7, 3/7."""
    rows = table([3], teacher_entropy=[0.0, math.log(2), math.log(4)])
    expected = torch.tensor([12 / 7, 6 / 7, 3 / 7], dtype=torch.float64)
    torch.testing.assert_close(Allocation(teacher_confidence=1.0).factors(rows), expected)


@pytest.mark.parametrize("strength", [0.3, 1.0, 50.0])
def test_confidence_has_mean_1_however_large_the_entropies(strength: float) -> None:
    rows = table([2, 3], teacher_entropy=[500.0, 501.0, 500.5, 502.0, 500.1])
    assert Allocation(teacher_confidence=strength).factors(rows).mean().item() == pytest.approx(1.0)


def test_confidence_without_a_teacher_is_none() -> None:
    confident = Allocation(teacher_confidence=1.0)
    assert confident.factors(table([2], teacher_entropy=[1.0, math.nan])).tolist() == [1, 0]
    assert confident.factors(table([2])).tolist() == [0, 0]


def test_growth_by_hand() -> None:
    """Weights 1, 2, 3 over their mean 2, and 1, 2 over their mean 1.5."""
    factors = Allocation(position_growth=1.0).factors(table([3, 2]))
    torch.testing.assert_close(factors, torch.tensor([0.5, 1.0, 1.5, 2 / 3, 4 / 3], dtype=torch.float64))
    falling = Allocation(position_growth=-1.0).factors(table([2]))
    torch.testing.assert_close(falling, torch.tensor([4 / 3, 2 / 3], dtype=torch.float64))


def test_growth_leaves_every_answer_its_share() -> None:
    rows = table([4, 2], counted=[True, True, False, True, True, True])
    factors = Allocation(position_growth=2.0).factors(rows)
    assert factors[2] == 0
    assert factors[:4].sum().item() == pytest.approx(3.0)
    assert factors[4:].sum().item() == pytest.approx(2.0)


def test_factors_multiply() -> None:
    rows = table([3], entropy=[1, 2, 3], teacher_entropy=[0.0, math.log(2), math.log(4)])
    both = Allocation(entropy_top=0.5, teacher_confidence=1.0, position_growth=1.0)
    # tokens 1 and 2 remain: confidences 1/2, 1/4 over 3/8 are 4/3, 2/3; positions 2, 3 over 5/2 are 4/5, 6/5
    torch.testing.assert_close(both.factors(rows), torch.tensor([0, 16 / 15, 12 / 15], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_break_the_quantile(dtype: torch.dtype) -> None:
    rows = table([4], entropy=[0.5, 2.0, 1.0, 4.0], dtype=dtype)
    assert Allocation(entropy_top=0.5).factors(rows).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"skip_first": -1}, "use skip_first >= 0"),
        ({"last": -1}, "last = 0 for no limit"),
        ({"skip_first": 3, "last": 3}, "last > skip_first"),
        ({"entropy_top": 0.0}, "0.2 for the fifth"),
        ({"entropy_top": 1.1}, "use 1.0 for all"),
        ({"entropy_top": math.nan}, "use 1.0 for all"),
        ({"teacher_confidence": -1.0}, "use 0 to weigh all tokens alike"),
        ({"teacher_confidence": math.inf}, "1 as published"),
        ({"min_logprob": 0.0}, "use −5"),
        ({"min_logprob": math.nan}, "−inf to keep every token"),
        ({"position_growth": 5.0}, "1 for weights proportional"),
        ({"position_growth": math.nan}, "use 0 for no growth"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        Allocation(**wrong)
