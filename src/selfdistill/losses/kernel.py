"""The fused kernel: from hidden states to a loss and its gradient, without ever holding logits for all positions.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher, y sampled.

A chunk of positions at a time: student logits, teacher logits, each term's numerator F = p · a, and from their weighted
sum

    ∂L/∂z = (p ΣF − F) / temperature

which goes through the head at once: dH for the chunk and, if the head trains, a float32 sum of dW. Backward only
scales what is there. Memory: a few [C, V] buffers, whatever N is. Products with the head take a chunk; elementwise work
takes as many of its positions at a time as fit into a cache, and leaves the gradient where the logits were.

Every term adds its weighted value and its weighted numerator; none knows which divergence or support runs. To add a
term, give it a weight in `TokenWeights`, a name in `LossTerm`, and a function and a line of `_plan` here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TypeAlias

import torch
from torch import Tensor

from selfdistill.losses.divergences import GradientNumerator, ReverseKL
from selfdistill.losses.head import Head, HeadGradients, widened
from selfdistill.losses.policy_gradient import importance_weight, probability_ratio
from selfdistill.losses.spec import LOSS_TERMS, KernelCall, LossSpec, LossTerm, TokenStats, TokenWeights, check_call
from selfdistill.losses.support import BucketedDistribution
from selfdistill.losses.teacher_mixture import TeacherStates

_ENTRIES_CPU = 2**22  # logits of one chunk: 16 MiB in float32, where caches are small
_ENTRIES = 2**26  # 256 MiB: an accelerator wants long products
_FEWEST_ROWS = 64  # fewer would read the head's weight more often than use it
_ENTRIES_CACHED = 2**18  # 1 MiB: elementwise work of a processor stays in its cache, in memory it had before


@dataclass(frozen=True, slots=True)
class FusedResult:
    """`loss` is a scalar on the graph of the student's hidden states (and head, if it trains), the sum of `terms`."""

    loss: Tensor
    stats: TokenStats
    terms: dict[LossTerm, Tensor]


