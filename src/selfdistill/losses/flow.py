"""Flows: what each term wants of each token, F = p · a, written no wider than it is.

Legend: N positions, V vocabulary, B buckets of a split, E tokens of their own.

The gradient of any number of terms on the student's logits is

    ∂L/∂z = p ΣF − F

A flow over the whole vocabulary needs a matrix. One on buckets needs a number for each: inside the last bucket it is
proportional to p. One on single tokens needs a number for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses.split import BucketedDistribution


@dataclass(frozen=True, slots=True)
class GradientNumerator:
    """The sum of up to three parts: on the `buckets_NB` of the student's split, on the tokens `ids_NE`, and over the
    whole vocabulary. `total_N1` is ΣF. Tensors may be overwritten by whoever is given the flow."""

    total_N1: Tensor
    buckets_NB: Tensor | None = None
    ids_NE: Tensor | None = None
    tokens_NE: Tensor | None = None
    whole_NV: Tensor | None = None

    @staticmethod
    def on_buckets(numerator_NB: Tensor) -> GradientNumerator:
        """In the last bucket in proportion to p."""
        return GradientNumerator(numerator_NB.sum(-1, keepdim=True), buckets_NB=numerator_NB)

    @staticmethod
    def on_tokens(ids_NE: Tensor, numerator_NE: Tensor) -> GradientNumerator:
        """0 on all others."""
        return GradientNumerator(numerator_NE.sum(-1, keepdim=True), ids_NE=ids_NE, tokens_NE=numerator_NE)

    @staticmethod
    def on_all(numerator_NV: Tensor) -> GradientNumerator:
        """One number per token of the vocabulary."""
        return GradientNumerator(numerator_NV.sum(-1, keepdim=True), whole_NV=numerator_NV)

    def times(self, weight_N1: Tensor) -> GradientNumerator:
        """Each position weighed."""
        buckets_NB, tokens_NE, whole_NV = (
            None if part is None else part.mul_(weight_N1) for part in (self.buckets_NB, self.tokens_NE, self.whole_NV)
        )
        return GradientNumerator(self.total_N1 * weight_N1, buckets_NB, self.ids_NE, tokens_NE, whole_NV)


def logit_gradient(student: BucketedDistribution, numerators: Sequence[GradientNumerator]) -> Tensor:
    """∂L/∂z [N, V] = p ΣF − F for the sum of at least one flow."""
    total_N1 = torch.stack([flow.total_N1 for flow in numerators]).sum(0)
    buckets_NB = student.log_p_NB.exp() * total_N1
    for flow in numerators:
        if flow.buckets_NB is not None:
            buckets_NB = buckets_NB - flow.buckets_NB
    gradient_NV = student.spread(buckets_NB)
    for flow in numerators:
        if flow.whole_NV is not None:
            gradient_NV = gradient_NV.sub_(flow.whole_NV)
        if flow.ids_NE is not None and flow.tokens_NE is not None:
            gradient_NV = gradient_NV.scatter_add_(-1, flow.ids_NE, -flow.tokens_NE)
    return gradient_NV
