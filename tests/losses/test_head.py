"""The head."""

from __future__ import annotations

import pytest
import torch

from selfdistill.losses import Head
from selfdistill.losses.head import widened


def test_logits_by_hand() -> None:
    hidden, weight = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    assert Head(weight).logits(hidden).tolist() == [[2.0, -3.0]]
    scaled = Head(weight, torch.tensor([0.5, 1.0]), softcap=2.0, scale=0.5)
    torch.testing.assert_close(scaled.logits(hidden), 2 * torch.tanh(torch.tensor([[1.5, -0.5]]) / 2))


def test_bfloat16_products_are_summed_in_float32() -> None:
    """1 + 256 · 2^-9 = 1.5, but in bfloat16 1 + 2^-9 is 1."""
    hidden = torch.cat([torch.ones(1, 1), torch.full((1, 256), 2.0**-9)], -1).bfloat16()
    logits = Head(torch.ones(1, 257).bfloat16()).logits(hidden)
    assert logits.dtype == torch.float32
    assert logits.item() == 1.5


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_logits_carry_a_gradient(softcap: float | None) -> None:
    """Σ z at r = 0 of two tokens: dz/dr = 1 there with or without a soft-cap, so ∂/∂W is scale · h in each row."""
    weight, bias = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    Head(weight, bias, softcap, scale=0.5).logits(torch.tensor([[2.0, 4.0, 6.0]])).sum().backward()
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert bias.grad.tolist() == [1.0, 1.0]


def test_heads_that_share_a_weight_share_its_conversion() -> None:
    weight = torch.ones(3, 2, dtype=torch.bfloat16)
    first, second = widened([Head(weight), Head(weight, softcap=2.0)])
    assert first.weight_VD.dtype == torch.float32
    assert first.weight_VD is second.weight_VD
    assert second.softcap == 2.0


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[V, D\]"):
        Head(torch.ones(3))
    with pytest.raises(ValueError, match=r"bias_V of shape \[V\]"):
        Head(torch.ones(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match="softcap must be positive"):
        Head(torch.ones(3, 2), softcap=0.0)
