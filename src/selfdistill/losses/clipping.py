"""Bounds: how far one token may push, whatever the divergence says.

Legend: N positions, V outcomes; p student, F = p · h(u) the flow of a shape.

A bound Φ replaces the advantage a = h(u) by Φ(h(u)), held fixed: the gradient is that of −Σ p Φ(h(u)), and of the
divergence only where Φ does nothing. The value stays the divergence itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses.divergences import Divergence, DivergenceValue
from selfdistill.losses.refusal import refusal


class Clipping(ABC):
    """A pointwise map Φ with Φ(0) = 0."""

    __slots__ = ()

    @abstractmethod
    def flow_(self, flow: Tensor, p: Tensor) -> Tensor:
        """p · Φ(flow / p), without dividing where p is 0; may overwrite both. At p = 1 it is Φ itself."""


def _check_positive(number: float, name: str, do: str) -> None:
    if not number > 0:
        raise refusal(f"{name} must be positive", got=number, why="nothing could be learned", do=do)


@dataclass(frozen=True, slots=True)
class Clip(Clipping):
    """Φ(a) = a held to ±limit. Raises `ValueError` unless the limit is positive."""

    limit: float

    def __post_init__(self) -> None:
        _check_positive(self.limit, "limit", "1.0 to 5.0 are usual")

    def flow_(self, flow: Tensor, p: Tensor) -> Tensor:
        """The flow held to ±limit · p."""
        most = p.mul_(self.limit)
        return torch.maximum(torch.minimum(flow, most), -most)


@dataclass(frozen=True, slots=True)
class Tanh(Clipping):
    """Φ(a) = tanh(a / scale), within ±1. Raises `ValueError` unless the scale is positive."""

    scale: float

    def __post_init__(self) -> None:
        _check_positive(self.scale, "scale", "1.0; smaller ones give small log-ratio more say")

    def flow_(self, flow: Tensor, p: Tensor) -> Tensor:
        """0 where p is 0."""
        return torch.where(p > 0, flow.div_(p).div_(self.scale).tanh_().mul_(p), 0.0)


@dataclass(frozen=True, slots=True)
class Relative(Clipping):
    """A clip at a multiple of what is usual, say the running mean of `magnitude_N`. A setting: the kernel wants a
    number, which `at` gives.

    Raises `ValueError` unless the multiple is positive.
    """

    multiple: float = 3.0

    def __post_init__(self) -> None:
        _check_positive(self.multiple, "multiple", "3.0 is usual")

    def at(self, mean: float | None) -> Clip | None:
        """The clip at this mean; None while nothing is known, or nothing has any magnitude."""
        return Clip(self.multiple * mean) if mean else None

    def flow_(self, flow: Tensor, p: Tensor) -> Tensor:
        """Raises `ValueError`."""
        raise unresolved(self)


def unresolved(clipping: Relative) -> ValueError:
    """The error of a `Relative` that no one has turned into a clip."""
    return refusal(
        "a relative bound is relative to a mean that only the caller knows",
        got=clipping,
        why="the kernel sees one micro-batch, and a bound must not depend on how a batch is cut",
        do="resolve it with .at(mean of magnitude_N)",
    )


@dataclass(frozen=True, slots=True)
class ClippedDivergence(Divergence):
    """A shape as the kernel runs it: how much it would push is noted, then bounded."""

    inner: Divergence
    clipping: Clipping | None = None

    def advantage(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Φ(h(u))."""
        a = self.inner.advantage(log_p, log_q)
        return a if self.clipping is None else self.clipping.flow_(a, torch.ones_like(a))

    def compare(self, log_p_NV: Tensor, log_q_NV: Tensor) -> DivergenceValue:
        """The shape's own value; flow p · Φ(h(u))."""
        return self._measured(self.inner.compare(log_p_NV, log_q_NV), log_p_NV)

    def sampled(self, log_p_N1: Tensor, log_q_N1: Tensor) -> DivergenceValue:
        """The same on one token that was drawn from p."""
        return self._measured(self.inner.sampled(log_p_N1, log_q_N1), torch.zeros_like(log_p_N1))

    def _measured(self, compared: DivergenceValue, log_p_NV: Tensor) -> DivergenceValue:
        magnitude_N = torch.linalg.vector_norm(compared.numerator_NV, ord=1, dim=-1)
        if self.clipping is None:
            return DivergenceValue(compared.divergence_N, compared.numerator_NV, magnitude_N)
        numerator_NV = self.clipping.flow_(compared.numerator_NV, log_p_NV.exp())
        return DivergenceValue(compared.divergence_N, numerator_NV, magnitude_N)
