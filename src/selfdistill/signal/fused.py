"""The fused kernel: from hidden states to a loss and its gradient, without ever holding logits for all positions.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher, y sampled.

A chunk of positions at a time: student logits, teacher logits, each term's flow F = p · a, and from their weighted sum

    ∂L/∂z = (p ΣF − F) / temperature

which goes through the head at once: dH for the chunk and, if the head trains, a float32 sum of dW. Backward only
scales what is there. Memory: a few [C, V] buffers, whatever N is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import cast

import torch
from torch import Tensor

from selfdistill.signal.evidence import TeacherView, check_views, entropy, log_probs, teacher_log_probs
from selfdistill.signal.gradients import HeadGradients
from selfdistill.signal.head import Head, widened
from selfdistill.signal.policy_gradient import PolicyGradient
from selfdistill.signal.ratio import RatioCaps, importance_weight, log_ratio, over
from selfdistill.signal.reference import ReferenceKL
from selfdistill.signal.refusal import refusal
from selfdistill.signal.shape import Comparison, JensenShannon, Shape
from selfdistill.signal.support import FullVocabulary, Support

_CHUNK_ENTRIES = 2**22  # logits of one chunk: 16 MiB in float32


@dataclass(frozen=True, slots=True)
class Signal:
    """How the difference between student and teacher, and the verdict on an answer, become a gradient.

    `temperature` divides the logits of student, teacher and reference alike; it is the one the answers were sampled
    at. Raises `ValueError` when it is not positive, or when the support cannot measure the shape.
    """

    support: Support = field(default_factory=FullVocabulary)
    shape: Shape = field(default_factory=JensenShannon)
    ratio: RatioCaps = field(default_factory=RatioCaps)
    policy: PolicyGradient = field(default_factory=PolicyGradient)
    reference: ReferenceKL = field(default_factory=ReferenceKL)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        self.support.check(self.shape)
        if not self.temperature > 0:
            raise refusal(
                "the temperature must be positive",
                got=self.temperature,
                why="logits are divided by it",
                do="use the sampling temperature, 1.0 by default",
            )


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What each token weighs in each term, reduction included; None leaves a term out, zeros cost nothing either.

    `distil_N` multiplies the divergence, `advantage_N` is (advantage · weight) in the policy gradient, `reference_N`
    multiplies the reference KL beside its coefficient.
    """

    distil_N: Tensor | None = None
    advantage_N: Tensor | None = None
    reference_N: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Detached numbers per token, in nats; NaN where the term that needs them has weight 0.

    `ratio_N` is π_θ(y)/π_old(y) and `sampler_ratio_N` π_old(y)/π_sampler(y), both before any cap; `clipped_N` says
    that a cap or a clip changed what this token does.
    """

    logprobs_N: Tensor
    entropy_N: Tensor
    divergence_N: Tensor
    teacher_logprobs_N: Tensor
    teacher_entropy_N: Tensor
    reference_N: Tensor
    ratio_N: Tensor
    sampler_ratio_N: Tensor
    clipped_N: Tensor

    @property
    def evidence_N(self) -> Tensor:
        """u(y) = log q(y) − log p(y)."""
        return self.teacher_logprobs_N - self.logprobs_N


@dataclass(frozen=True, slots=True)
class FusedResult:
    """`loss` is a scalar on the graph of the student's hidden states (and head, if it trains)."""

    loss: Tensor
    stats: TokenStats


def fused_signal(
    signal: Signal,
    hidden_ND: Tensor,
    head: Head,
    tokens_N: Tensor,
    weights: TokenWeights,
    *,
    views: Sequence[TeacherView] = (),
    reference: TeacherView | None = None,
    old_logprobs_N: Tensor | None = None,
    sampler_logprobs_N: Tensor | None = None,
    chunk: int | None = None,
) -> FusedResult:
    """L = Σ_n distil_n r1_n r2_n D(p_n, q_n) + r2_n PG(advantage_n) + coefficient · reference_n KL(p_n‖p_ref,n).

    `hidden_ND` predict the answer tokens `tokens_N`. `views` form the teacher; they may hold anything finite where
    `distil_N` is 0. Without `old_logprobs_N` the weights have not moved since sampling: both ratios against them are
    exactly 1. Without `sampler_logprobs_N` the sampler is taken at its word. `chunk` positions are worked on at a
    time; None chooses by the size of the vocabulary, and no choice changes the result beyond rounding.

    Raises `ValueError` when shapes disagree or when a term has weight but not what it needs.
    """
    others = [*views, *([reference] if reference else [])]
    wide = widened([head, *(view.head for view in others)])
    others = [
        replace(view, hidden_ND=view.hidden_ND.detach(), head=h) for view, h in zip(others, wide[1:], strict=True)
    ]
    inputs = _Inputs(
        signal, hidden_ND.detach(), wide[0], tokens_N, weights, tuple(others[: len(views)]),
        others[-1] if reference else None, old_logprobs_N, sampler_logprobs_N,
    )  # fmt: skip
    inputs.check()
    gradients = HeadGradients.zeros(hidden_ND, head)
    with torch.no_grad(), torch.autocast(hidden_ND.device.type, enabled=False):
        parts = [_chunk(inputs, rows, needs, gradients) for rows, needs in inputs.chunks(chunk)]
        loss = torch.stack([part_loss for part_loss, _ in parts]).sum()
        stats = TokenStats(**{name: torch.cat([part[name] for _, part in parts]) for name in parts[0][1]})
    return FusedResult(gradients.attach(loss, hidden_ND, head), stats)


