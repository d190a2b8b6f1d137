"""A key-value cache that is written in place: transformers' own copies all it holds at every new token. What it holds
of a conversation can be kept for its next turn.

Imports transformers, so import it where a model is already loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from selfdistill.models.kept_states import ReadState

SPARE = 4  # tokens of room, at least, that a new buffer gets beside what it holds; a quarter of that where it is more


class RoundedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [B, H, L, D] of one attention layer, kept in this format; None: as they come."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept_in = dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends states [B, H, L, D]; returns all keys and values."""
        dtype = self.kept_in or key_states.dtype
        kept: tuple[Tensor, Tensor] = super().update(key_states.to(dtype), value_states.to(dtype))
        return kept


def rounded_cache(config: PreTrainedConfig, dtype: torch.dtype | None) -> DynamicCache:
    """The cache that transformers makes for a model, full-attention layers kept in this format."""
    cache = DynamicCache(config=config)
    cache.layers = [RoundedLayer(dtype) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PreallocatedLayer(RoundedLayer):  # type: ignore[no-untyped-call]
    """Keys and values [B, H, L, D] of one attention layer: views of buffers with room for more tokens."""

    keys: Tensor
    values: Tensor
    buffers: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends states [B, H, L, D]; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            nothing = (states[:, :, :0].to(self.kept_in or states.dtype) for states in (key_states, value_states))
            self.keys, self.values = nothing
            self.buffers = [self.keys, self.values]
        before, after = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if after > self.buffers[0].shape[2]:
            self._move(torch.arange(len(key_states), device=self.device), after)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:after] = states
        self.keys, self.values = (buffer[:, :, :after] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps these rows, each as often as it is listed."""
        if self.get_seq_length():
            self._move(beam_idx.to(self.device), self.keys.shape[2])

    def _move(self, rows_B: Tensor, length: int) -> None:
        """Copies these rows to new buffers for `length` tokens and some more."""
        held = self.keys.shape[2]
        self.buffers = [
            states.new_empty(len(rows_B), states.shape[1], length + max(SPARE, length // 4), states.shape[3])
            for states in (self.keys, self.values)
        ]
        for buffer, states in zip(self.buffers, (self.keys, self.values), strict=True):
            torch.index_select(states, 0, rows_B, out=buffer[:, :, :held])
        self.keys, self.values = (buffer[:, :, :held] for buffer in self.buffers)


class PreallocatedCache(DynamicCache):
    """The cache that transformers makes for a model, full-attention layers written in place. Layers of other kinds
    (sliding windows, which stay small; recurrent states) are transformers' own. `whole`: those of sliding windows keep
    all tokens as well, so that rows can be taken out of one cache and put into another."""

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype | None = None, *, whole: bool = False) -> None:
        super().__init__(config=config)
        kinds = (DynamicLayer, DynamicSlidingWindowLayer) if whole else (DynamicLayer,)
        for place, layer in enumerate(self.layers):
            if type(layer) in kinds:  # not their subclasses, which keep more
                self.layers[place] = PreallocatedLayer(dtype)

    @property
    def in_rows(self) -> bool:
        """Whether `row` can take rows out."""
        return all(isinstance(layer, PreallocatedLayer) for layer in self.layers)

    def row(self, row: int, mask_BL: Tensor | None) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values [H, L, D] of one row in every layer, without its padding; None where a layer keeps others."""
        layers = [layer for layer in self.layers if isinstance(layer, PreallocatedLayer)]
        if len(layers) < len(self.layers):
            return None
        if mask_BL is None:
            keys = layers[0].keys
            places_L = torch.arange(keys.shape[2], device=keys.device)
        else:
            places_L = mask_BL[row].nonzero().squeeze(1)
        return [(layer.keys[row][:, places_L], layer.values[row][:, places_L]) for layer in layers]


def restored(
    config: PreTrainedConfig, states: Sequence[ReadState | None], *, whole: bool = False
) -> tuple[PreallocatedCache, Tensor]:
    """A cache with one row for each state, padded on the left (None: padding alone), and mask_BL of its columns."""
    cache = PreallocatedCache(config, whole=whole)
    lengths = [len(state.ids) if state else 0 for state in states]
    some = next(state for state in states if state)
    for place, (keys, values) in enumerate(some.layers):
        nothing = keys[:, :0], values[:, :0]
        rows = [state.layers[place] if state else nothing for state in states]
        parts = [[F.pad(part, (0, 0, max(lengths) - part.shape[1], 0)) for part in row] for row in rows]
        keys, values = (torch.stack(column) for column in zip(*parts, strict=True))
        cache.update(keys, values, place)
    columns_L = torch.arange(max(lengths), 0, -1, device=some.layers[0][0].device)
    return cache, (columns_L <= torch.tensor(lengths, device=columns_L.device)[:, None]).long()
