"""A teacher's most likely tokens, kept in place of its hidden states.

Legend: N answer positions, V vocabulary, D hidden size, K tokens kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.signal.chunks import rows_per_chunk
from selfdistill.signal.head import Head
from selfdistill.signal.refusal import refusal
from selfdistill.signal.split import Apart, Split, likeliest

_BYTES_PER_TOKEN = 12  # an id in 64 bits and a log-probability in 32


@dataclass(frozen=True, slots=True)
class KeptTopK:
    """`ids_NK` and `logprobs_NK` of the K most likely tokens, and `tail_N`, the log of the mass of all others, at one
    temperature."""

    ids_NK: Tensor
    logprobs_NK: Tensor
    tail_N: Tensor
    temperature: float = 1.0

    @property
    def log_p_NB(self) -> Tensor:
        """Log-probabilities of the K tokens and of all others together."""
        return torch.cat([self.logprobs_NK, self.tail_N[:, None]], -1)

    @property
    def entropy_N(self) -> Tensor:
        """NaN: not known."""
        return torch.full_like(self.tail_N, torch.nan)

    @property
    def k(self) -> int:
        """K."""
        return self.ids_NK.shape[1]

    def of(self, rows: slice) -> KeptTopK:
        """Those of some positions."""
        return KeptTopK(self.ids_NK[rows], self.logprobs_NK[rows], self.tail_N[rows], self.temperature)

    @staticmethod
    def joined(parts: Sequence[KeptTopK]) -> KeptTopK:
        """Those of several answers, one after the other."""
        columns = zip(*((p.ids_NK, p.logprobs_NK, p.tail_N) for p in parts), strict=True)
        ids_NK, logprobs_NK, tail_N = (torch.cat(column) for column in columns)
        return KeptTopK(ids_NK, logprobs_NK, tail_N, parts[0].temperature)

    def at(self, tokens_N: Tensor) -> Tensor:
        """log q of one token per position; NaN where it is not among the kept."""
        here_NK = self.ids_NK == tokens_N[:, None]
        found_N = torch.where(here_NK, self.logprobs_NK, -torch.inf).amax(-1)
        return torch.where(here_NK.any(-1), found_N, torch.nan)


def cheaper_as_top_k(k: int, hidden: int, itemsize: int) -> bool:
    """Whether K tokens of 12 bytes each are smaller than D numbers of `itemsize` bytes."""
    return k * _BYTES_PER_TOKEN < hidden * itemsize


@torch.no_grad()
def keep(head: Head, hidden_ND: Tensor, k: int, temperature: float) -> KeptTopK:
    """The K most likely tokens of every position, at most V − 1, without ever holding logits for all positions.

    Raises `ValueError` for K ≤ 0.
    """
    if k <= 0:
        raise refusal(
            "k must be a positive number of tokens",
            got=k,
            why="nothing of the teacher would be kept",
            do="keep as many tokens as the support compares",
        )
    pieces = torch.split(hidden_ND, rows_per_chunk(head.vocabulary, hidden_ND.device))
    kept = [_keep(head.logits(piece_CD), min(k, head.vocabulary - 1), temperature) for piece_CD in pieces]
    ids_NK, logprobs_NK, tail_N = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return KeptTopK(ids_NK, logprobs_NK, tail_N, temperature)


def _keep(logits_CV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    if temperature != 1.0:
        logits_CV = logits_CV / temperature
    split = Split.of(logits_CV, Apart(likeliest(logits_CV, k)))
    return split.ids_NK, split.log_p_NB[:, :-1], split.log_p_NB[:, -1]
