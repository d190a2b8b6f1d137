"""What each token gets, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from signal_tables import table

from selfdistill.losses.token_mask import TokenMask


def test_by_default_every_counted_token_gets_the_same() -> None:
    rows = table([2, 1], counted=[True, False, True])
    assert TokenMask().kept(rows).tolist() == [True, False, True]
    assert TokenMask().factors(rows).tolist() == [1, 0, 1]


def test_answers_without_credit_get_nothing_and_still_take_part() -> None:
    rows = table([1, 1], distil=[1, 0])
    assert TokenMask().factors(rows).tolist() == [1, 0]
    assert TokenMask().kept(rows).tolist() == [True, True]


def test_first_tokens_are_skipped_in_both_terms() -> None:
    rows, token_mask = table([4, 2]), TokenMask(skip_first=1)
    kept = token_mask.kept(rows)
    assert kept.tolist() == [False, True, True, True, False, True]
    assert token_mask.factors(rows.only(kept)).tolist() == [0, 1, 1, 1, 0, 1]


def test_rare_tokens_are_dropped_from_both_terms() -> None:
    rows = table([4], logprobs=[-1.0, -4.9, -5.0, -5.1])
    assert TokenMask(min_logprob=-5.0).kept(rows).tolist() == [True, True, True, False]


def test_confidence_by_hand() -> None:
    """H_T = log 1, log 2, log 4: e^−H is 1, 1/2, 1/4 with mean 7/12, so the weights are 12/7, 6/7, 3/7."""
    rows = table([3], teacher_entropy=[0.0, math.log(2), math.log(4)])
    expected = torch.tensor([12 / 7, 6 / 7, 3 / 7], dtype=torch.float64)
    torch.testing.assert_close(TokenMask(teacher_confidence=1.0).factors(rows), expected)


@pytest.mark.parametrize("strength", [0.3, 1.0, 50.0])
def test_confidence_has_mean_1_however_large_the_entropies(strength: float) -> None:
    rows = table([2, 3], teacher_entropy=[500.0, 501.0, 500.5, 502.0, 500.1])
    assert TokenMask(teacher_confidence=strength).factors(rows).mean().item() == pytest.approx(1.0)


def test_confidence_without_a_teacher_is_none() -> None:
    confident = TokenMask(teacher_confidence=1.0)
    assert confident.factors(table([2], teacher_entropy=[1.0, math.nan])).tolist() == [1, 0]
    assert confident.factors(table([2])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"skip_first": -1}, "use 0 for none"),
        ({"teacher_confidence": -1.0}, "use 0 to weigh all tokens alike"),
        ({"teacher_confidence": math.inf}, "1 as published"),
        ({"min_logprob": 0.0}, "use −5"),
        ({"min_logprob": math.nan}, "−inf to keep every token"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        TokenMask(**wrong)
