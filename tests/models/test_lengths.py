from __future__ import annotations

import torch

from selfdistill.models.lengths import length_buckets, pad_left, pad_right


def test_buckets_hold_similar_lengths_and_keep_the_order_of_equals() -> None:
    assert length_buckets([5, 90, 5, 6]) == [[0, 2, 3], [1]]


def test_a_bucket_reaches_a_quarter_and_sixteen_tokens_beyond_its_shortest() -> None:
    assert length_buckets([100, 141]) == [[0, 1]]  # 1.25 · 100 + 16 = 141
    assert length_buckets([100, 142]) == [[0], [1]]


def test_the_token_budget_counts_padding() -> None:
    assert length_buckets([4, 4, 5], max_tokens=14) == [[0, 1], [2]]  # three rows of 5 would be 15
    assert length_buckets([4, 4, 5], max_tokens=15) == [[0, 1, 2]]


def test_the_token_budget_counts_what_every_row_has_behind_it() -> None:
    assert length_buckets([4, 4, 5], max_tokens=44, behind=10) == [[0, 1], [2]]  # three rows of 15 would be 45
    assert length_buckets([4, 4, 5], max_tokens=45, behind=10) == [[0, 1, 2]]
    assert length_buckets([1, 18], behind=1000) == [[0], [1]]  # similar by their own length: 1.25 · 1 + 16 < 18


def test_a_sequence_over_the_budget_still_gets_a_bucket() -> None:
    assert length_buckets([4, 50], max_tokens=10) == [[0], [1]]


def test_no_sequences_no_buckets() -> None:
    assert length_buckets([]) == []


def test_padding_goes_to_the_side_its_name_says() -> None:
    assert pad_right([(1, 2, 3), (4,)], pad=9).tolist() == [[1, 2, 3], [4, 9, 9]]
    ids_BL, mask_BL = pad_left([(1, 2, 3), (4,)], pad=9)
    assert ids_BL.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask_BL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert mask_BL.dtype == torch.int64
