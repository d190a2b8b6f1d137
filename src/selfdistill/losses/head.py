"""The language-model head: hidden states to logits, and a gradient on logits back to hidden states and weights.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size.

    r = scale · h Wᵀ + b          z = softcap · tanh(r / softcap)   (z = r without a softcap)

`scale` is Granite's 1/logits_scaling or Cohere's logit_scale; `softcap` is Gemma 2's final soft-capping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from selfdistill.errors import ConfigError

_ROWS = 512  # of a weight, converted at a time
LOWEST_LOGIT = -1e30  # stands for "impossible": finite, so that 0 · log 0 is 0 and not NaN


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """`left @ right`, summed and returned in float32 (float64 when either side is); in `out` if that is its format."""
    if left.is_cuda and left.dtype == right.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    wide = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    return torch.mm(left.to(wide), right.to(wide), out=out if out is not None and out.dtype == wide else None)


def product_by_rows(left_ND: Tensor, weight_VD: Tensor, out_NV: Tensor | None = None) -> Tensor:
    """`left_ND @ weight_VD.T` in float32 of a weight in bfloat16: some of its rows are converted at a time, and stay in
    a processor's cache until they have been used. Half as much is read from memory as of a weight in float32."""
    left_ND = left_ND.float()
    if out_NV is None or out_NV.dtype != torch.float32:
        out_NV = left_ND.new_empty(len(left_ND), len(weight_VD))
    for part_RD, out_NR in zip(torch.split(weight_VD, _ROWS), torch.split(out_NV, _ROWS, dim=1), strict=True):
        torch.mm(left_ND, part_RD.float().T, out=out_NR)
    return out_NV


@dataclass(frozen=True, slots=True)
class Head:
    """The map from hidden states to logits, in float32 or bfloat16. A bias of -inf marks tokens that cannot be sampled
    (padding of the vocabulary). `products`: the format to which hidden states and weights are rounded before they are
    multiplied; None: they are not. Raises `ConfigError` when shapes disagree, or unless the softcap is positive."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    products: torch.dtype | None = None

    def __post_init__(self) -> None:
        weight, bias = tuple(self.weight_VD.shape), None if self.bias_V is None else tuple(self.bias_V.shape)
        if len(weight) != 2 or bias not in (None, weight[:1]):
            what = "a head needs weight_VD of shape [V, D] and bias_V of shape [V]"
            raise ConfigError(what, got=(weight, bias), do="pass those of lm_head as they are")
        if self.softcap is not None and not self.softcap > 0:
            raise ConfigError("softcap must be positive", got=self.softcap, do="pass None for no soft-cap")

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight_VD.shape[0]

    def detached(self) -> Head:
        """The same head, cut off from the graph."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return replace(self, weight_VD=self.weight_VD.detach(), bias_V=bias_V)

    def first(self, rows: int) -> Head:
        """The head of the first entries of the vocabulary alone."""
        bias_V = None if self.bias_V is None else self.bias_V[:rows]
        return replace(self, weight_VD=self.weight_VD[:rows], bias_V=bias_V)

    def rounded(self, factor: Tensor) -> Tensor:
        """A factor of a product, in the format of products."""
        return factor if self.products is None else factor.to(self.products)

    def logits(self, hidden_ND: Tensor, out_NV: Tensor | None = None) -> Tensor:
        """logits_NV in float32 (float64 for float64 inputs), in `out_NV` where that fits."""
        hidden_ND, weight_VD = self.rounded(hidden_ND), self.rounded(self.weight_VD)
        narrow = weight_VD.device.type == "cpu" and weight_VD.dtype == torch.bfloat16
        if narrow and not (torch.is_grad_enabled() and hidden_ND.requires_grad) and hidden_ND.dtype != torch.float64:
            logits_NV = product_by_rows(hidden_ND, weight_VD.detach(), out_NV)
        else:
            logits_NV = matmul(hidden_ND, weight_VD.T, out_NV)
        if self.scale != 1.0:
            logits_NV = logits_NV.mul_(self.scale)
        if self.bias_V is not None:
            logits_NV = logits_NV.add_(self.bias_V).clamp_(min=LOWEST_LOGIT)
        return logits_NV if self.softcap is None else self.softcap * logits_NV.div_(self.softcap).tanh_()


def widened(heads: Sequence[Head]) -> list[Head]:
    """The same heads, cut off from the graph and ready for many products: each distinct weight is rounded once here
    instead of once per product, and where no hardware sums bfloat16 products in float32, converted once."""
    converted: dict[int, Tensor] = {}
    for head in heads:
        if head.weight_VD.data_ptr() not in converted:
            weight_VD = head.rounded(head.weight_VD.detach())
            exact = weight_VD.is_cuda and weight_VD.dtype == torch.bfloat16
            wide_VD = weight_VD if exact else weight_VD.to(torch.promote_types(weight_VD.dtype, torch.float32))
            converted[head.weight_VD.data_ptr()] = wide_VD
    return [replace(head.detached(), weight_VD=converted[head.weight_VD.data_ptr()]) for head in heads]


class HeadGradients:
    """Sums of the gradients of chunks: hidden states row by row, weight and bias in float32 (or float64). None: the
    input requires no gradient, as none does while gradients are off."""

    def __init__(self, hidden_ND: Tensor, head: Head) -> None:
        self.inputs = (hidden_ND, head.weight_VD, head.bias_V)
        wide = torch.promote_types(torch.promote_types(hidden_ND.dtype, head.weight_VD.dtype), torch.float32)
        self.hidden_ND, self.weight_VD, self.bias_V = (
            torch.zeros_like(x, dtype=dtype) if x is not None and x.requires_grad and torch.is_grad_enabled() else None
            for x, dtype in zip(self.inputs, (hidden_ND.dtype, wide, wide), strict=True)
        )
        self.needed = any(x is not None for x in (self.hidden_ND, self.weight_VD, self.bias_V))

    def add(self, rows: slice, gradient_CV: Tensor, hidden_CD: Tensor, head: Head) -> None:
        """Takes ∂L/∂r of some positions through the linear part of the head."""
        hidden_CD = head.rounded(hidden_CD)
        if self.bias_V is not None:
            self.bias_V += gradient_CV.sum(0)
        if head.weight_VD.dtype == torch.bfloat16:  # it keeps float32's range, so its tensor cores may be used
            gradient_CV = gradient_CV.to(torch.bfloat16)
        if self.hidden_ND is not None:
            self.hidden_ND[rows] = matmul(gradient_CV, head.weight_VD).mul_(head.scale).to(self.hidden_ND.dtype)
        if self.weight_VD is not None and gradient_CV.dtype == self.weight_VD.dtype:
            self.weight_VD.addmm_(gradient_CV.T, hidden_CD.to(self.weight_VD.dtype), alpha=head.scale)
        elif self.weight_VD is not None:
            self.weight_VD.add_(matmul(gradient_CV.T, hidden_CD), alpha=head.scale)

    def attach(self, value: Tensor) -> Tensor:
        """`value` [] on the graph of the inputs that require a gradient, with these gradients."""
        sums = (self.hidden_ND, self.weight_VD, self.bias_V)
        known = tuple(None if s is None or x is None else s.to(x.dtype) for s, x in zip(sums, self.inputs, strict=True))
        return cast(Tensor, _Known.apply(value, known, *self.inputs))  # type: ignore[no-untyped-call]


class _Known(torch.autograd.Function):
    """A scalar whose backward multiplies known gradients by the gradient from above."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, known: Sequence[Tensor | None], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*known)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else known * above[0] for known in ctx.saved_tensors)
