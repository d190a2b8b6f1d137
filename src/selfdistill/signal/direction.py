"""Direction: toward the teacher or away from it, token by token. It multiplies the distillation of a token.

Legend: N tokens; A the verdict on a token's answer, H the student's entropy.

Every divergence pulls toward the teacher, so none of them can repair a direction that is wrong (arXiv 2605.11609).
A negative `distil_R` of the table turns an answer's direction around once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.signal.refusal import refusal
from selfdistill.signal.table import TokenTable, quantile


class Direction(ABC):
    """A number in [−1, 1] for every token: 1 is toward the teacher."""

    __slots__ = ()

    @abstractmethod
    def signs(self, table: TokenTable) -> Tensor:
        """signs_N."""


@dataclass(frozen=True, slots=True)
class Toward(Direction):
    """Toward the teacher everywhere: ordinary distillation."""

    def signs(self, table: TokenTable) -> Tensor:
        """1."""
        return torch.ones_like(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class Away(Direction):
    """Away from the teacher everywhere. Without a bound or a gate it has no minimum. Source: arXiv 2605.11609."""

    def signs(self, table: TokenTable) -> Tensor:
        """−1."""
        return -torch.ones_like(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class WithVerdict(Direction):
    """sign(A): toward the teacher in answers above their group's mean, away below it, 0 in a group that agrees.

    Source: arXiv 2604.03128 (the verdict sets the direction, the teacher the magnitude).
    """

    def signs(self, table: TokenTable) -> Tensor:
        """sign(A)."""
        return table.advantage_N.sign().to(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class AgainstVerdict(Direction):
    """−sign(A): rewards good answers most where the teacher would not have gone. Source: arXiv 2605.10781."""

    def signs(self, table: TokenTable) -> Tensor:
        """−sign(A)."""
        return -table.advantage_N.sign().to(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class EntropyRouter(Direction):
    """tanh((τ − H) / (width · σ)): toward the teacher where the student is sure, away where it hesitates.

    τ is the batch's `quantile` of H and σ the mean absolute deviation of H, both over the distilled tokens. At the
    default the fifth of the tokens with the highest entropy is pushed away. A small `width` switches sharply.

    Raises `ValueError` unless 0 <= quantile <= 1 and width > 0. Source: arXiv 2605.22263 (ρ = 0.2, read as the share
    above τ; its factor for unreliable evidence is left out).
    """

    quantile: float = 0.8
    width: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise refusal(
                "the quantile must lie in [0, 1]",
                got=self.quantile,
                why="it is the share of tokens that are drawn toward the teacher",
                do="use 0.8 to push the fifth of highest entropy away",
            )
        if not 0 < self.width < float("inf"):
            raise refusal(
                "the width of the router must be positive and finite",
                got=self.width,
                why="entropies are divided by it",
                do="use 1.0, or a smaller number for a sharper switch",
            )

    def signs(self, table: TokenTable) -> Tensor:
        """tanh((τ − H) / (width · σ)); 0 where all entropies are equal."""
        entropy_N, routed_N = table.entropy_N, table.distilled_N
        if not bool(routed_N.any()):
            return torch.zeros_like(entropy_N)
        seen = entropy_N[routed_N]
        spread = (seen - seen.mean()).abs().mean().clamp(min=torch.finfo(seen.dtype).tiny)
        return torch.tanh((quantile(seen, self.quantile) - entropy_N) / (self.width * spread))
