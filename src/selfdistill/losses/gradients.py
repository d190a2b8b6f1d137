"""Gradients that are known before backward runs.

Legend: C positions of one chunk, N positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from selfdistill.losses.head import Head, accumulation_dtype


@dataclass(slots=True)
class HeadGradients:
    """Where chunks put their gradients: hidden states row by row, weight and bias summed in float32 (or float64).
    None means not asked for."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @staticmethod
    def zeros(hidden_ND: Tensor, head: Head) -> HeadGradients:
        """Room for the gradients of those that require one; of none while gradients are off."""
        wide = accumulation_dtype(torch.promote_types(hidden_ND.dtype, head.weight_VD.dtype))
        hidden, weight, bias = (_asked(x) for x in trainable(hidden_ND, head))
        return HeadGradients(
            None if hidden is None else torch.zeros_like(hidden),
            None if weight is None else torch.zeros_like(weight, dtype=wide),
            None if bias is None else torch.zeros_like(bias, dtype=wide),
        )

    @property
    def wanted(self) -> bool:
        """Whether anyone asked."""
        return any(x is not None for x in (self.hidden_ND, self.weight_VD, self.bias_V))

    def add(self, rows: slice, gradient_CV: Tensor, hidden_CD: Tensor, head: Head) -> None:
        """Takes ∂L/∂r of some positions (r: logits before the soft-cap) through the linear part of the head."""
        if self.hidden_ND is not None:
            self.hidden_ND[rows] = head.hidden_gradient(gradient_CV).to(self.hidden_ND.dtype)
        if self.weight_VD is not None:
            head.add_weight_gradient_(self.weight_VD, gradient_CV, hidden_CD)
        if self.bias_V is not None:
            self.bias_V += gradient_CV.sum(0)

    def attach(self, value: Tensor, hidden_ND: Tensor, head: Head) -> Tensor:
        """`value` [] on the graph of those that asked, with these gradients."""
        inputs = trainable(hidden_ND, head)
        sums = (self.hidden_ND, self.weight_VD, self.bias_V)
        known = tuple(None if s is None or x is None else s.to(x.dtype) for s, x in zip(sums, inputs, strict=True))
        return cast(Tensor, _Known.apply(value, known, *inputs))  # type: ignore[no-untyped-call]


def trainable(hidden_ND: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a gradient may be asked for."""
    return hidden_ND, head.weight_VD, head.bias_V


def _asked(x: Tensor | None) -> Tensor | None:
    return x.detach() if x is not None and x.requires_grad and torch.is_grad_enabled() else None


class _Known(torch.autograd.Function):
    """A scalar whose backward multiplies known gradients by what comes from above."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, known: Sequence[Tensor | None], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*known)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else known * above[0] for known in ctx.saved_tensors)
