"""Sequences of different lengths in rectangular batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.types import TokenIds


def length_buckets(lengths: Sequence[int], max_tokens: int | None = None, *, behind: int = 0) -> list[list[int]]:
    """Indices into `lengths`, cut into buckets of similar length, shortest first.

    In a bucket the longest is at most a quarter and 16 tokens longer than the shortest, and `size · (behind + longest)`
    stays within `max_tokens` (a single longer sequence gets its own bucket); `behind` counts tokens that every row has
    in a cache. Equal lengths keep their order:

    >>> length_buckets([5, 90, 5, 6])
    [[0, 2, 3], [1]]
    """
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        bucket = buckets[-1] if buckets else []
        near = bool(bucket) and lengths[index] <= 1.25 * lengths[bucket[0]] + 16
        if near and (max_tokens is None or (len(bucket) + 1) * (behind + lengths[index]) <= max_tokens):
            bucket.append(index)
        else:
            buckets.append([index])
    return buckets


def pad_right(rows: Sequence[TokenIds], pad: int) -> Tensor:
    """ids_BL: rows start at column 0. A causal model never looks at the padding, which comes after."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [pad] * (longest - len(row)) for row in rows])


def pad_left(rows: Sequence[TokenIds], pad: int) -> tuple[Tensor, Tensor]:
    """ids_BL and mask_BL (1 where there is a token): rows end at the last column, where generation goes on."""
    longest = max(len(row) for row in rows)
    ids_BL = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask_BL = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids_BL, mask_BL
