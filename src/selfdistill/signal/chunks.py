"""How many positions are worked on at a time.

Legend: C positions of one chunk, V vocabulary.
"""

from __future__ import annotations

import torch

_ENTRIES_CPU = 2**22  # logits of one chunk: 16 MiB in float32, where caches are small
_ENTRIES = 2**26  # 256 MiB: an accelerator wants long products
_FEWEST_ROWS = 64  # fewer would read the head's weight more often than use it


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """C, so that [C, V] buffers stay small whatever V is."""
    return max(_FEWEST_ROWS, (_ENTRIES_CPU if device.type == "cpu" else _ENTRIES) // vocabulary)