def fused_loss(
    loss_spec: LossSpec,
    hidden_ND: Tensor,
    head: Head,
    tokens_N: Tensor,
    weights: TokenWeights,
    *,
    teacher: Sequence[TeacherStates] = (),
    reference: TeacherStates | None = None,
    old_logprobs_N: Tensor | None = None,
    sampler_logprobs_N: Tensor | None = None,
    given_N: Tensor | None = None,
    chunk: int | None = None,
) -> FusedResult:
    """L = Σ_n distil_n r1_n r2_n D(p_n, q_n) + r2_n PG(advantage_n) + coefficient · reference_n KL(p_n‖p_ref,n).

    `hidden_ND` predict the answer tokens `tokens_N`. `teacher` are the forward passes that form q; they may hold
    anything finite where `distil_N` is 0. Without `old_logprobs_N` the weights have not moved since sampling: both
    ratios against them are exactly 1. Without `sampler_logprobs_N` the sampler's are assumed equal to the trainer's.
    `given_N` (bool) are tokens that were not sampled: the value of PG is their cross-entropy, with the same gradient.
    `chunk` positions are worked on at a time; None chooses by the size of the vocabulary, and no choice changes the
    result beyond rounding.

    The weights carry the reduction already: losses of micro-batches are added, not averaged.

    Raises `ConfigError` when shapes disagree or when a term has weight but lacks an input.
    """
    passes = [*teacher, *([] if reference is None else [reference])]
    own, *heads = widened([head, *(each.head for each in passes)])
    passes = [replace(each, hidden_ND=each.hidden_ND.detach(), head=h) for each, h in zip(passes, heads, strict=True)]
    own_reference = None if reference is None else passes.pop()
    dtype = torch.promote_types(torch.promote_types(hidden_ND.dtype, own.weight_VD.dtype), torch.float32)
    blank_N = torch.full((len(hidden_ND),), torch.nan, dtype=dtype, device=hidden_ND.device)
    stats = {f.name: blank_N.clone() for f in fields(TokenStats)} | {"clipped_N": blank_N > 0}
    call = KernelCall(
        loss_spec, hidden_ND.detach(), own, tokens_N, weights, passes, own_reference,
        old_logprobs_N=blank_N if old_logprobs_N is None else old_logprobs_N,
        sampler_logprobs_N=blank_N if sampler_logprobs_N is None else sampler_logprobs_N,
        given_N=torch.zeros_like(blank_N) if given_N is None else given_N,
        stats=TokenStats(**stats),
        terms={name: blank_N.new_zeros(()) for name in LOSS_TERMS},
    )  # fmt: skip
    check_call(call)
    gradients, on_cpu = HeadGradients(hidden_ND, head), hidden_ND.device.type == "cpu"
    rows = chunk or max(_FEWEST_ROWS, (_ENTRIES_CPU if on_cpu else _ENTRIES) // own.vocabulary)
    with torch.no_grad(), torch.autocast(hidden_ND.device.type, enabled=False):
        # Fresh memory comes from the operating system page by page; an accelerator keeps it.
        size = min(len(hidden_ND), rows)
        rooms = [torch.empty(size, own.vocabulary, dtype=dtype) for _ in range(2 if on_cpu else 0)]
        for part, terms in _plan(call, rows):
            _work(call, part, terms, rooms, gradients)
        loss = torch.stack(list(call.terms.values())).sum()
    return FusedResult(gradients.attach(loss), call.stats, call.terms)


def _plan(call: KernelCall, size: int) -> list[tuple[slice, Terms]]:
    """The positions of each chunk, and the terms that have weight there; one chunk when there are no positions."""
    weights, positions = call.weights, len(call.hidden_ND)
    terms = {
        distil: weights.distil_N,
        reference_kl: weights.reference_N if call.loss_spec.reference.coefficient > 0 else None,
        policy_gradient: weights.advantage_N,
    }
    chunks = [(slice(start, min(start + size, positions)), Terms()) for start in range(0, max(positions, 1), size)]
    for term, weight_N in terms.items():
        if weight_N is not None and positions:
            active = torch.stack([part.any() for part in torch.split(weight_N != 0, size)]).tolist()  # one transfer
            for (_, own), is_active in zip(chunks, active, strict=True):
                own |= {term: weight_N} if is_active else {}
    return chunks


def _work(call: KernelCall, rows: slice, terms: Terms, rooms: Sequence[Tensor], gradients: HeadGradients) -> None:
    """Adds all terms of one chunk. `rooms` [≥ C, V] are for the logits of student and teacher."""
    spec, head, hidden_CD = call.loss_spec, call.head, call.hidden_ND[rows]
    room_CV, teacher_room_CV = [room[: len(hidden_CD)] for room in rooms] or (None, None)
    student_CV, teacher_CV, reference_CV = head.logits(hidden_CD, room_CV), None, None
    if distil in terms:
        passes = [each.at(rows) for each in call.teacher]
        teacher_CV = spec.mixture.logits(passes, student_CV, spec.temperature, teacher_room_CV)
    if reference_kl in terms and call.reference is not None:
        reference_CV = call.reference.head.logits(call.reference.hidden_ND[rows])
    needs_gradient = bool(terms) and gradients.needed
    count = len(hidden_CD)
    size = max(1, _ENTRIES_CACHED // head.vocabulary) if hidden_CD.device.type == "cpu" else max(1, count)
    for start in range(0, max(count, 1), size):
        block = slice(start, min(start + size, count))
        at = slice(rows.start + block.start, rows.start + block.stop)
        logits_CV = student_CV[block]
        others = (None if x is None else x[block] for x in (teacher_CV, reference_CV))
        chunk = Chunk(call, at, logits_CV, *others)
        for term, weight_N in terms.items():
            term(chunk, weight_N[at].to(chunk.logprobs_C))
        if needs_gradient:
            gradient_CV = chunk.student.logit_gradient(chunk.numerators)
            if spec.temperature != 1.0:
                gradient_CV.div_(spec.temperature)
            if head.softcap is not None:  # dz/dr = 1 − (z/softcap)²
                gradient_CV.mul_(1.0 - (logits_CV / head.softcap).square())
            logits_CV.copy_(gradient_CV)
    if needs_gradient:
        gradients.add(rows, student_CV, hidden_CD, head)


class Chunk:
    """Some positions of a call: the numbers that all terms read, and their `numerators` with weights [C, 1]."""

    def __init__(
        self, call: KernelCall, rows: slice, student_CV: Tensor, teacher_CV: Tensor | None, reference_CV: Tensor | None
    ) -> None:
        """From the logits of these positions; those of the teacher are at the temperature already. A ratio whose other
        side is unknown compares a number with itself and is exactly 1."""
        spec, stats = call.loss_spec, call.stats
        self.call, self.rows, self.tokens_C = call, rows, call.tokens_N[rows]
        self.numerators: list[tuple[GradientNumerator, Tensor]] = []
        if spec.temperature != 1.0:
            student_CV = student_CV / spec.temperature
        buckets = () if teacher_CV is None else spec.support.own_buckets(student_CV, teacher_CV)
        self.student = BucketedDistribution.of(student_CV, *buckets)
        self.teacher = None if teacher_CV is None else BucketedDistribution.of(teacher_CV, *buckets)
        if self.teacher is not None and not spec.mixture.normalise:
            self.teacher = self.teacher.unnormalised()
        self.reference = None if reference_CV is None else BucketedDistribution.of(reference_CV / spec.temperature)

        self.logprobs_C = logprobs_C = self.student.logprobs(self.tokens_C)
        old_C = call.old_logprobs_N[rows].to(logprobs_C)
        self.old_logprobs_C = old_C = torch.where(old_C.isnan(), logprobs_C, old_C)
        sampler_C = call.sampler_logprobs_N[rows].to(logprobs_C)
        sampler_C = torch.where(sampler_C.isnan(), old_C, sampler_C)
        sampler_ratio_C, cap = probability_ratio(old_C, sampler_C), spec.ratio.sampler_ratio
        self.sampler_weight_C = importance_weight(old_C, sampler_C, cap)
        stats.logprobs_N[rows], stats.entropy_N[rows] = logprobs_C, self.student.entropy_N
        stats.ratio_N[rows] = probability_ratio(logprobs_C, old_C)
        stats.sampler_ratio_N[rows] = sampler_ratio_C
        stats.clipped_N[rows] = sampler_ratio_C > (inf if cap is None else cap)

    def add(self, name: LossTerm, value_C: Tensor, weight_C: Tensor) -> None:
        """Adds to the loss; a position without weight adds nothing, whatever its value."""
        self.call.terms[name].add_(torch.where(weight_C != 0, weight_C * value_C, 0.0).sum())


def distil(chunk: Chunk, distil_C: Tensor) -> None:
    """distil · r1 · r2 · D(p, q): the divergence from the teacher. Clipping acts on the numerator alone."""
    spec, stats, rows = chunk.call.loss_spec, chunk.call.stats, chunk.rows
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
    given_C = chunk.call.given_N[chunk.rows].to(advantage_C)
    policy = chunk.call.loss_spec.policy
    loss_C, slope_C, clipped_C = policy.term(chunk.logprobs_C, chunk.old_logprobs_C, advantage_C)
    chunk.add("surrogate", loss_C, chunk.sampler_weight_C * (1 - given_C))
    chunk.add("cross_entropy", -chunk.logprobs_C, advantage_C * given_C)
    numerator = GradientNumerator(-slope_C[:, None], chunk.tokens_C[:, None])
    chunk.numerators.append((numerator, chunk.sampler_weight_C[:, None]))
    chunk.call.stats.clipped_N[chunk.rows] |= clipped_C


def reference_kl(chunk: Chunk, reference_C: Tensor) -> None:
    """coefficient · reference · KL(p‖p_ref), on the sampled positions as they are: no importance weight."""
    assert chunk.reference is not None
    weight_C = chunk.call.loss_spec.reference.coefficient * reference_C
    value_C, numerator_CV = ReverseKL().evaluate(chunk.student.log_p(), chunk.reference.log_p())
    chunk.add("reference_kl", value_C, weight_C)
    chunk.numerators.append((GradientNumerator(numerator_CV), weight_C[:, None]))
    chunk.call.stats.reference_N[chunk.rows] = torch.where(weight_C != 0, value_C, torch.nan)


Terms: TypeAlias = dict[Callable[[Chunk, Tensor], None], Tensor]
"""Functions of this file, each with its weights of all positions [N]."""