@dataclass(frozen=True, slots=True)
class _Needs:
    """Which terms have weight in a chunk."""

    distil: bool
    advantage: bool
    reference: bool


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The arguments of `fused_signal`, cut off from the graph."""

    signal: Signal
    hidden_ND: Tensor
    head: Head
    tokens_N: Tensor
    weights: TokenWeights
    views: tuple[TeacherView, ...]
    reference: TeacherView | None
    old_logprobs_N: Tensor | None
    sampler_logprobs_N: Tensor | None

    def check(self) -> None:
        """Raises `ValueError`: shapes, and terms that have weight but not what they need."""
        positions, per_token = (
            self.hidden_ND.shape[0],
            {f.name: getattr(self.weights, f.name) for f in fields(TokenWeights)},
        )
        per_token |= {name: getattr(self, name) for name in ("tokens_N", "old_logprobs_N", "sampler_logprobs_N")}
        wrong = {n: tuple(x.shape) for n, x in per_token.items() if x is not None and x.shape != (positions,)}
        if wrong:
            raise refusal(
                f"one number per answer position is needed: shape ({positions},)",
                got=wrong,
                why="a shift by one token trains on nonsense without an error",
                do="concatenate the answers in the order of their hidden states",
            )
        check_views(self.views, positions, self.head.vocabulary)
        check_views([self.reference] if self.reference else [], positions, self.head.vocabulary)
        leashed = self.signal.reference.coefficient > 0
        missing = [
            *(["views"] if not self.views and _has_weight(self.weights.distil_N) else []),
            *(["reference"] if leashed and not self.reference else []),
            *(["weights.reference_N"] if leashed and self.weights.reference_N is None else []),
        ]
        if missing:
            raise refusal(
                "a term has weight but not what it needs",
                got=f"no {', no '.join(missing)}",
                why="it would silently do nothing",
                do="pass what is missing, or set the weight or coefficient to 0",
            )

    def chunks(self, chunk: int | None) -> Iterator[tuple[slice, _Needs]]:
        """Slices of positions, and what has weight in each; one empty slice when there are no positions."""
        positions = self.hidden_ND.shape[0]
        size = chunk or max(1, _CHUNK_ENTRIES // self.head.vocabulary)
        reference_N = self.weights.reference_N if self.signal.reference.coefficient else None
        terms = (self.weights.distil_N, self.weights.advantage_N, reference_N)
        active = [_active_chunks(weight_N, positions, size) for weight_N in terms]
        for index, start in enumerate(range(0, max(positions, 1), size)):
            yield slice(start, min(start + size, positions)), _Needs(*(flags[index] for flags in active))


def _has_weight(weight_N: Tensor | None) -> bool:
    return weight_N is not None and bool((weight_N != 0).any())


def _active_chunks(weight_N: Tensor | None, positions: int, size: int) -> list[bool]:
    """Which chunks have a non-zero weight, in one transfer from the device."""
    if weight_N is None or positions == 0:
        return [False] * max(1, -(-positions // size))
    return cast(list[bool], torch.stack([part.any() for part in torch.split(weight_N != 0, size)]).tolist())


@dataclass(slots=True)
class _Sum:
    """The terms of one chunk so far: loss, flow, and numbers per token."""

    loss: Tensor
    numbers: dict[str, Tensor]
    flow_CV: Tensor | None = None

    def add(self, compared: Comparison, weight_C: Tensor) -> None:
        """A term with a value and a flow per position."""
        self.loss = self.loss + (weight_C * compared.divergence_N).sum()
        flow_CV = compared.flow_NV.mul_(weight_C[:, None])
        self.flow_CV = flow_CV if self.flow_CV is None else self.flow_CV.add_(flow_CV)


def _chunk(inputs: _Inputs, rows: slice, needs: _Needs, gradients: HeadGradients) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and numbers of one chunk; its gradients go where they belong."""
    temperature = inputs.signal.temperature
    hidden_CD = inputs.hidden_ND[rows]
    logits_CV = inputs.head.logits(hidden_CD)
    log_p_CV = log_probs(logits_CV, temperature)
    terms = _terms(inputs, rows, needs, log_p_CV)
    if terms.flow_CV is not None and gradients.wanted:
        gradient_CV = log_p_CV.exp_().mul_(terms.flow_CV.sum(-1, keepdim=True)).sub_(terms.flow_CV).div_(temperature)
        gradients.add(rows, inputs.head.before_cap_(gradient_CV, logits_CV), hidden_CD, inputs.head)
    return terms.loss, terms.numbers


