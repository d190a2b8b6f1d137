"""One update (optimiser step): move π(·|x) toward π(·|x, c) on the student's own answers.

    before, once per generation batch:    what teacher and reference make of the answers (`passes`)
    student, in micro-batches:            hidden states of x ⊕ y, with gradients
    both:                                 the fused signal, weighted so that the whole update sums to 1
    then:                                 clip, optimiser step

Nothing here knows which method runs: a sample carries what it wants of each term, the signal how the terms are formed.

Legend: N answer positions of a micro-batch, T answer tokens of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from selfdistill.losses import (
    LOSS_TERMS,
    Denominators,
    LossSpec,
    LossTerm,
    Reduction,
    ReferenceKL,
    TokenWeights,
    fused_loss,
    reduction_weights,
)
from selfdistill.models.policy import Policy
from selfdistill.training.forward import ForwardPass, answer_tokens, by_uid, counted, micro_batches, spread, views_of
from selfdistill.types import TrainingSample


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """All that an update learns from. `teacher` reads c, `reference` does not; `old_logprobs` [T] by uid are None when
    the weights have not moved since sampling; `sampler_correction` is off where sampled log-probabilities are of
    another distribution (a truncated one). `weights`: (distil [T], advantage [T]) by uid, in place of the sample's own
    two numbers where tokens of one answer weigh differently."""

    samples: Sequence[TrainingSample]
    over: Denominators
    teacher: Sequence[ForwardPass] = ()
    reference: ForwardPass | None = None
    old_logprobs: Mapping[str, Tensor] | None = None
    sampler_correction: bool = True
    weights: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """`loss` is the objective before this update, its tokens weighed: the sum of `terms`, by name. `log_ratio` [T] by
    uid is log q − log p in nats, p the student at the start of the step; `divergence` and `entropy` are means over
    tokens, `magnitude` is the mean of Σ p|a|, the size of the teacher's push before any bound. `skipped` says that loss
    or gradient were not finite and nothing moved: an update on NaN would destroy what was learned."""

    loss: float
    terms: Mapping[LossTerm, float]
    grad_norm: float
    skipped: bool
    divergence: float
    magnitude: float
    entropy: float
    clipped: float
    log_ratio: Mapping[str, tuple[float, ...]]


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    loss_specs: Sequence[LossSpec],
    reduction: Reduction,
    batch: UpdateBatch,
    *,
    max_grad_norm: float,
    tokens: int,
) -> UpdateReport:
    """One update of the policy from a batch, in micro-batches of `tokens` tokens that change no result."""
    if batch.reference is not None:
        loss_specs = [
            replace(loss_spec, reference=ReferenceKL(1.0)) for loss_spec in loss_specs
        ]  # samples carry their own scale
    parts = [
        _backward(policy, loss_specs[part[0].loss_spec], reduction, batch, part)
        for part in micro_batches(batch.samples, tokens)
    ]
    parameters = list(policy.trainable().values())
    limit = max_grad_norm if max_grad_norm > 0 else float("inf")
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    report = _report(parts, grad_norm)
    if not report.skipped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return report


@dataclass(frozen=True, slots=True)
class _Part:
    """Numbers of one micro-batch: the terms of its loss and, per token, divergence, magnitude, entropy and clips."""

    terms: Mapping[LossTerm, Tensor]
    divergence_N: Tensor
    magnitude_N: Tensor
    entropy_N: Tensor
    clipped_N: Tensor
    log_ratio: Mapping[str, Tensor]


def _backward(
    policy: Policy, loss_spec: LossSpec, reduction: Reduction, batch: UpdateBatch, part: list[TrainingSample]
) -> _Part:
    """Adds the gradient of one micro-batch."""
    hidden_ND = policy.answer_hidden([(s.student_prompt_ids, s.completion_ids) for s in part])
    old = batch.old_logprobs
    result = fused_loss(
        loss_spec,
        hidden_ND,
        policy.head(),
        answer_tokens(part, hidden_ND),
        _weights(part, batch, reduction, hidden_ND),
        views=views_of(batch.teacher, part, hidden_ND),
        reference=batch.reference.view(part, hidden_ND, whole=True) if batch.reference else None,
        old_logprobs_N=torch.cat([_behaviour(s, old[s.uid]) for s in part]) if old is not None else None,
        sampler_logprobs_N=_sampled(part, hidden_ND) if batch.sampler_correction else None,
        given_N=spread(part, [not s.sampled_logprobs for s in part], hidden_ND),
    )
    result.loss.backward()  # type: ignore[no-untyped-call]
    stats, distilled = result.stats, [s.uid for s in part if s.distil]
    began_N = stats.logprobs_N if old is None else torch.cat([old[s.uid] for s in part])
    rows = by_uid(part, stats.teacher_logprobs_N - began_N).items()  # of the teacher's top tokens alone some have none
    log_ratio = {uid: row for uid, row in rows if uid in distilled and not bool(row.isnan().any())}
    return _Part(result.terms, stats.divergence_N, stats.magnitude_N, stats.entropy_N, stats.clipped_N, log_ratio)


def _weights(part: Sequence[TrainingSample], batch: UpdateBatch, reduction: Reduction, like: Tensor) -> TokenWeights:
    """What each token weighs in each term: its share of the step, in the spans that count, times its credit."""
    weight_N = reduction_weights([len(s.completion_ids) for s in part], reduction, batch.over).to(like.device)
    weight_N = weight_N * counted(part, like)  # where tokens were weighed one by one, what does not count is 0 already
    distil_N, advantage_N = _credited(part, batch, like)
    reference_N = spread(part, [s.reference for s in part], like)
    return TokenWeights(weight_N * distil_N, weight_N * advantage_N, weight_N * reference_N)


def _credited(part: Sequence[TrainingSample], batch: UpdateBatch, like: Tensor) -> tuple[Tensor, Tensor]:
    """(distil_N, advantage_N): token by token where that was decided, else the sample's own."""
    rows = [
        batch.weights.get(s.uid, (torch.full((size,), s.distil), torch.full((size,), s.advantage)))
        for s in part
        for size in [len(s.completion_ids)]
    ]
    distil_N, advantage_N = (torch.cat([row[term].to(like.device, torch.float32) for row in rows]) for term in (0, 1))
    return distil_N, advantage_N


