"""The terms of the loss: distillation, policy gradient and reference KL, each over the positions of one chunk.

Legend: N answer positions, C positions of one chunk, V vocabulary; p student, q teacher, y sampled.

Every term adds its weighted value and its weighted logit-gradient numerator F = p · a; none knows which divergence or
support runs. To add a term, give it a weight in `TokenWeights`, a function here, a name in `LossTerm`, and a line
in the plan of the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from selfdistill.losses.divergences import GradientNumerator, ReverseKL
from selfdistill.losses.policy_gradient import importance_weight, probability_ratio
from selfdistill.losses.spec import Inputs, LossTerm, TokenStats
from selfdistill.losses.support import BucketedDistribution


@dataclass(slots=True)
class Chunk:
    """Some positions: what all terms read, and what they add. `losses` and `stats` are those of all positions;
    `numerators` come with their weights [C, 1]."""

    inputs: Inputs
    rows: slice
    losses: Mapping[LossTerm, Tensor]
    stats: TokenStats
    student: BucketedDistribution
    teacher: BucketedDistribution | None
    reference: BucketedDistribution | None
    tokens_C: Tensor
    logprobs_C: Tensor
    old_logprobs_C: Tensor
    sampler_weight_C: Tensor
    numerators: list[tuple[GradientNumerator, Tensor]] = field(default_factory=list)

    @staticmethod
    def of(
        inputs: Inputs,
        rows: slice,
        losses: Mapping[LossTerm, Tensor],
        stats: TokenStats,
        student_CV: Tensor,
        teacher_CV: Tensor | None,
        reference_CV: Tensor | None,
    ) -> Chunk:
        """From the logits of these positions; those of the teacher are at the temperature already. A ratio whose other
        side is unknown compares a number with itself and is exactly 1."""
        spec, tokens_C = inputs.loss_spec, inputs.tokens_N[rows]
        if spec.temperature != 1.0:
            student_CV = student_CV / spec.temperature
        buckets = () if teacher_CV is None else spec.support.own_buckets(student_CV, teacher_CV)
        student = BucketedDistribution.of(student_CV, *buckets)
        teacher = None if teacher_CV is None else BucketedDistribution.of(teacher_CV, *buckets)
        if teacher is not None and not spec.mixture.normalise:
            teacher = teacher.unnormalised()
        reference = None if reference_CV is None else BucketedDistribution.of(reference_CV / spec.temperature)

        logprobs_C = student.logprobs(tokens_C)
        old_C = logprobs_C if inputs.old_logprobs_N is None else inputs.old_logprobs_N[rows].to(logprobs_C)
        old_C = torch.where(old_C.isnan(), logprobs_C, old_C)
        sampler_C = old_C if inputs.sampler_logprobs_N is None else inputs.sampler_logprobs_N[rows].to(logprobs_C)
        sampler_C = torch.where(sampler_C.isnan(), old_C, sampler_C)
        sampler_ratio_C, cap = probability_ratio(old_C, sampler_C), spec.ratio.sampler_ratio
        stats.logprobs_N[rows], stats.entropy_N[rows] = logprobs_C, student.entropy_N
        stats.ratio_N[rows] = probability_ratio(logprobs_C, old_C)
        stats.sampler_ratio_N[rows] = sampler_ratio_C
        stats.clipped_N[rows] = sampler_ratio_C > (inf if cap is None else cap)
        return Chunk(
            inputs, rows, losses, stats, student, teacher, reference, tokens_C, logprobs_C, old_C,
            importance_weight(old_C, sampler_C, cap),
        )  # fmt: skip

    def add(self, name: LossTerm, value_C: Tensor, weight_C: Tensor) -> None:
        """Adds to the loss; a position without weight adds nothing, whatever its value."""
        self.losses[name].add_(torch.where(weight_C != 0, weight_C * value_C, 0.0).sum())


def distil(chunk: Chunk, distil_C: Tensor) -> None:
    """distil · r1 · r2 · D(p, q): the divergence from the teacher. Clipping acts on the numerator alone."""
    spec, stats, rows = chunk.inputs.loss_spec, chunk.stats, chunk.rows
    assert chunk.teacher is not None
    compared = spec.support.compare(chunk.student, chunk.teacher, chunk.tokens_C, spec.divergence, spec.clipping)
    cap, distilled_C = spec.ratio.policy_ratio, distil_C != 0
    weight_C = distil_C * importance_weight(chunk.logprobs_C, chunk.old_logprobs_C, cap) * chunk.sampler_weight_C
    chunk.add("divergence", compared.divergence_N, weight_C)
    chunk.numerators.append((compared.numerator, weight_C[:, None]))
    stats.clipped_N[rows] |= (stats.ratio_N[rows] > (inf if cap is None else cap)) & distilled_C
    stats.teacher_logprobs_N[rows] = torch.where(distilled_C, chunk.teacher.logprobs(chunk.tokens_C), torch.nan)
    stats.teacher_entropy_N[rows] = torch.where(distilled_C, chunk.teacher.entropy_N, torch.nan)
    stats.divergence_N[rows] = torch.where(distilled_C, compared.divergence_N, torch.nan)
    stats.magnitude_N[rows] = torch.where(distilled_C, compared.magnitude_N, torch.nan)


def policy_gradient(chunk: Chunk, advantage_C: Tensor) -> None:
    """r2 · PG(advantage): F = −∂loss/∂log p(y) on the sampled token, 0 elsewhere. For a token that was not sampled the
    ratio is 1 by definition, and the value with this gradient is the cross-entropy −advantage · log p(y)."""
    given_N = chunk.inputs.given_N
    given_C = torch.zeros_like(advantage_C) if given_N is None else given_N[chunk.rows].to(advantage_C)
    term = chunk.inputs.loss_spec.policy.term(chunk.logprobs_C, chunk.old_logprobs_C, advantage_C)
    chunk.add("surrogate", term.loss_N, chunk.sampler_weight_C * (1 - given_C))
    chunk.add("cross_entropy", -chunk.logprobs_C, advantage_C * given_C)
    numerator = GradientNumerator(-term.slope_N[:, None], chunk.tokens_C[:, None])
    chunk.numerators.append((numerator, chunk.sampler_weight_C[:, None]))
    chunk.stats.clipped_N[chunk.rows] |= term.clipped_N


def reference_kl(chunk: Chunk, reference_C: Tensor) -> None:
    """coefficient · reference · KL(p‖p_ref), on the sampled positions as they are: no importance weight."""
    assert chunk.reference is not None
    weight_C = chunk.inputs.loss_spec.reference.coefficient * reference_C
    value_C, numerator_CV = ReverseKL().evaluate(chunk.student.log_p(), chunk.reference.log_p())
    chunk.add("reference_kl", value_C, weight_C)
    chunk.numerators.append((GradientNumerator(numerator_CV), weight_C[:, None]))
    chunk.stats.reference_N[chunk.rows] = torch.where(weight_C != 0, value_C, torch.nan)