def _terms(inputs: _Inputs, rows: slice, needs: _Needs, log_p_CV: Tensor) -> _Sum:
    """Every term that has weight in this chunk."""
    tokens_C, caps = inputs.tokens_N[rows], inputs.signal.ratio
    logprobs_C = _at(log_p_CV, tokens_C)
    # A ratio whose other side is unknown compares the student's own log-probability with itself: exactly 1.
    old_C = logprobs_C if inputs.old_logprobs_N is None else inputs.old_logprobs_N[rows].to(logprobs_C)
    sampler_C = old_C if inputs.sampler_logprobs_N is None else inputs.sampler_logprobs_N[rows].to(logprobs_C)
    missing_C = torch.full_like(logprobs_C, torch.nan)
    numbers = {f.name: missing_C for f in fields(TokenStats)}
    ratio_C, sampler_ratio_C = log_ratio(logprobs_C, old_C).exp(), log_ratio(old_C, sampler_C).exp()
    numbers |= {
        "logprobs_N": logprobs_C,
        "entropy_N": entropy(log_p_CV),
        "clipped_N": over(sampler_ratio_C, caps.sampler),
    }
    numbers |= {"ratio_N": ratio_C, "sampler_ratio_N": sampler_ratio_C}
    terms = _Sum(logprobs_C.new_zeros(()), numbers)
    trust_C = importance_weight(old_C, sampler_C, caps.sampler)
    if needs.distil:
        _distil(terms, inputs, rows, log_p_CV, trust_C * importance_weight(logprobs_C, old_C, caps.update))
    if needs.reference:
        _leash(terms, inputs, rows, log_p_CV)
    if needs.advantage:
        _verdict(terms, inputs, rows, log_p_CV, trust_C, old_C)
    return terms


def _distil(terms: _Sum, inputs: _Inputs, rows: slice, log_p_CV: Tensor, trust_C: Tensor) -> None:
    """The divergence from the teacher."""
    assert inputs.weights.distil_N is not None
    signal, tokens_C = inputs.signal, inputs.tokens_N[rows]
    distil_C = inputs.weights.distil_N[rows].to(trust_C)
    log_q_CV = teacher_log_probs(inputs.views, rows, signal.temperature)
    compared = signal.support.compare(signal.shape, log_p_CV, log_q_CV, tokens_C)
    terms.add(compared, distil_C * trust_C)
    seen = {
        "divergence_N": compared.divergence_N,
        "teacher_logprobs_N": _at(log_q_CV, tokens_C),
        "teacher_entropy_N": entropy(log_q_CV),
    }
    terms.numbers |= {name: torch.where(distil_C != 0, x, torch.nan) for name, x in seen.items()}
    terms.numbers["clipped_N"] = terms.numbers["clipped_N"] | (
        over(terms.numbers["ratio_N"], signal.ratio.update) & (distil_C != 0)
    )


def _leash(terms: _Sum, inputs: _Inputs, rows: slice, log_p_CV: Tensor) -> None:
    """The reference KL. It regularises the visited states as they are: no importance weight."""
    assert inputs.weights.reference_N is not None
    assert inputs.reference is not None
    leash = inputs.signal.reference
    weight_C = leash.coefficient * inputs.weights.reference_N[rows].to(log_p_CV)
    compared = leash.compare(log_p_CV, teacher_log_probs([inputs.reference], rows, inputs.signal.temperature))
    terms.add(compared, weight_C)
    terms.numbers["reference_N"] = torch.where(weight_C != 0, compared.divergence_N, torch.nan)


def _verdict(terms: _Sum, inputs: _Inputs, rows: slice, log_p_CV: Tensor, trust_C: Tensor, old_C: Tensor) -> None:
    """The policy gradient: its flow is −∂loss/∂log p(y) on the sampled token, 0 elsewhere."""
    assert inputs.weights.advantage_N is not None
    policy = inputs.signal.policy.term(terms.numbers["logprobs_N"], old_C, inputs.weights.advantage_N[rows].to(trust_C))
    terms.loss = terms.loss + (trust_C * policy.loss_N).sum()
    terms.flow_CV = torch.zeros_like(log_p_CV) if terms.flow_CV is None else terms.flow_CV
    terms.flow_CV.scatter_add_(-1, inputs.tokens_N[rows, None], -(trust_C * policy.slope_N)[:, None])
    terms.numbers["clipped_N"] = terms.numbers["clipped_N"] | policy.clipped_N


def _at(log_p_CV: Tensor, tokens_C: Tensor) -> Tensor:
    return log_p_CV.gather(-1, tokens_C[:, None])[:, 0]
