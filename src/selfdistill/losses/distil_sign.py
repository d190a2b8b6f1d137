"""Direction: toward the teacher or away from it, token by token. It multiplies the distillation of a token.

Legend: N tokens; A the verdict on a token's answer.

Every divergence pulls toward the teacher, so none of them can repair a direction that is wrong (arXiv 2605.11609).
A negative `distil_R` of the table turns an answer's direction around once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses.table import TokenTable


class DistillationSign(ABC):
    """A number in [−1, 1] for every token: 1 is toward the teacher."""

    __slots__ = ()

    @abstractmethod
    def signs(self, table: TokenTable) -> Tensor:
        """signs_N."""


@dataclass(frozen=True, slots=True)
class Attract(DistillationSign):
    """Toward the teacher everywhere: ordinary distillation."""

    def signs(self, table: TokenTable) -> Tensor:
        """1."""
        return torch.ones_like(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class Repel(DistillationSign):
    """Away from the teacher everywhere. Without a bound or a gate it has no minimum. Source: arXiv 2605.11609."""

    def signs(self, table: TokenTable) -> Tensor:
        """−1."""
        return -torch.ones_like(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class AdvantageSign(DistillationSign):
    """sign(A): toward the teacher in answers above their group's mean, away below it, 0 in a group that agrees.

    Source: arXiv 2604.03128 (the verdict sets the direction, the teacher the magnitude).
    """

    def signs(self, table: TokenTable) -> Tensor:
        """sign(A)."""
        return table.advantage_N.sign().to(table.logprobs_N)


@dataclass(frozen=True, slots=True)
class OppositeAdvantageSign(DistillationSign):
    """−sign(A): rewards good answers most where the teacher would not have gone. Source: arXiv 2605.10781."""

    def signs(self, table: TokenTable) -> Tensor:
        """−sign(A)."""
        return -table.advantage_N.sign().to(table.logprobs_N)
