"""Which sequences a model reads together: those of similar length, and once what several prompts begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from selfdistill.types import TokenIds

TokenPair: TypeAlias = tuple[TokenIds, TokenIds]  # prompt and completion

PAYS_FROM = 0.25  # share of the tokens, padding included, that sharing must save


def length_buckets(
    lengths: Sequence[int], max_tokens: int | None = None, *, behind: int = 0, launched: int = 0
) -> list[list[int]]:
    """Indices into `lengths`, cut into buckets of similar length, shortest first, for batches with little padding.

    In a bucket the longest is at most a quarter and 16 tokens longer than the shortest, and `size · (behind + longest)`
    stays within `max_tokens` (a single longer sequence gets its own bucket); `behind` counts tokens that every row has
    in a cache. A bucket of at most `launched` tokens takes any length. Equal lengths keep their order:

    >>> length_buckets([5, 90, 5, 6])
    [[0, 2, 3], [1]]
    >>> length_buckets([5, 90, 5, 6], launched=360)
    [[0, 2, 3, 1]]
    """
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        bucket = buckets[-1] if buckets else []
        tokens = (len(bucket) + 1) * (behind + lengths[index])
        near = bool(bucket) and (tokens <= launched or lengths[index] <= 1.25 * lengths[bucket[0]] + 16)
        if near and (max_tokens is None or tokens <= max_tokens):
            bucket.append(index)
        else:
            buckets.append([index])
    return buckets


@dataclass(frozen=True, slots=True)
class SharedBatch:
    """Different beginnings of prompts that are read side by side, and the indices of the pairs behind them, cut into
    batches. A pair that nothing is left of is in no batch: the beginning alone predicts it."""

    beginnings: tuple[TokenIds, ...]
    buckets: tuple[tuple[int, ...], ...]
    places: Mapping[int, int]
    """The place of a pair's beginning, by index."""
    tokens: int
    """All that are read, padding included."""


def plan_sharing(pairs: Sequence[TokenPair], max_tokens: int | None = None, launched: int = 0) -> list[SharedBatch]:
    """How to read the pairs whose prompts begin alike; [] where reading every pair whole costs about as much.

    It pays when it saves at least a quarter of the tokens of these pairs, padding included: batches are then smaller
    and more, and attention behind a cache takes a mask. No batch with its cache holds more than `max_tokens`, unless a
    single pair does.
    """
    shared = shared_beginnings(pairs)
    beginnings, plan = list(shared), list[SharedBatch]()
    for bucket in length_buckets([len(beginning) for beginning in beginnings], max_tokens, launched=launched):
        batch = tuple(beginnings[place] for place in bucket)
        places = {index: place for place, beginning in enumerate(batch) for index in shared[beginning]}
        left = {index: _left(pairs[index], batch[place]) for index, place in places.items()}
        longer = [index for index, count in left.items() if count]
        lengths = [left[index] for index in longer]
        cuts = length_buckets(lengths, max_tokens, behind=len(batch[-1]), launched=launched)
        buckets = tuple(tuple(longer[place] for place in cut) for cut in cuts)
        tokens = len(batch) * len(batch[-1]) + sum(len(cut) * lengths[cut[-1]] for cut in cuts)
        plan.append(SharedBatch(batch, buckets, places, tokens))
    cost = sum(batch.tokens for batch in plan)
    apart = [_left(pairs[index], ()) for rows in shared.values() for index in rows]
    whole = _padded_tokens(apart, max_tokens, launched)
    return plan if whole - cost >= PAYS_FROM * whole else []


def tokens_read(pairs: Sequence[TokenPair], *, shares: bool, launched: int = 0) -> int:
    """How many tokens `Policy.answer_hidden` reads, padding included, of a model that shares or of one that cannot."""
    plan = plan_sharing(pairs, launched=launched) if shares else []
    planned = {index for batch in plan for index in batch.places}
    rest = [_left(pair, ()) for index, pair in enumerate(pairs) if index not in planned]
    return sum(batch.tokens for batch in plan) + _padded_tokens(rest, None, launched)


def _padded_tokens(lengths: Sequence[int], max_tokens: int | None, launched: int) -> int:
    buckets = length_buckets(lengths, max_tokens, launched=launched)
    return sum(len(bucket) * lengths[bucket[-1]] for bucket in buckets)


def shared_beginnings(pairs: Sequence[TokenPair]) -> dict[TokenIds, list[int]]:
    """Indices of pairs by what their prompts begin with, where reading it once saves a quarter of their tokens.

    Prompts are sorted, and cut apart where neighbours share less than half of what one of them shares with its other
    neighbour: questions that have a system message in common are read apart, contexts behind one question together.
    """
    order = sorted(range(len(pairs)), key=lambda index: pairs[index][0])
    common = [common_length(pairs[one][0], pairs[other][0]) for one, other in pairwise(order)]
    around = [0, *common, 0]
    groups: list[list[int]] = []
    for place, index in enumerate(order):
        if place and 2 * around[place] >= max(around[place - 1], around[place + 1]):
            groups[-1].append(index)
        else:
            groups.append([index])
    shared: dict[TokenIds, list[int]] = {}
    for group in groups:
        first, last = pairs[group[0]][0], pairs[group[-1]][0]  # sorted: all begin as these two do
        saved, whole = (len(group) - 1) * common_length(first, last), sum(_left(pairs[index], ()) for index in group)
        if saved and saved >= PAYS_FROM * whole:
            shared[first[: common_length(first, last)]] = sorted(group)
    return dict(sorted(shared.items(), key=lambda item: item[1][0]))


def common_length(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _left(pair: TokenPair, beginning: TokenIds) -> int:
    """Tokens of a pair to be read behind its beginning; the last of a completion predicts nothing."""
    return len(pair[0]) - len(beginning) + len(pair[1]) - 1
