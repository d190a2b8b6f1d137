"""The fused kernel: from hidden states to a loss and its gradient, without ever holding logits for all positions.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher, y sampled.

A chunk of positions at a time: student logits, teacher logits, each term's flow F = p · a, and from their weighted sum

    ∂L/∂z = (p ΣF − F) / temperature

which goes through the head at once: dH for the chunk and, if the head trains, a float32 sum of dW. Backward only
scales what is there. Memory: a few [C, V] buffers, whatever N is. Products with the head take a chunk; what is done
entry by entry takes as many of its positions as fit into a cache, and leaves the gradient where the logits were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from selfdistill.losses.checks import check
from selfdistill.losses.chunks import blocks, rows_per_chunk
from selfdistill.losses.flow import logit_gradient
from selfdistill.losses.gradients import HeadGradients
from selfdistill.losses.head import Head, widened
from selfdistill.losses.teacher_mixture import MixtureInputs, TeacherStates
from selfdistill.losses.terms import (
    LOSS_TERMS,
    Chunk,
    Inputs,
    Logits,
    LossSpec,
    LossTerm,
    TokenStats,
    TokenWeights,
    distil,
    policy_gradient,
    reference_kl,
)

Term: TypeAlias = Callable[[Chunk], None]


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
    views: Sequence[TeacherStates] = (),
    reference: TeacherStates | None = None,
    old_logprobs_N: Tensor | None = None,
    sampler_logprobs_N: Tensor | None = None,
    given_N: Tensor | None = None,
    chunk: int | None = None,
) -> FusedResult:
    """L = Σ_n distil_n r1_n r2_n D(p_n, q_n) + r2_n PG(advantage_n) + coefficient · reference_n KL(p_n‖p_ref,n).

    `hidden_ND` predict the answer tokens `tokens_N`. `views` form the teacher; they may hold anything finite where
    `distil_N` is 0. Without `old_logprobs_N` the weights have not moved since sampling: both ratios against them are
    exactly 1. Without `sampler_logprobs_N` the sampler is taken at its word. `given_N` (bool) are tokens that were not
    sampled: the value of PG is their cross-entropy, and its gradient what it was. `chunk` positions are worked on at a
    time; None chooses by the size of the vocabulary, and no choice changes the result beyond rounding.

    The weights carry the reduction already: losses of micro-batches are added, not averaged.

    Raises `ValueError` when shapes disagree or when a term has weight but not what it needs.
    """
    others = [*views, *([] if reference is None else [reference])]
    own, *heads = widened([head, *(view.head for view in others)])
    others = [view.cut_off(own_head) for view, own_head in zip(others, heads, strict=True)]
    leash = None if reference is None else others.pop()
    inputs = Inputs(
        loss_spec, hidden_ND.detach(), own, tokens_N, weights, tuple(others), leash, old_logprobs_N, sampler_logprobs_N,
        given_N,
    )  # fmt: skip
    check(inputs)
    gradients = HeadGradients.zeros(hidden_ND, head)
    with torch.no_grad(), torch.autocast(hidden_ND.device.type, enabled=False):
        losses = {name: torch.zeros((), dtype=inputs.dtype, device=hidden_ND.device) for name in LOSS_TERMS}
        stats = inputs.blank_stats()
        kernel = _Kernel(inputs, gradients, losses, stats, _rooms(inputs, chunk))
        for rows, terms in _plan(inputs, chunk):
            kernel.work(rows, terms)
        loss = torch.stack(list(losses.values())).sum()
    return FusedResult(gradients.attach(loss, hidden_ND, head), TokenStats(**stats), losses)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Where chunks are worked on, and what they add up to. `rooms` hold the logits of student and teacher: buffers of
    this size are fetched from the operating system, page by page, each time one is asked for."""

    inputs: Inputs
    gradients: HeadGradients
    losses: dict[LossTerm, Tensor]
    stats: dict[str, Tensor]
    rooms: tuple[Tensor, ...]

    def work(self, rows: slice, terms: Sequence[Term]) -> None:
        """All terms of one chunk, added to what was made before."""
        inputs, hidden_CD = self.inputs, self.inputs.hidden_ND[rows]
        logits = self._logits(rows, terms)
        wanted = bool(terms) and self.gradients.wanted
        for block in blocks(len(hidden_CD), inputs.head.vocabulary, hidden_CD.device):
            part = logits.of(block)
            chunk = Chunk.begin(inputs, slice(rows.start + block.start, rows.start + block.stop), part)
            for term in terms:
                term(chunk)
            for term_name, value in chunk.losses.items():
                self.losses[term_name].add_(value)
            for name, number_C in chunk.numbers.items():
                self.stats[name][chunk.rows] = number_C
            if wanted:
                gradient_CV = logit_gradient(chunk.student, chunk.numerators)
                if inputs.loss_spec.temperature != 1.0:
                    gradient_CV.div_(inputs.loss_spec.temperature)
                part.student_CV.copy_(inputs.head.before_cap_(gradient_CV, part.student_CV))
        if wanted:
            self.gradients.add(rows, logits.student_CV, hidden_CD, inputs.head)

    def _logits(self, rows: slice, terms: Sequence[Term]) -> Logits:
        """Of those that the terms read."""
        inputs, count = self.inputs, rows.stop - rows.start
        student_room, teacher_room = (room[:count] for room in self.rooms) if self.rooms else (None, None)
        student_CV = inputs.head.logits(inputs.hidden_ND[rows], student_room)
        teacher_CV = None
        if distil in terms:
            reading = MixtureInputs(inputs.views, rows, inputs.loss_spec.temperature, student_CV, teacher_room)
            teacher_CV = inputs.loss_spec.mixture.logits(reading)
        reference_CV = None
        if reference_kl in terms:
            assert inputs.reference is not None
            reference_CV = inputs.reference.logits(rows)
        return Logits(student_CV, teacher_CV, reference_CV)


def _rooms(inputs: Inputs, chunk: int | None) -> tuple[Tensor, ...]:
    """Two matrices of logits on a processor; none on an accelerator, which keeps the memory it was given."""
    if inputs.hidden_ND.device.type != "cpu":
        return ()
    rows = min(inputs.positions, chunk or rows_per_chunk(inputs.head.vocabulary, inputs.hidden_ND.device))
    return tuple(torch.empty(rows, inputs.head.vocabulary, dtype=inputs.dtype) for _ in range(2))


def _plan(inputs: Inputs, chunk: int | None) -> Iterator[tuple[slice, list[Term]]]:
    """Slices of positions, and the terms that have weight in each; one empty slice when there are no positions."""
    positions = inputs.positions
    size = chunk or rows_per_chunk(inputs.head.vocabulary, inputs.hidden_ND.device)
    weights, leashed = inputs.weights, inputs.loss_spec.reference.coefficient > 0
    terms: list[tuple[Term, Tensor | None]] = [
        (distil, weights.distil_N),
        (reference_kl, weights.reference_N if leashed else None),
        (policy_gradient, weights.advantage_N),
    ]
    active = [(term, _active_chunks(weight_N, positions, size)) for term, weight_N in terms]
    for index, start in enumerate(range(0, max(positions, 1), size)):
        yield slice(start, min(start + size, positions)), [term for term, flags in active if flags[index]]


def _active_chunks(weight_N: Tensor | None, positions: int, size: int) -> list[bool]:
    """Which chunks have a non-zero weight, in one transfer from the device."""
    if weight_N is None or positions == 0:
        return [False] * max(1, -(-positions // size))
    return cast(list[bool], torch.stack([part.any() for part in torch.split(weight_N != 0, size)]).tolist())
