"""Clipping: a limit to the advantage of a single token, whatever the divergence.

Legend: N positions, V outcomes; p student, F = p · h(u) the logit-gradient numerator of a divergence.

A pointwise map Φ replaces the advantage a = h(u) by Φ(h(u)), held fixed: the gradient is that of −Σ p Φ(h(u)), and of
the divergence only where Φ does nothing. The reported value stays the divergence itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass
from math import inf

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, Ranged, option


class Clipping(Ranged, ABC):
    """A pointwise map Φ with Φ(0) = 0."""

    __slots__ = ()

    @abstractmethod
    def clip_(self, numerator: Tensor, p: Tensor) -> Tensor:
        """p · Φ(numerator / p), without dividing where p is 0; may overwrite both. At p = 1 it is Φ itself."""


@dataclass(frozen=True, slots=True)
class Clip(Clipping):
    """Φ(a) = a clamped to ±limit."""

    limit: float = option(MISSING, "the largest advantage; 1.0 to 5.0 are usual", above=0, most=inf)

    def clip_(self, numerator: Tensor, p: Tensor) -> Tensor:
        """F clamped to ±limit · p."""
        most = p.mul_(self.limit)
        return torch.maximum(torch.minimum(numerator, most), -most)


@dataclass(frozen=True, slots=True)
class Tanh(Clipping):
    """Φ(a) = tanh(a / scale), within ±1."""

    scale: float = option(MISSING, "the advantage that becomes tanh(1); 1.0 is usual", above=0, most=inf)

    def clip_(self, numerator: Tensor, p: Tensor) -> Tensor:
        """p · tanh(F / (p · scale)), 0 where p is 0."""
        return torch.where(p > 0, numerator.div_(p).div_(self.scale).tanh_().mul_(p), 0.0)


@dataclass(frozen=True, slots=True)
class Relative(Clipping):
    """A clip at a multiple of the mean of `TokenStats.magnitude_N` over past steps, which only the caller knows:
    `resolve` makes it a `Clip` before a loss is computed."""

    multiple: float = option(3.0, "of the running mean", above=0, most=inf)

    def resolve(self, mean: float | None) -> Clip | None:
        """The clip at this mean; None before there is one, or when it is 0."""
        return Clip(self.multiple * mean) if mean else None

    def clip_(self, numerator: Tensor, p: Tensor) -> Tensor:
        """Raises `ConfigError`."""
        why = "one micro-batch has no running mean, and a limit must not depend on how a batch is cut"
        raise ConfigError("a relative clip is no clip yet", got=self, why=why, do="use .resolve(mean of magnitude_N)")
