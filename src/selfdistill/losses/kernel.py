"""The fused kernel: from hidden states to a loss and its gradient, without ever holding logits for all positions.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher, y sampled.

A chunk of positions at a time: student logits, teacher logits, each term's numerator F = p · a, and from their weighted
sum

    ∂L/∂z = (p ΣF − F) / temperature

which goes through the head at once: dH for the chunk and, if the head trains, a float32 sum of dW. Backward only
scales what is there. Memory: a few [C, V] buffers, whatever N is. Products with the head take a chunk; elementwise work
takes as many of its positions at a time as fit into a cache, and leaves the gradient where the logits were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from torch import Tensor

from selfdistill.losses.checks import check
from selfdistill.losses.head import Head, HeadGradients, accumulation_dtype, widened
from selfdistill.losses.spec import LOSS_TERMS, Inputs, LossSpec, LossTerm, TokenStats, TokenWeights
from selfdistill.losses.support import FullVocabulary, SampledToken
from selfdistill.losses.teacher_mixture import Product, TeacherMixture, TeacherStates
from selfdistill.losses.terms import Chunk, distil, policy_gradient, reference_kl

_ENTRIES_CPU = 2**22  # logits of one chunk: 16 MiB in float32, where caches are small
_ENTRIES = 2**26  # 256 MiB: an accelerator wants long products
_FEWEST_ROWS = 64  # fewer would read the head's weight more often than use it
_ENTRIES_CACHED = 2**18  # 1 MiB: elementwise work of a processor stays in its cache, in memory it had before

Term: TypeAlias = tuple[Callable[[Chunk, Tensor], None], Tensor]
"""A function of `terms`, and its weights of all positions [N]."""


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

    `hidden_ND` predict the answer tokens `tokens_N`. `views` are the teacher's forward passes; they may hold anything
    finite where `distil_N` is 0. Without `old_logprobs_N` the weights have not moved since sampling: both
    ratios against them are exactly 1. Without `sampler_logprobs_N` the sampler's are assumed equal to the trainer's.
    `given_N` (bool) are tokens that were not sampled: the value of PG is their cross-entropy, with the same gradient.
    `chunk` positions are worked on at a time; None chooses by the size of the vocabulary, and no choice changes the
    result beyond rounding.

    The weights carry the reduction already: losses of micro-batches are added, not averaged.

    Raises `ConfigError` when shapes disagree or when a term has weight but lacks an input.
    """
    passes = [*views, *([] if reference is None else [reference])]
    own, *heads = widened([head, *(each.head for each in passes)])
    passes = [replace(each, hidden_ND=each.hidden_ND.detach(), head=h) for each, h in zip(passes, heads, strict=True)]
    own_reference = None if reference is None else passes.pop()
    inputs = Inputs(
        loss_spec, hidden_ND.detach(), own, tokens_N, weights, tuple(passes), own_reference,
        old_logprobs_N, sampler_logprobs_N, given_N,
    )  # fmt: skip
    check(inputs)
    gradients, device = HeadGradients.zeros(hidden_ND, head), hidden_ND.device
    dtype = accumulation_dtype(torch.promote_types(hidden_ND.dtype, own.weight_VD.dtype))
    rows = chunk or max(_FEWEST_ROWS, (_ENTRIES_CPU if device.type == "cpu" else _ENTRIES) // own.vocabulary)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        losses = {name: torch.zeros((), dtype=dtype, device=device) for name in LOSS_TERMS}
        blank_N = torch.full((len(hidden_ND),), torch.nan, dtype=dtype, device=device)
        stats = TokenStats(
            **{f.name: blank_N.clone() for f in fields(TokenStats)}
            | {"clipped_N": torch.zeros_like(blank_N, dtype=torch.bool)}
        )
        buffers: tuple[Tensor | None, Tensor | None] = (None, None)
        if device.type == "cpu":  # fresh memory comes from the operating system page by page; an accelerator keeps it
            size = min(len(hidden_ND), rows)
            buffers = (torch.empty(size, own.vocabulary, dtype=dtype), torch.empty(size, own.vocabulary, dtype=dtype))
        for start, terms in _plan(inputs, rows):
            part = slice(start, min(start + rows, len(hidden_ND)))
            _work(inputs, part, terms, buffers, gradients, losses, stats)
        loss = torch.stack(list(losses.values())).sum()
    return FusedResult(gradients.attach(loss), stats, losses)


def _plan(inputs: Inputs, size: int) -> list[tuple[int, list[Term]]]:
    """The first position of each chunk, and the terms that have weight there; one chunk when there are no positions."""
    weights, positions = inputs.weights, len(inputs.hidden_ND)
    terms: list[tuple[Callable[[Chunk, Tensor], None], Tensor | None]] = [
        (distil, weights.distil_N),
        (reference_kl, weights.reference_N if inputs.loss_spec.reference.coefficient > 0 else None),
        (policy_gradient, weights.advantage_N),
    ]
    chunks: list[tuple[int, list[Term]]] = [(start, []) for start in range(0, max(positions, 1), size)]
    for term, weight_N in terms:
        if weight_N is not None and positions:
            active = torch.stack([part.any() for part in torch.split(weight_N != 0, size)]).tolist()  # one transfer
            for (_, own), is_active in zip(chunks, active, strict=True):
                own += [(term, weight_N)] if is_active else []
    return chunks


def _work(
    inputs: Inputs,
    rows: slice,
    terms: Sequence[Term],
    buffers: tuple[Tensor | None, Tensor | None],
    gradients: HeadGradients,
    losses: Mapping[LossTerm, Tensor],
    stats: TokenStats,
) -> None:
    """Adds all terms of one chunk. `buffers` [≥ C, V] are for the logits of student and teacher."""
    spec, head, hidden_CD = inputs.loss_spec, inputs.head, inputs.hidden_ND[rows]
    room_CV, teacher_room_CV = (None if buffer is None else buffer[: len(hidden_CD)] for buffer in buffers)
    functions = [term for term, _ in terms]
    student_CV, teacher_CV, reference_CV = head.logits(hidden_CD, room_CV), None, None
    if distil in functions:
        teacher_CV = spec.mixture.logits(inputs.views, rows, student_CV, spec.temperature, teacher_room_CV)
    if reference_kl in functions and inputs.reference is not None:
        reference_CV = inputs.reference.head.logits(inputs.reference.hidden_ND[rows])
    needs_gradient = bool(terms) and gradients.needed
    count = len(hidden_CD)
    size = max(1, _ENTRIES_CACHED // head.vocabulary) if hidden_CD.device.type == "cpu" else max(1, count)
    for start in range(0, max(count, 1), size):
        block = slice(start, min(start + size, count))
        at = slice(rows.start + block.start, rows.start + block.stop)
        logits_CV = student_CV[block]
        others = (None if x is None else x[block] for x in (teacher_CV, reference_CV))
        chunk = Chunk.of(inputs, at, losses, stats, logits_CV, *others)
        for term, weight_N in terms:
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


@torch.no_grad()
def token_logprobs(
    hidden_ND: Tensor, head: Head, tokens_N: Tensor, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(log π(y) [N], entropy [N]) in nats at this temperature: what an update calls the old log-probabilities."""
    stats = fused_loss(LossSpec(temperature=temperature), hidden_ND, head, tokens_N, TokenWeights(), chunk=chunk).stats
    return stats.logprobs_N, stats.entropy_N


@torch.no_grad()
def read_log_ratios(
    hidden_ND: Tensor,
    head: Head,
    views: Sequence[TeacherStates],
    tokens_N: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    *,
    target: TeacherMixture | None = None,
) -> TokenStats:
    """The difference that the teacher makes, without an update: `.log_ratio_N` is u(y) = log q(y) − log p(y), beside
    log-probabilities, entropies and the Jensen-Shannon divergence of every position. `target` makes one teacher of the
    passes; one that is not normalised has no divergence but its estimate at the tokens. NaN where no pass covers."""
    target = Product() if target is None else target
    support = FullVocabulary() if target.normalise else SampledToken()
    loss_spec = LossSpec(support, temperature=temperature, mixture=target)
    present = [view.present_N for view in views if not view.against and view.present_N is not None]
    everywhere = not present or any(view.present_N is None and not view.against for view in views)
    weight_N = torch.ones_like(tokens_N) if everywhere else torch.stack(present).any(0)
    weights = TokenWeights(distil_N=weight_N.float())
    return fused_loss(loss_spec, hidden_ND, head, tokens_N, weights, views=views, chunk=chunk).stats
