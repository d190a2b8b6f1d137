"""The terms of the loss: distillation, policy gradient and reference KL, each over the positions of one chunk.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher, y sampled.

Every term adds its weighted value and its weighted flow F = p · a; none knows which divergence or support runs. To add
a term, give it a weight in `TokenWeights`, a function here, a name in `LossTerm`, and a line in the plan of `fused`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from selfdistill.signal.allocation import Allocation
from selfdistill.signal.bound import Bound, Measured
from selfdistill.signal.coupling import Coupling, Separate
from selfdistill.signal.direction import Direction, Toward
from selfdistill.signal.evidence import Evidence, Product, TeacherView
from selfdistill.signal.flow import Flow
from selfdistill.signal.gate import Gate
from selfdistill.signal.head import Head, accumulation_dtype
from selfdistill.signal.policy_gradient import PolicyGradient
from selfdistill.signal.ratio import RatioCaps, importance_weight, log_ratio, over
from selfdistill.signal.reference import ReferenceKL
from selfdistill.signal.refusal import refusal
from selfdistill.signal.schedule import Constant, Schedule
from selfdistill.signal.shape import JensenShannon, Shape
from selfdistill.signal.split import Split
from selfdistill.signal.support import FullVocabulary, SampledToken, Support

LossTerm = Literal["divergence", "surrogate", "cross_entropy", "reference_kl"]
"""What a loss is the sum of, each as weighed: the divergence from the teacher, the clipped policy-gradient surrogate of
sampled tokens, −A log p(y) of tokens that nobody sampled, and the divergence from the reference. All in nats, but for
the surrogate, which is in advantages."""
LOSS_TERMS: tuple[LossTerm, ...] = get_args(LossTerm)


@dataclass(frozen=True, slots=True)
class Signal:
    """How the difference between student and teacher, and the verdict on an answer, become a gradient.

    `evidence` makes one teacher of the views, `support` says on which tokens it is compared, `shape` what a difference
    is worth, `bound` how far one token may push. `temperature` divides the logits of student, teacher and reference
    alike; it is the one the answers were sampled at.

    The kernel reads all of these. `direction`, `allocation`, `coupling`, `schedule` and `gate` are for `weigh`, which
    decides beforehand what each token weighs; the kernel takes its word.

    Raises `ValueError` when the temperature is not positive, and for evidence that does not sum to 1 on a support that
    needs it.
    """

    support: Support = field(default_factory=FullVocabulary)
    shape: Shape = field(default_factory=JensenShannon)
    ratio: RatioCaps = field(default_factory=RatioCaps)
    policy: PolicyGradient = field(default_factory=PolicyGradient)
    reference: ReferenceKL = field(default_factory=ReferenceKL)
    temperature: float = 1.0
    evidence: Evidence = field(default_factory=Product)
    bound: Bound | None = None
    direction: Direction = field(default_factory=Toward)
    allocation: Allocation = field(default_factory=Allocation)
    coupling: Coupling = field(default_factory=Separate)
    schedule: Schedule = field(default_factory=lambda: Constant(1.0))
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if not self.evidence.normalised and not isinstance(self.support, SampledToken):
            raise refusal(
                "evidence that is not normalised can be read at the sampled token only",
                got=f"{self.evidence} on {self.support}",
                why="a divergence compares two distributions, each with a sum of 1",
                do="use SampledToken(), or leave normalise=True",
            )
        if not self.temperature > 0:
            raise refusal(
                "the temperature must be positive",
                got=self.temperature,
                why="logits are divided by it",
                do="use the sampling temperature, 1.0 by default",
            )

    @property
    def needs_table(self) -> bool:
        """Whether tokens are weighed one by one; otherwise each weighs what its answer was credited."""
        plain = (Toward(), Allocation(), Separate(), Constant(1.0), None)
        return (self.direction, self.allocation, self.coupling, self.schedule, self.gate) != plain

    @property
    def needs_evidence(self) -> bool:
        """Whether weighing reads the teacher: its evidence on the tokens, or its entropy."""
        return self.coupling.needs_evidence or self.allocation.needs_teacher or self.gate is not None

    def teaches(self, step: int) -> bool:
        """Whether the teacher is heard at generation batch `step`: it has strength there, or a gate that reads it."""
        return self.gate is not None or self.schedule.at(step) != 0


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
    that a cap or a clip changed what this token does. `magnitude_N` is Σ_v |F_v| over the outcomes, F = p · h(u),
    before any bound or weight: how much the teacher wants to change.
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
    magnitude_N: Tensor

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
    given_N: Tensor | None = None

    @property
    def positions(self) -> int:
        """N."""
        return self.hidden_ND.shape[0]

    @property
    def distils(self) -> bool:
        """Whether any position has distillation weight."""
        return self.weights.distil_N is not None and bool((self.weights.distil_N != 0).any())

    @property
    def dtype(self) -> torch.dtype:
        """That of logits, losses and numbers."""
        return accumulation_dtype(torch.promote_types(self.hidden_ND.dtype, self.head.weight_VD.dtype))

    def blank_stats(self) -> dict[str, Tensor]:
        """Room for the numbers of every position, NaN as long as no term writes them."""
        blank_N = torch.full((self.positions,), torch.nan, dtype=self.dtype, device=self.hidden_ND.device)
        stats = {f.name: blank_N.clone() for f in fields(TokenStats)}
        return stats | {"clipped_N": torch.empty_like(blank_N, dtype=torch.bool)}


@dataclass(frozen=True, slots=True)
class Logits:
    """What is said at some positions, in logits: by the student, and where a term reads them by the teacher (at the
    temperature already) and the reference."""

    student_CV: Tensor
    teacher_CV: Tensor | None = None
    reference_CV: Tensor | None = None

    def of(self, rows: slice) -> Logits:
        """Those of some of the positions."""
        return Logits(self.student_CV[rows], _rows(self.teacher_CV, rows), _rows(self.reference_CV, rows))


@dataclass(slots=True)
class Chunk:
    """Some positions: what all terms need to know about them, and what the terms leave."""

    inputs: Inputs
    rows: slice
    student: Split
    teacher: Split | None
    reference: Split | None
    tokens_C: Tensor
    logprobs_C: Tensor
    old_logprobs_C: Tensor
    sampler_weight_C: Tensor
    numbers: dict[str, Tensor]
    losses: dict[LossTerm, Tensor] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)

    @staticmethod
    def begin(inputs: Inputs, rows: slice, logits: Logits) -> Chunk:
        """No terms yet; a ratio whose other side is unknown compares a number with itself and is exactly 1."""
        student, teacher, reference = _split(inputs.signal, logits)
        tokens_C, cap = inputs.tokens_N[rows], inputs.signal.ratio.sampler
        logprobs_C = student.at(tokens_C)
        old_C = logprobs_C if inputs.old_logprobs_N is None else inputs.old_logprobs_N[rows].to(logprobs_C)
        old_C = torch.where(old_C.isnan(), logprobs_C, old_C)
        sampler_C = old_C if inputs.sampler_logprobs_N is None else inputs.sampler_logprobs_N[rows].to(logprobs_C)
        sampler_C = torch.where(sampler_C.isnan(), old_C, sampler_C)
        trust_C = importance_weight(old_C, sampler_C, cap)
        sampler_ratio_C = log_ratio(old_C, sampler_C).exp()
        numbers = {
            "logprobs_N": logprobs_C,
            "entropy_N": student.entropy_N,
            "ratio_N": log_ratio(logprobs_C, old_C).exp(),
            "sampler_ratio_N": sampler_ratio_C,
            "clipped_N": over(sampler_ratio_C, cap),
        }
        return Chunk(
            inputs, rows, student, teacher, reference, tokens_C, logprobs_C, old_C, trust_C, numbers
        )  # fmt: skip

    def weight(self, weight_N: Tensor | None) -> Tensor:
        """One term's weights of these positions."""
        assert weight_N is not None
        return weight_N[self.rows].to(self.logprobs_C)

    def value(self, name: LossTerm, value_C: Tensor, weight_C: Tensor) -> None:
        """What a term contributes to the loss; a position without weight has none, whatever its value."""
        self.losses[name] = torch.where(weight_C != 0, weight_C * value_C, 0.0).sum()

    def push(self, flow: Flow, weight_C: Tensor) -> None:
        """What a term contributes to the gradient."""
        self.flows.append(flow.times(weight_C[:, None]))

    def note_clipped(self, clipped_C: Tensor) -> None:
        """Positions at which a cap or clip was active."""
        self.numbers["clipped_N"] = self.numbers["clipped_N"] | clipped_C


