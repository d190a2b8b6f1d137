"""Weights that are stored in bfloat16 and multiplied in float32.

Processors without products of bfloat16 (x86 before AVX-512) compute them in software, many times slower than those of
float32. A frozen model keeps its half size there: a few hundred rows of a weight are converted at a time, which stay in
the cache until they have been used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.losses.head import product_by_rows

FEW = 256  # inputs; for more, one large product is faster


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has products of bfloat16."""
    if device.type != "cpu":
        return True
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(built and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def multiply_in_float32(model: nn.Module) -> bool:
    """Makes the frozen bfloat16 weights of a model compute in float32; False, and nothing is changed, where it has
    layers of which it is not known how. Trained parameters are float32 already."""
    chosen: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in model.modules():
        own = [value for value in module.parameters(recurse=False) if not value.requires_grad]
        if own and type(module) in _KINDS:
            chosen.append((module, _KINDS[type(module)]))
        # A norm of transformers' own multiplies by its weight; those of torch want weights of the inputs' format.
        elif own and (type(module).__module__.startswith("torch.") or any(value.dim() > 1 for value in own)):
            return False
    for module, kind in chosen:
        module.__class__ = kind
    return True


class NarrowLinear(nn.Linear):
    """A linear layer that converts its weight for each product."""

    def forward(self, input: Tensor) -> Tensor:
        """Outputs in the format of the inputs."""
        rows_ND = input.reshape(-1, input.shape[-1])
        output: Tensor = _Product.apply(rows_ND, self.weight)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            output = output + self.bias
        return output.view(*input.shape[:-1], -1)


class NarrowEmbedding(nn.Embedding):
    """An embedding that gives float32."""

    def forward(self, input: Tensor) -> Tensor:
        """The rows of the inputs."""
        return super().forward(input).float()


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: NarrowLinear, nn.Embedding: NarrowEmbedding}


class _Product(torch.autograd.Function):
    """x Wᵀ; no gradient for W."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VD)
        if len(rows_ND) > FEW:
            return F.linear(rows_ND, weight_VD.to(rows_ND.dtype))
        return product_by_rows(rows_ND, weight_VD)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        (weight_VD,) = ctx.saved_tensors
        return above[0] @ weight_VD.to(above[0].dtype), None
