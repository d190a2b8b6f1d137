"""How many positions are worked on at a time: in one product with the head, and entry by entry.

Legend: C positions of one chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_ENTRIES_CPU = 2**22  # logits of one chunk: 16 MiB in float32, where caches are small
_ENTRIES = 2**26  # 256 MiB: an accelerator wants long products
_FEWEST_ROWS = 64  # fewer would read the head's weight more often than use it
_ENTRIES_CACHED = 2**18  # 1 MiB: what a processor does entry by entry stays in its cache, in memory it had before


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """C, so that [C, V] buffers stay small whatever V is."""
    return max(_FEWEST_ROWS, (_ENTRIES_CPU if device.type == "cpu" else _ENTRIES) // vocabulary)


def blocks(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """The positions of a chunk, as many at a time as are worked on entry by entry: all of them on an accelerator. At
    least one slice."""
    size = max(1, _ENTRIES_CACHED // vocabulary) if device.type == "cpu" else max(1, rows)
    return (slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size))
