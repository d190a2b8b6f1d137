"""The token table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from signal_tables import table


def test_answers_are_spread_over_their_tokens() -> None:
    rows = table([2, 1], advantage=[0.5, -1.0], distil=[0.0, 2.0], counted=[True, True, False])
    assert rows.advantage_N.tolist() == [0.5, 0.5, -1.0]
    assert rows.distil_N.tolist() == [0.0, 0.0, 2.0]
    assert rows.distilled_N.tolist() == [False, False, False]
    assert replace(rows, counted_N=torch.ones(3, dtype=torch.bool)).distilled_N.tolist() == [False, False, True]


def test_only_narrows() -> None:
    rows = table([3], counted=[True, True, False])
    assert rows.only(torch.tensor([False, True, True])).counted_N.tolist() == [False, True, False]
    assert rows.counted_N.tolist() == [True, True, False]


def test_means_are_per_answer_and_over_the_named_tokens() -> None:
    rows = table([3, 2, 1])
    values = torch.tensor([1.0, 2.0, 9.0, 4.0, 6.0, 5.0], dtype=torch.float64)
    over = torch.tensor([True, True, False, True, True, False])
    assert rows.answer_means(values, over).tolist() == [1.5, 1.5, 1.5, 5.0, 5.0, 0.0]


def test_a_mean_is_not_spoilt_by_what_it_leaves_out() -> None:
    rows, values = table([2]), torch.tensor([3.0, torch.nan], dtype=torch.float64)
    assert rows.answer_means(values, ~values.isnan()).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    rows = table([3], entropy=[0.5, 1.0, 2.0], mixture=[1.0, 2.0, 3.0], dtype=dtype)
    assert rows.entropy_N.dtype == rows.log_ratio_N.dtype == rows.advantage_R.dtype == torch.float32
    assert rows.answer_N.dtype == torch.int64
    assert table([3], dtype=torch.float64).entropy_N.dtype == torch.float64


def test_shapes_that_disagree_are_refused() -> None:
    rows = table([2, 1])
    with pytest.raises(ValueError, match=r"columns of \(3,\) tokens and \(2,\) answers"):
        replace(rows, entropy_N=torch.ones(2))
    with pytest.raises(ValueError, match="one number per token, or one per answer"):
        replace(rows, distil_R=torch.ones(3))


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="weights_N > 0"):
        replace(table([2]), counted_N=torch.tensor([1, 0]))


@pytest.mark.parametrize("answers", [[-1, 0], [0, 2]])
def test_an_answer_without_a_verdict_is_refused(answers: list[int]) -> None:
    with pytest.raises(ValueError, match="number the answers 0 to 1"):
        replace(table([1, 1]), answer_N=torch.tensor(answers))


def test_tokens_of_one_answer_that_do_not_stand_together_are_refused() -> None:
    with pytest.raises(ValueError, match="must stand together"):
        replace(table([2, 1]), answer_N=torch.tensor([0, 1, 0]))


def test_an_answer_without_tokens_takes_no_part_in_the_means_of_others() -> None:
    rows = table([2, 0, 1])
    values, over = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), torch.tensor([True, True, True])
    assert rows.answer_means(values, over).tolist() == [1.5, 1.5, 5.0]
    assert table([]).answer_means(values[:0], over[:0]).tolist() == []


def test_a_table_may_be_empty() -> None:
    rows = table([])
    assert rows.advantage_N.shape == rows.distilled_N.shape == (0,)