def _report(parts: Sequence[_Part], grad_norm: float) -> UpdateReport:
    terms = {name: float(torch.stack([part.terms[name] for part in parts]).sum()) for name in LOSS_TERMS}
    loss = sum(terms.values())
    return UpdateReport(
        loss=loss,
        terms=terms,
        grad_norm=grad_norm,
        skipped=not (math.isfinite(loss) and math.isfinite(grad_norm)),
        divergence=_mean([part.divergence_N for part in parts]),
        magnitude=_mean([part.magnitude_N for part in parts]),
        entropy=float(torch.cat([part.entropy_N for part in parts]).mean()),
        clipped=float(torch.cat([part.clipped_N for part in parts]).float().mean()),
        log_ratio={uid: tuple(row.tolist()) for part in parts for uid, row in part.log_ratio.items()},
    )


def _mean(parts: Sequence[Tensor]) -> float:
    """Over the tokens that have such a number."""
    values_N = torch.cat(list(parts))
    return float(values_N.nanmean()) if not values_N.isnan().all() else 0.0


def _behaviour(sample: TrainingSample, old_T: Tensor) -> Tensor:
    """NaN for words that were not sampled from this prompt: no policy is to be corrected for."""
    return old_T if sample.sampled_logprobs else torch.full_like(old_T, math.nan)


def _sampled(samples: Sequence[TrainingSample], like: Tensor) -> Tensor:
    """What the sampler says of its tokens; NaN for words that were not sampled from this prompt."""
    unknown = (math.nan,)
    values = [value for s in samples for value in s.sampled_logprobs or unknown * len(s.completion_ids)]
    return torch.tensor(values, device=like.device)
