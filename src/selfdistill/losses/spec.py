"""The parts of a loss: `LossSpec` holds one choice for each, `KernelCall` the tensors of one call of the kernel, which
`check_call` inspects.

Legend: N answer positions, D hidden size; p student, q teacher, y sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, Ranged, option
from selfdistill.losses.clipping import Clipping
from selfdistill.losses.divergences import Divergence, JensenShannon
from selfdistill.losses.head import Head
from selfdistill.losses.policy_gradient import PolicyGradient, RatioCaps, ReferenceKL
from selfdistill.losses.schedules import Constant, EntropyGate, Schedule
from selfdistill.losses.shaping import AdvantageShaping, Attract, DistillationSign, Separate
from selfdistill.losses.support import FullVocabulary, SampledToken, Support
from selfdistill.losses.teacher_mixture import Product, TeacherMixture, TeacherStates

LossTerm = Literal["divergence", "surrogate", "cross_entropy", "reference_kl"]
"""The terms of a loss, each as weighed: the divergence from the teacher, the clipped policy-gradient surrogate of
sampled tokens, −A log p(y) of tokens that were not sampled, and the divergence from the reference. All in nats, but for
the surrogate, which is in advantages."""
LOSS_TERMS: tuple[LossTerm, ...] = get_args(LossTerm)


@dataclass(frozen=True, slots=True)
class TokenMask(Ranged):
    """Which tokens count, and how much. The defaults give every counted token the same.

    `skip_first` and `min_logprob` exclude tokens from both terms, distillation and policy gradient.
    `teacher_confidence` is of the distillation alone: weights exp(−β H(q)), scaled to mean 1 over the distilled tokens
    that remain, 0 where the teacher's entropy is unknown.
    """

    skip_first: int = option(0, "tokens at the start of an answer that are left out; SDFT uses 3", least=0)
    teacher_confidence: float = option(0.0, "β; arXiv 2604.02288 uses 1", least=0)
    min_logprob: float = option(-inf, "tokens with a lower log π(y) are left out; arXiv 2602.02482 uses −5", below=0)


_PLAIN = (Attract(), TokenMask(), Separate(), Constant(), None)  # every token weighs the credit of its answer


@dataclass(frozen=True, slots=True)
class LossSpec(Ranged):
    """The choices by which the log-ratio of teacher and student, and the advantage of an answer, become a gradient.

    The kernel reads `mixture` (one teacher of several passes), `support` (the tokens on which it is compared),
    `divergence`, `clipping`, `policy`, `ratio`, `reference` and `temperature`, which divides the logits of student,
    teacher and reference alike. `weigh_tokens` reads `distil_sign`, `token_mask`, `shaping`, `schedule` and `gate`, and
    decides beforehand what each token weighs.

    Raises `ConfigError` also for an unnormalised mixture on a support that needs a sum of 1.
    """

    support: Support = field(default_factory=FullVocabulary)
    divergence: Divergence = field(default_factory=JensenShannon)
    ratio: RatioCaps = field(default_factory=RatioCaps)
    policy: PolicyGradient = field(default_factory=PolicyGradient)
    reference: ReferenceKL = field(default_factory=ReferenceKL)
    temperature: float = option(1.0, "the sampling temperature of the answers", above=0)
    mixture: TeacherMixture = field(default_factory=Product)
    clipping: Clipping | None = None
    distil_sign: DistillationSign = field(default_factory=Attract)
    token_mask: TokenMask = field(default_factory=TokenMask)
    shaping: AdvantageShaping = field(default_factory=Separate)
    schedule: Schedule = field(default_factory=Constant)
    gate: EntropyGate | None = None

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        if not self.mixture.normalise and not isinstance(self.support, SampledToken):
            what, do = "an unnormalised mixture is for the sampled token only", "use SampledToken(), or normalise=True"
            raise ConfigError(what, got=f"{self.mixture} on {self.support}", do=do)

    @property
    def needs_table(self) -> bool:
        """Whether tokens are weighed one by one; otherwise each weighs the credit of its answer."""
        return (self.distil_sign, self.token_mask, self.shaping, self.schedule, self.gate) != _PLAIN

    @property
    def needs_log_ratio(self) -> bool:
        """Whether weighing reads the teacher: its log-ratio on the tokens, or its entropy."""
        return self.shaping.needs_log_ratio or self.token_mask.teacher_confidence > 0 or self.gate is not None

    def teaches(self, step: int) -> bool:
        """Whether the teacher is read at generation batch `step`: λ > 0 there, or a gate reads it."""
        return not self.needs_table or self.gate is not None or self.schedule.at(step) != 0


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

    `ratio_N` is π_θ(y)/π_old(y) and `sampler_ratio_N` π_old(y)/π_sampler(y), both before any cap; `clipped_N`: a cap or
    a clip changed the token's gradient. `magnitude_N` is Σ_v |F_v| over the outcomes, F = p · h(u), before any clipping
    or weight: the size of the gradient that the teacher wants.
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
class KernelCall:
    """The arguments of `fused_loss`, cut off from the graph, log-probabilities that are not given NaN; and the numbers
    that it fills in."""

    loss_spec: LossSpec
    hidden_ND: Tensor
    head: Head
    tokens_N: Tensor
    weights: TokenWeights
    teacher: Sequence[TeacherStates]
    reference: TeacherStates | None
    old_logprobs_N: Tensor
    sampler_logprobs_N: Tensor
    given_N: Tensor
    stats: TokenStats
    terms: dict[LossTerm, Tensor]


def check_call(call: KernelCall) -> None:
    """Raises `ConfigError` when shapes disagree, a term lacks an input, or a teacher cannot be formed."""
    spec, weights, size = call.loss_spec, call.weights, (len(call.hidden_ND), call.head.vocabulary)
    per_token = {f.name: getattr(weights, f.name) for f in fields(TokenWeights)}
    per_token |= {f.name: getattr(call, f.name) for f in fields(KernelCall) if f.name.endswith("_N")}
    per_token |= {f"teacher[{index}].present_N": each.present_N for index, each in enumerate(call.teacher)}
    wrong = {name: tuple(x.shape) for name, x in per_token.items() if x is not None and x.shape != size[:1]}
    if wrong:
        what, do = f"one number per position is needed: shape {size[:1]}", "concatenate them as the hidden states are"
        raise ConfigError(what, got=wrong, do=do)
    reference = [] if call.reference is None else [call.reference]
    for each in (*call.teacher, *reference):
        if (len(each.hidden_ND), each.head.vocabulary) != size:
            got, why = (f"{n} positions of {v} tokens" for n, v in ((len(each.hidden_ND), each.head.vocabulary), size))
            what = "a teacher's pass must have the student's positions and vocabulary"
            raise ConfigError(what, got=got, why=f"the student has {why}", do="use a model with the same tokenizer")
    if any(each.against or each.present_N is not None for each in reference):
        got = "a reference with `against` or `present_N`"
        raise ConfigError("the reference must cover every position", got=got, do="pass TeacherStates(hidden_ND, head)")
    wanted, against = ([each for each in call.teacher if each.against == side] for side in (False, True))
    shared = any(each.present_N is not None for each in wanted)  # weights are normalised position by position
    if wanted and not shared and abs(sum(each.weight for each in wanted) - 1.0) > 1e-6:
        what, why = "the weights of the teacher's passes must sum to 1", "another sum would act as a hidden temperature"
        do = "use (1 - rate, rate) for a trust region; with present_N they are normalised"
        raise ConfigError(what, got=[each.weight for each in wanted], why=why, do=do)
    normalised = [each.weight for each in (*against, *(wanted if shared else ()))]
    if not all(weight > 0 for weight in normalised):
        what, do = "weights that are normalised must be positive", "leave out passes that weigh nothing"
        raise ConfigError(what, got=normalised, do=do)
    distils = weights.distil_N is not None and bool((weights.distil_N != 0).any())
    has_reference = spec.reference.coefficient > 0
    lacking = {"teacher": distils and not wanted, "reference": has_reference and not reference}
    lacking["weights.reference_N"] = has_reference and weights.reference_N is None
    if missing := ", ".join(f"no {name}" for name, lacks in lacking.items() if lacks):
        raise ConfigError("a term has weight but lacks an input", got=missing, do="pass it, or set the weight to 0")
    if against and not spec.mixture.reads_against:
        what, do = "only a contrast reads passes against the answer", "use Contrast(), or leave them out"
        raise ConfigError(what, got=spec.mixture, do=do)
    if weights.distil_N is not None and distils and all(each.present_N is not None for each in wanted):
        absent_N = (weights.distil_N != 0) & ~torch.stack([each.covered() for each in wanted]).any(0)
        if absent := int(absent_N.sum()):
            what, got = "a position has distillation weight but no teacher", f"{absent} of {size[0]} positions"
            raise ConfigError(what, got=got, do="set distil_N to 0 there")
