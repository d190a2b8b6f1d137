"""A key-value cache that is written in place: transformers' own copies all it holds at every new token.

Imports transformers, so import it where a model is already there.

Legend: B rows of a batch, H key-value heads, L tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE = 4  # tokens of room, at least, that a buffer gets beside what it holds; a quarter of that where it is more


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one attention layer: views of buffers with room for tokens to come."""

    keys: Tensor
    values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers without room, shaped as the first states [B, H, L, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.key_room, self.value_room = self.keys, self.values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends states [B, H, L, D]; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.key_room, self.keys = _appended(self.key_room, self.keys, key_states)
        self.value_room, self.values = _appended(self.value_room, self.values, value_states)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps these rows, some of them perhaps several times, and makes room."""
        if self.get_seq_length():
            rows_B = beam_idx.to(self.device)
            self.key_room, self.keys = _selected(self.keys, rows_B)
            self.value_room, self.values = _selected(self.values, rows_B)


def preallocated_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache transformers would make for this model, full-attention layers written in place. Layers of other kinds
    (sliding windows, which stay small; recurrent states) are transformers' own."""
    cache = DynamicCache(config=config)
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:  # not its subclasses, which keep more
            cache.layers[place] = PreallocatedLayer()  # type: ignore[no-untyped-call]
    return cache


def _room(like_BHLD: Tensor, rows: int, length: int) -> Tensor:
    _, heads, _, size = like_BHLD.shape
    return like_BHLD.new_empty(rows, heads, length + max(SPARE, length // 4), size)


def _appended(room: Tensor, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The buffer (a larger one where there is no room), and the view of its states, `new` included."""
    before, after = held.shape[2], held.shape[2] + new.shape[2]
    if after > room.shape[2]:
        room = _room(new, len(new), after)
        room[:, :, :before] = held
    room[:, :, before:after] = new
    return room, room[:, :, :after]


def _selected(held: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
    length = held.shape[2]
    room = _room(held, len(rows_B), length)
    torch.index_select(held, 0, rows_B, out=room[:, :, :length])
    return room, room[:, :, :length]
