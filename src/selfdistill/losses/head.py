"""The language-model head: hidden states to logits, and a gradient on logits back to hidden states and weights.

Legend: N answer positions, V vocabulary, D hidden size.

    r = scale · h Wᵀ + b          z = softcap · tanh(r / softcap)   (z = r without a softcap)

`scale` is Granite's 1/logits_scaling or Cohere's logit_scale; `softcap` is Gemma 2's final soft-capping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfdistill.losses.refusal import refusal

LOWEST_LOGIT = -1e30  # stands for "impossible": finite, so that 0 · log 0 is 0 and not NaN


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything smaller."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """`left @ right`, summed and returned in float32 (float64 when either side is); in `out` if that is its format."""
    if left.is_cuda and left.dtype == right.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    wide = accumulation_dtype(torch.promote_types(left.dtype, right.dtype))
    return torch.mm(left.to(wide), right.to(wide), out=out if out is not None and out.dtype == wide else None)


@dataclass(frozen=True, slots=True)
class Head:
    """The map from hidden states to logits: `weight_VD`, `bias_V`, `softcap` > 0 and `scale`. float32 or bfloat16.

    A bias of -inf marks tokens that can never be said (padding of the vocabulary).

    Raises `ValueError` when the shapes disagree or the soft-cap is not positive.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.weight_VD.dim() != 2 or (self.bias_V is not None and self.bias_V.shape != self.weight_VD.shape[:1]):
            shapes = (tuple(self.weight_VD.shape), None if self.bias_V is None else tuple(self.bias_V.shape))
            raise refusal(
                "a head needs weight_VD of shape [V, D] and bias_V of shape [V]",
                got=shapes,
                why="each vocabulary entry has one row of weights and one bias",
                do="pass lm_head.weight and lm_head.bias as they are",
            )
        if self.softcap is not None and self.softcap <= 0:
            raise refusal(
                "softcap must be positive",
                got=self.softcap,
                why="logits are bounded to ±softcap",
                do="pass None for no soft-cap",
            )

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

    def logits(self, hidden_ND: Tensor, out_NV: Tensor | None = None) -> Tensor:
        """logits_NV in float32 (float64 for float64 inputs), in `out_NV` where that fits."""
        logits_NV = matmul(hidden_ND, self.weight_VD.T, out_NV)
        if self.scale != 1.0:
            logits_NV = logits_NV.mul_(self.scale)
        if self.bias_V is not None:
            logits_NV = logits_NV.add_(self.bias_V).clamp_(min=LOWEST_LOGIT)
        return logits_NV if self.softcap is None else self.softcap * logits_NV.div_(self.softcap).tanh_()

    def before_cap_(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """Turns ∂L/∂z into ∂L/∂r in place: dz/dr = 1 − (z/softcap)²."""
        if self.softcap is None:
            return gradient_NV
        return gradient_NV.mul_(1.0 - (logits_NV / self.softcap).square())

    def hidden_gradient(self, gradient_NV: Tensor) -> Tensor:
        """∂L/∂h [N, D] from ∂L/∂r [N, V]."""
        return matmul(self._narrowed(gradient_NV), self.weight_VD).mul_(self.scale)

    def add_weight_gradient_(self, total_VD: Tensor, gradient_NV: Tensor, hidden_ND: Tensor) -> None:
        """Adds ∂L/∂W from ∂L/∂r [N, V] to a running total in float32 (or float64)."""
        gradient_NV = self._narrowed(gradient_NV)
        if gradient_NV.dtype == total_VD.dtype:
            total_VD.addmm_(gradient_NV.T, hidden_ND.to(total_VD.dtype), alpha=self.scale)
        else:
            total_VD.add_(matmul(gradient_NV.T, hidden_ND), alpha=self.scale)

    def _narrowed(self, gradient_NV: Tensor) -> Tensor:
        """bfloat16 keeps float32's range, so its tensor cores may be used where the weight is bfloat16 too."""
        return gradient_NV.to(torch.bfloat16) if self.weight_VD.dtype == torch.bfloat16 else gradient_NV


def widened(heads: Sequence[Head]) -> list[Head]:
    """The same heads, cut off from the graph and ready for many products: where no hardware sums bfloat16 products in
    float32, each distinct weight is converted once here instead of once per product."""
    converted: dict[int, Tensor] = {}
    return [replace(head.detached(), weight_VD=_wide(head.weight_VD.detach(), converted)) for head in heads]


def _wide(weight_VD: Tensor, converted: dict[int, Tensor]) -> Tensor:
    if weight_VD.is_cuda and weight_VD.dtype == torch.bfloat16:
        return weight_VD
    if weight_VD.data_ptr() not in converted:
        converted[weight_VD.data_ptr()] = weight_VD.to(accumulation_dtype(weight_VD.dtype))
    return converted[weight_VD.data_ptr()]
