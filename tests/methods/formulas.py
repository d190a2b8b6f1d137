"""Gradients by hand, for the tests of methods: plain numbers of three tokens in, ∂L/∂logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Row = Sequence[float]
ROOT = 3**0.5 / 2  # advantages of rewards 1, 1, 0, 0: ±½, divided by their sample deviation √(1/3)


def row(values: Row) -> Tensor:
    """In float64."""
    return torch.tensor(values).double()


def moved(p: Row, advantage: Tensor) -> Tensor:
    """−p (a − Σ p a): what a minimised divergence with this advantage for every token does to the logits."""
    p_V = row(p)
    return -p_V * (advantage - (p_V * advantage).sum())


def toward_mean(p: Row, q: Row) -> Tensor:
    """The advantage of Jensen-Shannon at ½: ½ log m/p, with m half of p and q each."""
    return ((row(p) + row(q)) / 2 / row(p)).log() / 2


def entropy(q: Row) -> float:
    """−Σ q log q in nats."""
    return float(-(row(q) * row(q).log()).sum())


def close(found: Tensor, expected: Tensor) -> None:
    """To 1e-6."""
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def towards(token: str, probabilities: Row) -> Tensor:
    """∂ log p(token)/∂logits = 1[token] − p."""
    return torch.eye(3).double()["ab.".index(token)] - row(probabilities)
