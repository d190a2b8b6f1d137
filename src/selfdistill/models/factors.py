"""LoRA whose product is added to a layer's outputs in place.

Legend: N inputs, D their size, O size of the outputs, R rank.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import Linear
from torch import Tensor, nn


class FactoredLinear(Linear):
    """peft's layer makes three tensors as large as its outputs and frees them again, and under autocast a copy of its
    inputs, which is kept. The C library of Linux leaves holes where tensors were, into which none of the same size
    fits: an update took three times the memory that it keeps."""

    @staticmethod
    def computes(layer: Linear) -> bool:
        """Whether the layer is W x + s B A x with one adapter, and nothing else."""
        plain = not layer.lora_variant and not any(layer.lora_bias.values())
        return plain and all(isinstance(each, nn.Identity) for each in layer.lora_dropout.values())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + s B A x, summed as the second product is computed."""
        if self.disable_adapters or self.merged or args or kwargs or len(self.active_adapters) != 1:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        (name,) = self.active_adapters
        inputs_ND = x.reshape(-1, x.shape[-1])
        outputs_NO: Tensor = self.base_layer(inputs_ND)
        inner_NR, factor_OR = self.lora_A[name](inputs_ND), self.lora_B[name].get_parameter("weight")
        outputs_NO.addmm_(inner_NR, factor_OR.to(outputs_NO.dtype).t(), alpha=self.scaling[name])
        return outputs_NO.view(*x.shape[:-1], -1)
