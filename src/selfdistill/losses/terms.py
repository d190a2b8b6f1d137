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

from selfdistill.losses.clipping import ClippedDivergence, Clipping
from selfdistill.losses.distil_sign import Attract, DistillationSign
from selfdistill.losses.divergences import Divergence, JensenShannon
from selfdistill.losses.flow import GradientNumerator
from selfdistill.losses.gate import Gate
from selfdistill.losses.head import Head, accumulation_dtype
from selfdistill.losses.policy_gradient import PolicyGradient
from selfdistill.losses.ratio import RatioCaps, importance_weight, log_ratio, over
from selfdistill.losses.reference import ReferenceKL
from selfdistill.losses.refusal import refusal
from selfdistill.losses.schedules import Constant, Schedule
from selfdistill.losses.shaping import AdvantageShaping, Separate
from selfdistill.losses.split import BucketedDistribution
from selfdistill.losses.support import FullVocabulary, SampledToken, Support
from selfdistill.losses.teacher_mixture import Product, TeacherMixture, TeacherStates
from selfdistill.losses.token_mask import TokenMask

LossTerm = Literal["divergence", "surrogate", "cross_entropy", "reference_kl"]
"""What a loss is the sum of, each as weighed: the divergence from the teacher, the clipped policy-gradient surrogate of
sampled tokens, −A log p(y) of tokens that nobody sampled, and the divergence from the reference. All in nats, but for
the surrogate, which is in advantages."""
LOSS_TERMS: tuple[LossTerm, ...] = get_args(LossTerm)