def _rows(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _split(signal: Signal, logits: Logits) -> tuple[Split, Split | None, Split | None]:
    """Student, teacher and reference; the first two with the same tokens apart."""
    student_CV, teacher_CV = logits.student_CV, logits.teacher_CV
    if signal.temperature != 1.0:
        student_CV = student_CV / signal.temperature
    apart = None if teacher_CV is None else signal.support.apart(student_CV, teacher_CV)
    reference = None if logits.reference_CV is None else Split.of(logits.reference_CV / signal.temperature)
    teacher = None if teacher_CV is None else Split.of(teacher_CV, apart)
    if teacher is not None and not signal.evidence.normalised:
        teacher = teacher.unnormalised()
    return Split.of(student_CV, apart), teacher, reference


def distil(chunk: Chunk) -> None:
    """distil · r1 · r2 · D(p, q): the divergence from the teacher. A bound acts on the flow alone."""
    signal, distil_C = chunk.inputs.signal, chunk.weight(chunk.inputs.weights.distil_N)
    assert chunk.teacher is not None
    shape = Measured(signal.shape, signal.bound)
    compared, flow = signal.support.compare(shape, chunk.student, chunk.teacher, chunk.tokens_C)
    update_C = importance_weight(chunk.logprobs_C, chunk.old_logprobs_C, signal.ratio.update)
    weight_C = distil_C * update_C * chunk.sampler_weight_C
    chunk.value("divergence", compared.divergence_N, weight_C)
    chunk.push(flow, weight_C)
    chunk.note_clipped(over(chunk.numbers["ratio_N"], signal.ratio.update) & (distil_C != 0))
    assert compared.magnitude_N is not None
    seen = {
        "teacher_logprobs_N": chunk.teacher.at(chunk.tokens_C),
        "teacher_entropy_N": chunk.teacher.entropy_N,
        "divergence_N": compared.divergence_N,
        "magnitude_N": compared.magnitude_N,
    }
    chunk.numbers |= {name: torch.where(distil_C != 0, number_C, torch.nan) for name, number_C in seen.items()}


def policy_gradient(chunk: Chunk) -> None:
    """r2 · PG(advantage): a flow of −∂loss/∂log p(y) on the sampled token, 0 elsewhere. For a token that nobody sampled
    the ratio is 1 by definition, and what has this gradient is the cross-entropy −advantage · log p(y)."""
    advantage_C = chunk.weight(chunk.inputs.weights.advantage_N)
    term = chunk.inputs.signal.policy.term(chunk.logprobs_C, chunk.old_logprobs_C, advantage_C)
    given_C = torch.zeros_like(advantage_C) if (given_N := chunk.inputs.given_N) is None else chunk.weight(given_N)
    chunk.value("surrogate", term.loss_N, chunk.sampler_weight_C * (1 - given_C))
    chunk.value("cross_entropy", -chunk.logprobs_C, advantage_C * given_C)
    chunk.push(Flow.on_tokens(chunk.tokens_C[:, None], -term.slope_N[:, None]), chunk.sampler_weight_C)
    chunk.note_clipped(term.clipped_N)


def reference_kl(chunk: Chunk) -> None:
    """coefficient · reference · KL(p‖p_ref), on the visited positions as they are: no importance weight."""
    inputs = chunk.inputs
    assert chunk.reference is not None
    weight_C = inputs.signal.reference.coefficient * chunk.weight(inputs.weights.reference_N)
    compared = inputs.signal.reference.compare(chunk.student.log_p(), chunk.reference.log_p())
    chunk.value("reference_kl", compared.divergence_N, weight_C)
    chunk.push(Flow.on_all(compared.flow_NV), weight_C)
    chunk.numbers["reference_N"] = torch.where(weight_C != 0, compared.divergence_N, torch.nan)
