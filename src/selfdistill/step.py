"""One optimiser update: move π(·|x) toward π(·|x, c) on the student's own answers.

    teacher, once per generation batch:   hidden states of (x, c) ⊕ y, kept
    student, in micro-batches:            hidden states of x ⊕ y, with gradients
    both:                                 the fused signal, weighted so that the whole step sums to 1
    then:                                 clip, optimiser step

Nothing here knows which method runs: a sample carries what it wants of each term, the signal how the terms are formed.

Legend: N answer positions of a micro-batch, T answer tokens of one sample, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfdistill.models.lengths import length_buckets
from selfdistill.models.policy import Policy
from selfdistill.models.teacher import Teacher
from selfdistill.signal import (
    Denominators,
    Head,
    Reduction,
    ReferenceKL,
    Signal,
    TeacherView,
    TokenWeights,
    fused_signal,
    token_logprobs,
    token_weights,
)
from selfdistill.types import TokenIds, TrainingSample


@dataclass(frozen=True, slots=True)
class Reading:
    """What one set of weights makes of every sample: hidden_TD by uid, its head, and its share of the teacher."""

    hidden: Mapping[str, Tensor]
    head: Head
    weight: float

    def view(self, samples: Sequence[TrainingSample], like_ND: Tensor) -> TeacherView:
        """The states of these samples one after the other; one that was not read weighs nothing, and gets zeros."""
        size = like_ND.shape[1]
        rows = [self.hidden.get(s.uid, like_ND.new_zeros(len(s.completion_ids), size)) for s in samples]
        return TeacherView(torch.cat(rows), self.head, self.weight)


@dataclass(frozen=True, slots=True)
class Batch:
    """All that an update learns from. `teacher` reads c, `reference` does not; `old_logprobs` [T] by uid are None when
    the weights have not moved since sampling; `sampler_correction` is off where sampled log-probabilities are of
    another distribution (a truncated one)."""

    samples: Sequence[TrainingSample]
    over: Denominators
    teacher: Sequence[Reading] = ()
    reference: Reading | None = None
    old_logprobs: Mapping[str, Tensor] | None = None
    sampler_correction: bool = True


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """`evidence` [T] by uid is log q − log p in nats; `divergence` and `entropy` are means over tokens. `skipped` says
    that loss or gradient were not finite and nothing moved: a step on NaN would destroy what was learned."""

    loss: float
    grad_norm: float
    skipped: bool
    divergence: float
    entropy: float
    clipped: float
    evidence: Mapping[str, tuple[float, ...]]


def read_teacher(policy: Policy, teacher: Teacher, samples: Sequence[TrainingSample], tokens: int) -> list[Reading]:
    """Every view of the teacher, of the samples that are to be distilled. Once per generation batch."""
    pairs = {s.uid: (s.teacher_prompt_ids, s.completion_ids) for s in samples if s.teacher_prompt_ids is not None}
    return _read(policy, teacher, pairs, tokens)


def read_reference(
    policy: Policy, anchor: Teacher | None, samples: Sequence[TrainingSample], tokens: int
) -> Reading | None:
    """The weights at the start, reading what the student reads; None when no sample asks for it."""
    pairs = {s.uid: (s.student_prompt_ids, s.completion_ids) for s in samples if s.reference}
    if not pairs:
        return None
    assert anchor is not None, "a method that needs the reference says so"
    return _read(policy, anchor, pairs, tokens)[0]


def behaviour_logprobs(
    policy: Policy, samples: Sequence[TrainingSample], temperature: float, tokens: int
) -> dict[str, Tensor]:
    """log π(y) [T] by uid under the weights as they are now: before the first of several updates."""
    logprobs: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in micro_batches(samples, tokens):
            hidden_ND = policy.answer_hidden([(s.student_prompt_ids, s.completion_ids) for s in batch])
            logprobs_N, _ = token_logprobs(hidden_ND, policy.head(), _tokens(batch, hidden_ND), temperature)
            logprobs |= _by_uid(batch, logprobs_N)
    return logprobs


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    signal: Signal,
    reduction: Reduction,
    batch: Batch,
    *,
    max_grad_norm: float,
    tokens: int,
) -> UpdateReport:
    """One update of the policy from a batch, in micro-batches of `tokens` tokens that change no result."""
    if batch.reference is not None:
        signal = replace(signal, reference=ReferenceKL(1.0))  # the scale is each sample's own
    parts = [_backward(policy, signal, reduction, batch, part) for part in micro_batches(batch.samples, tokens)]
    parameters = list(policy.trainable().values())
    limit = max_grad_norm if max_grad_norm > 0 else float("inf")
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    report = _report(parts, grad_norm)
    if not report.skipped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return report


def micro_batches(samples: Sequence[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    """Samples of similar length together, at most `tokens` tokens each."""
    lengths = [len(s.student_prompt_ids) + len(s.completion_ids) for s in samples]
    return [[samples[index] for index in bucket] for bucket in length_buckets(lengths, tokens)]


@dataclass(frozen=True, slots=True)
class _Part:
    """Numbers of one micro-batch: its loss and, per token, divergence, entropy and clips."""

    loss: Tensor
    divergence_N: Tensor
    entropy_N: Tensor
    clipped_N: Tensor
    evidence: Mapping[str, Tensor]


def _backward(policy: Policy, signal: Signal, reduction: Reduction, batch: Batch, part: list[TrainingSample]) -> _Part:
    """Adds the gradient of one micro-batch."""
    hidden_ND = policy.answer_hidden([(s.student_prompt_ids, s.completion_ids) for s in part])
    weight_N = token_weights([len(s.completion_ids) for s in part], reduction, batch.over).to(hidden_ND.device)
    old = batch.old_logprobs
    result = fused_signal(
        signal,
        hidden_ND,
        policy.head(),
        _tokens(part, hidden_ND),
        TokenWeights(
            distil_N=weight_N * _spread(part, [s.distil for s in part], hidden_ND),
            advantage_N=weight_N * _spread(part, [s.advantage for s in part], hidden_ND),
            reference_N=weight_N * _spread(part, [s.reference for s in part], hidden_ND),
        ),
        views=[reading.view(part, hidden_ND) for reading in batch.teacher],
        reference=batch.reference.view(part, hidden_ND) if batch.reference else None,
        old_logprobs_N=torch.cat([old[s.uid] for s in part]) if old is not None else None,
        sampler_logprobs_N=_sampled(part, hidden_ND) if batch.sampler_correction else None,
    )
    result.loss.backward()  # type: ignore[no-untyped-call]
    stats, distilled = result.stats, [s.uid for s in part if s.distil]
    evidence = {uid: row for uid, row in _by_uid(part, stats.evidence_N).items() if uid in distilled}
    return _Part(result.loss.detach(), stats.divergence_N, stats.entropy_N, stats.clipped_N, evidence)


def _report(parts: Sequence[_Part], grad_norm: float) -> UpdateReport:
    divergence_N = torch.cat([part.divergence_N for part in parts])
    loss = float(torch.stack([part.loss for part in parts]).sum())
    return UpdateReport(
        loss=loss,
        grad_norm=grad_norm,
        skipped=not (math.isfinite(loss) and math.isfinite(grad_norm)),
        divergence=float(divergence_N.nanmean()) if not divergence_N.isnan().all() else 0.0,
        entropy=float(torch.cat([part.entropy_N for part in parts]).mean()),
        clipped=float(torch.cat([part.clipped_N for part in parts]).float().mean()),
        evidence={uid: tuple(row.tolist()) for part in parts for uid, row in part.evidence.items()},
    )


def _read(
    policy: Policy, teacher: Teacher, pairs: Mapping[str, tuple[TokenIds, TokenIds]], tokens: int
) -> list[Reading]:
    readings = []
    uids = list(pairs)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs.values()]
    for view in teacher.views() if pairs else ():
        hidden: dict[str, Tensor] = {}
        with teacher.applied(policy, view):
            for bucket in length_buckets(lengths, tokens):
                batch = [pairs[uids[index]] for index in bucket]
                rows = torch.split(policy.answer_hidden(batch), [len(answer) for _, answer in batch])
                hidden |= {uids[index]: row for index, row in zip(bucket, rows, strict=True)}
        head = teacher.head(policy, view)
        if view.source == "student":  # this head is the live one, and the update is about to move it
            head = replace(head, weight_VD=head.weight_VD.clone())
        readings.append(Reading(hidden, head, view.weight))
    return readings


def _tokens(samples: Sequence[TrainingSample], like: Tensor) -> Tensor:
    return torch.tensor([token for s in samples for token in s.completion_ids], device=like.device)


def _sampled(samples: Sequence[TrainingSample], like: Tensor) -> Tensor:
    return torch.tensor([value for s in samples for value in s.sampled_logprobs], device=like.device)


def _spread(samples: Sequence[TrainingSample], values: Sequence[float], like: Tensor) -> Tensor:
    """One number per sample, repeated for each of its tokens."""
    return torch.tensor(
        [value for s, value in zip(samples, values, strict=True) for _ in s.completion_ids], device=like.device
    )


def _by_uid(samples: Sequence[TrainingSample], values_N: Tensor) -> dict[str, Tensor]:
    rows = torch.split(values_N, [len(s.completion_ids) for s in samples])
    return {s.uid: row for s, row in zip(samples, rows, strict=True)}