@dataclass(frozen=True, slots=True)
class LossSpec:
    """How the difference between student and teacher, and the verdict on an answer, become a gradient.

    `mixture` makes one teacher of the views, `support` says on which tokens it is compared, `divergence` what a
    difference is worth, `clipping` how far one token may push. `temperature` divides the logits of student, teacher and
    reference alike; it is the one the answers were sampled at.

    The kernel reads all of these. `distil_sign`, `token_mask`, `shaping`, `schedule` and `gate` are for `weigh_tokens`,
    which decides beforehand what each token weighs; the kernel takes its word.

    Raises `ValueError` when the temperature is not positive, and for log-ratio that does not sum to 1 on a support that
    needs it.
    """

    support: Support = field(default_factory=FullVocabulary)
    divergence: Divergence = field(default_factory=JensenShannon)
    ratio: RatioCaps = field(default_factory=RatioCaps)
    policy: PolicyGradient = field(default_factory=PolicyGradient)
    reference: ReferenceKL = field(default_factory=ReferenceKL)
    temperature: float = 1.0
    mixture: TeacherMixture = field(default_factory=Product)
    clipping: Clipping | None = None
    distil_sign: DistillationSign = field(default_factory=Attract)
    token_mask: TokenMask = field(default_factory=TokenMask)
    shaping: AdvantageShaping = field(default_factory=Separate)
    schedule: Schedule = field(default_factory=lambda: Constant(1.0))
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if not self.mixture.normalised and not isinstance(self.support, SampledToken):
            raise refusal(
                "log-ratio that is not normalised can be read at the sampled token only",
                got=f"{self.mixture} on {self.support}",
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
        plain = (Attract(), TokenMask(), Separate(), Constant(1.0), None)
        return (self.distil_sign, self.token_mask, self.shaping, self.schedule, self.gate) != plain

    @property
    def needs_log_ratio(self) -> bool:
        """Whether weighing reads the teacher: its log-ratio on the tokens, or its entropy."""
        return self.shaping.needs_log_ratio or self.token_mask.needs_teacher or self.gate is not None

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
    def log_ratio_N(self) -> Tensor:
        """u(y) = log q(y) − log p(y)."""
        return self.teacher_logprobs_N - self.logprobs_N


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the kernel works on: the arguments of `fused_loss`, cut off from the graph."""

    loss_spec: LossSpec
    hidden_ND: Tensor
    head: Head
    tokens_N: Tensor
    weights: TokenWeights
    views: tuple[TeacherStates, ...]
    reference: TeacherStates | None
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
    student: BucketedDistribution
    teacher: BucketedDistribution | None
    reference: BucketedDistribution | None
    tokens_C: Tensor
    logprobs_C: Tensor
    old_logprobs_C: Tensor
    sampler_weight_C: Tensor
    numbers: dict[str, Tensor]
    losses: dict[LossTerm, Tensor] = field(default_factory=dict)
    numerators: list[GradientNumerator] = field(default_factory=list)

    @staticmethod
    def begin(inputs: Inputs, rows: slice, logits: Logits) -> Chunk:
        """No terms yet; a ratio whose other side is unknown compares a number with itself and is exactly 1."""
        student, teacher, reference = _split(inputs.loss_spec, logits)
        tokens_C, cap = inputs.tokens_N[rows], inputs.loss_spec.ratio.sampler
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

    def push(self, flow: GradientNumerator, weight_C: Tensor) -> None:
        """What a term contributes to the gradient."""
        self.numerators.append(flow.times(weight_C[:, None]))

    def note_clipped(self, clipped_C: Tensor) -> None:
        """Positions at which a cap or clip was active."""
        self.numbers["clipped_N"] = self.numbers["clipped_N"] | clipped_C


def _rows(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _split(
    loss_spec: LossSpec, logits: Logits
) -> tuple[BucketedDistribution, BucketedDistribution | None, BucketedDistribution | None]:
    """Student, teacher and reference; the first two with the same tokens apart."""
    student_CV, teacher_CV = logits.student_CV, logits.teacher_CV
    if loss_spec.temperature != 1.0:
        student_CV = student_CV / loss_spec.temperature
    apart = None if teacher_CV is None else loss_spec.support.apart(student_CV, teacher_CV)
    reference = (
        None if logits.reference_CV is None else BucketedDistribution.of(logits.reference_CV / loss_spec.temperature)
    )
    teacher = None if teacher_CV is None else BucketedDistribution.of(teacher_CV, apart)
    if teacher is not None and not loss_spec.mixture.normalised:
        teacher = teacher.unnormalised()
    return BucketedDistribution.of(student_CV, apart), teacher, reference


def distil(chunk: Chunk) -> None:
    """distil · r1 · r2 · D(p, q): the divergence from the teacher. A bound acts on the flow alone."""
    loss_spec, distil_C = chunk.inputs.loss_spec, chunk.weight(chunk.inputs.weights.distil_N)
    assert chunk.teacher is not None
    shape = ClippedDivergence(loss_spec.divergence, loss_spec.clipping)
    compared, flow = loss_spec.support.compare(shape, chunk.student, chunk.teacher, chunk.tokens_C)
    update_C = importance_weight(chunk.logprobs_C, chunk.old_logprobs_C, loss_spec.ratio.update)
    weight_C = distil_C * update_C * chunk.sampler_weight_C
    chunk.value("divergence", compared.divergence_N, weight_C)
    chunk.push(flow, weight_C)
    chunk.note_clipped(over(chunk.numbers["ratio_N"], loss_spec.ratio.update) & (distil_C != 0))
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
    term = chunk.inputs.loss_spec.policy.term(chunk.logprobs_C, chunk.old_logprobs_C, advantage_C)
    given_C = torch.zeros_like(advantage_C) if (given_N := chunk.inputs.given_N) is None else chunk.weight(given_N)
    chunk.value("surrogate", term.loss_N, chunk.sampler_weight_C * (1 - given_C))
    chunk.value("cross_entropy", -chunk.logprobs_C, advantage_C * given_C)
    chunk.push(GradientNumerator.on_tokens(chunk.tokens_C[:, None], -term.slope_N[:, None]), chunk.sampler_weight_C)
    chunk.note_clipped(term.clipped_N)


def reference_kl(chunk: Chunk) -> None:
    """coefficient · reference · KL(p‖p_ref), on the visited positions as they are: no importance weight."""
    inputs = chunk.inputs
    assert chunk.reference is not None
    weight_C = inputs.loss_spec.reference.coefficient * chunk.weight(inputs.weights.reference_N)
    compared = inputs.loss_spec.reference.compare(chunk.student.log_p(), chunk.reference.log_p())
    chunk.value("reference_kl", compared.divergence_N, weight_C)
    chunk.push(GradientNumerator.on_all(compared.numerator_NV), weight_C)
    chunk.numbers["reference_N"] = torch.where(weight_C != 0, compared.divergence_N, torch.nan)
