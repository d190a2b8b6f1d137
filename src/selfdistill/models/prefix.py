"""Reads answers to the same prompt behind one reading of it: the prompt's keys and values are kept, and copied.

Only without gradients. A group of 8 answers of T tokens to a prompt of P tokens costs P + 8·T tokens, not 8·(P + T).

Legend: B rows of a batch, L tokens of the longest, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from selfdistill.models.lengths import length_buckets, pad_left, pad_right
from selfdistill.types import TokenIds

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Pair: TypeAlias = tuple[TokenIds, TokenIds]

PAYS_FROM = 0.25  # share of the tokens, padding included, that sharing must save


class Reader(Protocol):
    """What reading needs of a `Policy`."""

    base: PreTrainedModel
    device: torch.device

    @property
    def context_length(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    def backbone(self, ids_BL: Tensor, **options: Any) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class SharedBatch:
    """Different prompts that are read side by side, the indices of the pairs that follow them, and how these are cut
    into batches. A completion of one token is in no batch: the prompt alone predicts it."""

    prompts: tuple[TokenIds, ...]
    rows: tuple[int, ...]
    buckets: tuple[tuple[int, ...], ...]

    def tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that go through the model, padding included."""
        answers = (len(bucket) * max(len(pairs[index][1]) - 1 for index in bucket) for bucket in self.buckets)
        return len(self.prompts) * max(map(len, self.prompts)) + sum(answers)


def plan_sharing(pairs: Sequence[Pair], max_tokens: int | None = None) -> list[SharedBatch]:
    """How to read the pairs whose prompt occurs more than once; [] where reading every pair whole costs about as much.

    It pays when it saves at least a quarter of the tokens of these pairs, padding included: batches are then smaller
    and more, and attention behind a cache takes a mask. No batch, what it has read before included, holds more than
    `max_tokens`, if a single pair does not.
    """
    rows: dict[TokenIds, list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        rows.setdefault(prompt, []).append(index)
    shared = {prompt: found for prompt, found in rows.items() if len(found) > 1}
    prompts = list(shared)
    plan = [
        _batch(pairs, {prompts[place]: shared[prompts[place]] for place in bucket}, max_tokens)
        for bucket in length_buckets([len(prompt) for prompt in prompts], max_tokens)
    ]
    whole = _tokens_whole([pairs[index] for found in shared.values() for index in found], max_tokens)
    saved = whole - sum(batch.tokens(pairs) for batch in plan)
    return plan if saved >= PAYS_FROM * whole else []


def _batch(pairs: Sequence[Pair], shared: dict[TokenIds, list[int]], max_tokens: int | None) -> SharedBatch:
    rows = [index for found in shared.values() for index in found]
    longer = [index for index in rows if len(pairs[index][1]) > 1]
    lengths = [len(pairs[index][1]) - 1 for index in longer]
    cut = length_buckets(lengths, max_tokens, behind=max(map(len, shared)))
    buckets = tuple(tuple(longer[place] for place in bucket) for bucket in cut)
    return SharedBatch(tuple(shared), tuple(rows), buckets)


def _tokens_whole(pairs: Sequence[Pair], max_tokens: int | None) -> int:
    lengths = [len(prompt) + len(completion) - 1 for prompt, completion in pairs]
    return sum(len(bucket) * lengths[bucket[-1]] for bucket in length_buckets(lengths, max_tokens))


def read_whole(policy: Reader, pairs: Sequence[Pair], rows: Sequence[int], max_tokens: int | None) -> dict[int, Tensor]:
    """hidden_TD by index into `pairs`, of the pairs in `rows`: the states that predict their completions."""
    read = [pairs[index][0] + pairs[index][1][:-1] for index in rows]
    states: dict[int, Tensor] = {}
    for bucket in length_buckets([len(row) for row in read], max_tokens):
        ids_BL = pad_right([read[place] for place in bucket], policy.pad_id).to(policy.device)
        # No mask and no positions: the model then takes the fast causal path, and pads come last.
        hidden_BLD = policy.backbone(ids_BL, use_cache=False)
        for row, place in enumerate(bucket):
            states[rows[place]] = _apart(hidden_BLD[row, len(pairs[rows[place]][0]) - 1 : len(read[place])])
    return states


def read_shared(policy: Reader, pairs: Sequence[Pair], batch: SharedBatch) -> dict[int, Tensor]:
    """What `read_whole` gives, up to float noise, of the pairs of one batch."""
    cache, device = empty_cache(policy), policy.device
    ids_BL, mask_BL = (part.to(device) for part in pad_left(batch.prompts, policy.pad_id))
    padded = len({len(prompt) for prompt in batch.prompts}) > 1
    last_BD = _apart(_read(policy, cache, ids_BL, mask_BL if padded else None)[:, -1])
    place = {prompt: row for row, prompt in enumerate(batch.prompts)}
    states = {index: last_BD[place[pairs[index][0]]][None] for index in batch.rows}
    for bucket in batch.buckets:
        found = torch.tensor([place[pairs[index][0]] for index in bucket], device=device)
        ids_BL = pad_right([pairs[index][1][:-1] for index in bucket], policy.pad_id).to(device)
        behind_BL = torch.cat([mask_BL[found], torch.ones_like(ids_BL)], dim=1) if padded else None
        hidden_BLD = _read(policy, _rows_of(cache, found), ids_BL, behind_BL)
        for row, index in enumerate(bucket):
            states[index] = torch.cat([states[index], hidden_BLD[row, : len(pairs[index][1]) - 1]])
    return states


def _apart(states: Tensor) -> Tensor:
    """These states alone: without a graph, which needs them anyway, a view would hold all those of its batch."""
    return states if states.requires_grad else states.clone()


def _read(policy: Reader, cache: Cache, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
    """hidden_BLD of tokens behind `cache`. `mask_BL` is of the cache and the tokens; None where no row is padded."""
    if mask_BL is None:  # the model finds mask and positions by itself
        return policy.backbone(ids_BL, past_key_values=cache, use_cache=True)
    # Pads after a short answer may lie past the end of the context; their states are never used.
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(0, policy.context_length - 1)[:, -ids_BL.shape[1] :]
    return policy.backbone(
        ids_BL, past_key_values=cache, use_cache=True, attention_mask=mask_BL, position_ids=positions_BL
    )


def can_share(policy: Reader) -> bool:
    """Whether all that the model keeps of a prompt is keys and values, of which rows can be copied and left-padded."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    # Not their subclasses: those keep more, such as a recurrent state.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in empty_cache(policy).layers)


def empty_cache(policy: Reader) -> Cache:
    """A cache for one batch."""
    from transformers import DynamicCache

    return DynamicCache(config=policy.base.config)


def _rows_of(cache: Cache, rows_B: Tensor) -> Cache:
    """A cache of these rows; reading behind it leaves `cache` as it is, for a layer replaces its tensors."""
    chosen = copy(cache)
    chosen.layers = [copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows_B)
    return chosen
