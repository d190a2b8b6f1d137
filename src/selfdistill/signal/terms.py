"""The terms of the loss: distillation, policy gradient and reference KL, each over the positions of one chunk.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher, y sampled.

Every term adds its weighted loss and its weighted flow F = p · a; none knows which divergence or support runs. To add
a term, give it a weight in `TokenWeights`, a function here, and a line in the plan of `fused`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from selfdistill.signal.evidence import TeacherView, entropy, teacher_log_probs
from selfdistill.signal.head import Head, accumulation_dtype
from selfdistill.signal.policy_gradient import PolicyGradient
from selfdistill.signal.ratio import RatioCaps, importance_weight, log_ratio, over
from selfdistill.signal.reference import ReferenceKL
from selfdistill.signal.refusal import refusal
from selfdistill.signal.shape import Comparison, JensenShannon, Shape
from selfdistill.signal.support import FullVocabulary, Support


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
class Inputs:
    """What the kernel works on: the arguments of `fused_signal`, cut off from the graph."""

    signal: Signal
    hidden_ND: Tensor
    head: Head
    tokens_N: Tensor
    weights: TokenWeights
    views: tuple[TeacherView, ...]
    reference: TeacherView | None
    old_logprobs_N: Tensor | None
    sampler_logprobs_N: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """That of logits, losses and numbers."""
        return accumulation_dtype(torch.promote_types(self.hidden_ND.dtype, self.head.weight_VD.dtype))

    def blank_stats(self) -> dict[str, Tensor]:
        """Room for the numbers of every position."""
        blank_N = torch.empty(self.hidden_ND.shape[0], dtype=self.dtype, device=self.hidden_ND.device)
        stats = {f.name: torch.empty_like(blank_N) for f in fields(TokenStats)}
        return stats | {"clipped_N": torch.empty_like(blank_N, dtype=torch.bool)}


@dataclass(slots=True)
class Chunk:
    """Some positions: what all terms need to know about them, and the sums that the terms leave."""

    inputs: Inputs
    rows: slice
    log_p_CV: Tensor
    tokens_C: Tensor
    logprobs_C: Tensor
    old_logprobs_C: Tensor
    sampler_weight_C: Tensor
    loss: Tensor
    numbers: dict[str, Tensor]
    flow_CV: Tensor | None = None

    @staticmethod
    def begin(inputs: Inputs, rows: slice, log_p_CV: Tensor) -> Chunk:
        """No terms yet; a ratio whose other side is unknown compares a number with itself and is exactly 1."""
        tokens_C, cap = inputs.tokens_N[rows], inputs.signal.ratio.sampler
        logprobs_C = _at(log_p_CV, tokens_C)
        old_C = logprobs_C if inputs.old_logprobs_N is None else inputs.old_logprobs_N[rows].to(logprobs_C)
        sampler_C = old_C if inputs.sampler_logprobs_N is None else inputs.sampler_logprobs_N[rows].to(logprobs_C)
        trust_C = importance_weight(old_C, sampler_C, cap)
        sampler_ratio_C = log_ratio(old_C, sampler_C).exp()
        numbers = {f.name: torch.full_like(logprobs_C, torch.nan) for f in fields(TokenStats)} | {
            "logprobs_N": logprobs_C,
            "entropy_N": entropy(log_p_CV),
            "ratio_N": log_ratio(logprobs_C, old_C).exp(),
            "sampler_ratio_N": sampler_ratio_C,
            "clipped_N": over(sampler_ratio_C, cap),
        }
        nothing = logprobs_C.new_zeros(())
        return Chunk(inputs, rows, log_p_CV, tokens_C, logprobs_C, old_C, trust_C, nothing, numbers)

    def weight(self, weight_N: Tensor | None) -> Tensor:
        """One term's weights of these positions."""
        assert weight_N is not None
        return weight_N[self.rows].to(self.logprobs_C)

    def add(self, compared: Comparison, weight_C: Tensor) -> None:
        """A term that has a value and a flow per position."""
        self.loss = self.loss + (weight_C * compared.divergence_N).sum()
        flow_CV = compared.flow_NV.mul_(weight_C[:, None])
        self.flow_CV = flow_CV if self.flow_CV is None else self.flow_CV.add_(flow_CV)

    def note_clipped(self, clipped_C: Tensor) -> None:
        """Positions at which a cap or clip was active."""
        self.numbers["clipped_N"] = self.numbers["clipped_N"] | clipped_C


def distil(chunk: Chunk) -> None:
    """distil · r1 · r2 · D(p, q): the divergence from the teacher."""
    signal, distil_C = chunk.inputs.signal, chunk.weight(chunk.inputs.weights.distil_N)
    log_q_CV = teacher_log_probs(chunk.inputs.views, chunk.rows, signal.temperature)
    compared = signal.support.compare(signal.shape, chunk.log_p_CV, log_q_CV, chunk.tokens_C)
    update_C = importance_weight(chunk.logprobs_C, chunk.old_logprobs_C, signal.ratio.update)
    chunk.add(compared, distil_C * update_C * chunk.sampler_weight_C)
    chunk.note_clipped(over(chunk.numbers["ratio_N"], signal.ratio.update) & (distil_C != 0))
    seen = {
        "divergence_N": compared.divergence_N,
        "teacher_logprobs_N": _at(log_q_CV, chunk.tokens_C),
        "teacher_entropy_N": entropy(log_q_CV),
    }
    chunk.numbers |= {name: torch.where(distil_C != 0, number_C, torch.nan) for name, number_C in seen.items()}


def policy_gradient(chunk: Chunk) -> None:
    """r2 · PG(advantage): a flow of −∂loss/∂log p(y) on the sampled token, 0 elsewhere."""
    advantage_C = chunk.weight(chunk.inputs.weights.advantage_N)
    term = chunk.inputs.signal.policy.term(chunk.logprobs_C, chunk.old_logprobs_C, advantage_C)
    chunk.loss = chunk.loss + (chunk.sampler_weight_C * term.loss_N).sum()
    chunk.flow_CV = torch.zeros_like(chunk.log_p_CV) if chunk.flow_CV is None else chunk.flow_CV
    chunk.flow_CV.scatter_add_(-1, chunk.tokens_C[:, None], -(chunk.sampler_weight_C * term.slope_N)[:, None])
    chunk.note_clipped(term.clipped_N)


def reference_kl(chunk: Chunk) -> None:
    """coefficient · reference · KL(p‖p_ref), on the visited positions as they are: no importance weight."""
    inputs = chunk.inputs
    assert inputs.reference is not None
    weight_C = inputs.signal.reference.coefficient * chunk.weight(inputs.weights.reference_N)
    log_ref_CV = teacher_log_probs([inputs.reference], chunk.rows, inputs.signal.temperature)
    compared = inputs.signal.reference.compare(chunk.log_p_CV, log_ref_CV)
    chunk.add(compared, weight_C)
    chunk.numbers["reference_N"] = torch.where(weight_C != 0, compared.divergence_N, torch.nan)


def _at(log_p_CV: Tensor, tokens_C: Tensor) -> Tensor:
    return log_p_CV.gather(-1, tokens_C[:, None])[:, 0]
