"""The updates (optimiser steps) of one step: move π(·|x) toward π(·|x, c) on the student's own answers.

    once per step:       forward passes of teacher and reference; what every token weighs in each term of the loss
    for each update:     hidden states of x ⊕ y with gradients, in micro-batches, and the fused loss; clip; optimiser

Nothing here depends on the method: a sample carries its scale of each term, its loss the form of the terms.

Legend: N answer positions of a micro-batch, T answer tokens of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from statistics import fmean
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.losses import FusedResult, ReferenceKL, Relative, TeacherStates, fused_loss
from selfdistill.losses.reduction import Denominators, Reduction, denominators, reduction_weights, relative_size
from selfdistill.losses.shaping import TokenTable
from selfdistill.losses.spec import LOSS_TERMS, LossSpec, LossTerm, TokenStats, TokenWeights
from selfdistill.losses.token_weights import weigh_tokens
from selfdistill.models.batching import tokens_read
from selfdistill.models.policy import Policy
from selfdistill.training import forward
from selfdistill.training.forward import ForwardPass, by_uid, per_token
from selfdistill.training.out_of_memory import Attempt
from selfdistill.training.samples import CreditedRollout
from selfdistill.training.session import Learner, Totals
from selfdistill.types import RolloutGroup, TokenIds, TrainingSample

T = TypeVar("T")
MAGNITUDE = "magnitude"  # in a run's memory: the running mean of Σ p|a|
DECAY = 0.99  # of that mean, per step
MEANS = ("divergence", "magnitude", "entropy", "clipped", "sampler_ratio")  # over the tokens that have such a number

Share: TypeAlias = tuple[list[TrainingSample], Denominators]
"""The samples of one update, and the numbers of answers and tokens that share its weight of 1."""

PerToken: TypeAlias = Mapping[str, Mapping[str, tuple[float, ...]]]
"""`log_ratio` and `entropy`, each [T] by uid."""


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """The input of one update. `weights` [3, T] by uid are those of divergence, advantage and reference divergence at
    each token. `old_logprobs` [T] by uid are None when the policy has not moved since sampling. `sampler_correction` is
    off where the sampled log-probabilities are of another (truncated) distribution."""

    samples: Sequence[TrainingSample]
    weights: Mapping[str, Tensor]
    teacher: Sequence[ForwardPass] = ()
    reference: ForwardPass | None = None
    old_logprobs: Mapping[str, Tensor] | None = None
    sampler_correction: bool = True


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """`loss` is the objective before the update, its tokens weighed: the sum of `terms`. `log_ratio` [T] by uid is
    log q − log p in nats, p the student at the start of the step. `divergence` and `entropy` are means over tokens,
    `magnitude` that of Σ p|a|, the size of the teacher's push before any clipping, `sampler_ratio` that of
    π(y)/π_sampler(y) before its cap. `entropies` [T] by uid are those of the student before this update. `skipped`:
    loss or gradient were not finite, and the optimiser made no step."""

    loss: float
    terms: Mapping[LossTerm, float]
    grad_norm: float
    skipped: bool
    divergence: float
    magnitude: float
    entropy: float
    clipped: float
    sampler_ratio: float
    log_ratio: Mapping[str, tuple[float, ...]]
    entropies: Mapping[str, tuple[float, ...]]


def update_all(
    policy: Policy,
    learner: Learner,
    config: RunConfig,
    groups: Sequence[RolloutGroup],
    credited: Sequence[CreditedRollout],
    replayed: Sequence[TrainingSample],
    totals: Totals,
    attempt: Attempt | None = None,
) -> tuple[list[UpdateReport], dict[str, float], PerToken]:
    """All updates of a step, each on the samples of `tasks_per_update` groups and an even share of the replayed ones.

    Returns their reports, numbers about the token weights, and log-ratios and the student's entropy at the start of the
    step. `totals.memory` is brought up to date. `attempt` calls what an out-of-memory error leaves undone.
    """
    method, memory = learner.method, totals.memory
    attempt = attempt or partial(_once, config.micro_batch_tokens)
    loss_specs = list(learner.loss_specs)
    for index, spec in enumerate(loss_specs):
        if isinstance(spec.clipping, Relative):
            loss_specs[index] = replace(spec, clipping=spec.clipping.resolve(memory.get(MAGNITUDE)))
    shares: list[Share] = []
    rollouts, size = iter(credited), config.tasks_per_update or max(1, len(groups))
    for start in range(0, len(groups), size):
        entries = list(islice(rollouts, sum(len(group.rollouts) for group in groups[start : start + size])))
        samples = [
            s  # without its teacher where the schedule is at 0: the teacher need not read it
            if loss_specs[s.spec_index].teaches(totals.step)
            else replace(s, teacher_prompts=(), against_prompts=(), distil=0.0)
            for entry in entries
            for s in entry.samples
        ]
        used = [s.answer_tokens or len(s.completion_ids) for entry in entries for s in entry.samples[:1]]
        dropped = [len(entry.rollout.completion.token_ids) for entry in entries if not entry.samples]
        if samples:
            shares.append((samples, denominators(used, dropped, count_dropped=method.count_dropped)))
    if not shares:
        return [], {}, {}
    samples = [s for own, _ in shares for s in own]
    everything = [*samples, *replayed]
    if replayed:
        shares = _with_replay(shares, replayed, method.reduction)
    own = [policy.ranks.share(of_update) for of_update, _ in shares]
    mine = {s.uid for of_update in own for s in of_update}
    teacher = attempt(partial(forward.teacher_pass, policy, learner.teacher, samples, own=mine))
    reference = None
    if any(s.reference for s in everything):
        reference = attempt(partial(forward.reference_pass, policy, learner.reference_policy, everything, own=mine))
    several = len(shares) > 1
    stats: dict[str, TokenStats] = {}
    if several or any(spec.needs_table for spec in loss_specs):
        read = [s for s in everything if s.uid in mine]
        found = attempt(partial(forward.behaviour_pass, policy, loss_specs, read, teacher))
        stats = dict(policy.ranks.gather(list(found.items())))
    weights, memory, numbers = token_weights(loss_specs, method.reduction, shares, stats, totals.step, memory)
    old = {uid: found.logprobs_N for uid, found in stats.items()} if several else None
    reports = [
        update_policy(
            policy,
            learner.optimizer,
            loss_specs,
            UpdateBatch(of_update, weights, teacher, reference, old, config.sampling.whole),
            max_grad_norm=config.optimiser.max_grad_norm,
            tokens=config.micro_batch_tokens,
            attempt=attempt,
        )
        for of_update in own
    ]
    pushes = [report.magnitude for report in reports if not report.skipped and report.magnitude > 0]
    if pushes:
        mean = fmean(pushes)
        memory[MAGNITUDE] = DECAY * memory.get(MAGNITUDE, mean) + (1 - DECAY) * mean
    totals.memory = memory
    weighed = [s.uid for s in samples if loss_specs[s.spec_index].needs_table and (s.teacher_prompts or s.advantage)]
    log_ratio = _known({uid: stats[uid].log_ratio_N for uid in weighed})
    log_ratio |= {uid: row for report in reports for uid, row in report.log_ratio.items()}
    entropy = {uid: row for report in reports for uid, row in report.entropies.items()}
    entropy |= _known({uid: found.entropy_N for uid, found in stats.items()})
    return reports, numbers, {"log_ratio": log_ratio, "entropy": entropy}


def _with_replay(shares: Sequence[Share], replayed: Sequence[TrainingSample], how: Reduction) -> list[Share]:
    """The replayed answers spread evenly over the updates. Each is scaled to what it would weigh in an update of mean
    size, so that replay and training have the same shares of a step whatever the number and size of its updates."""
    divisors, found = [divisor for _, divisor in shares], list[Share]()
    for number, (samples, divisor) in enumerate(shares):
        start, end = (len(replayed) * place // len(shares) for place in (number, number + 1))
        scale = relative_size(divisor, divisors, how)
        found.append(([*samples, *(replace(s, reference=s.reference * scale) for s in replayed[start:end])], divisor))
    return found


def token_weights(
    loss_specs: Sequence[LossSpec],
    reduction: Reduction,
    shares: Sequence[Share],
    stats: Mapping[str, TokenStats],
    step: int,
    memory: Mapping[str, float],
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
    """The weight of every token of a step in divergence, advantage and reference divergence: [3, T] by uid.

    It is the token's share of its update, times the credit of its sample; where the loss weighs tokens one by one,
    that is decided from `stats`, the numbers of the behaviour pass. Tokens outside of the sample's spans weigh 0.
    Also returns the memory for the next step, and numbers for the records.
    """
    weighed: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for index, spec in enumerate(loss_specs):
        chosen = [s for own, _ in shares for s in own if s.spec_index == index and (s.teacher_prompts or s.advantage)]
        if chosen and spec.needs_table:  # which weighs them one by one
            result = weigh_tokens(spec, token_table(chosen, [stats[s.uid] for s in chosen]), step, memory)
            weighed |= by_uid(chosen, torch.stack([result.distil_N, result.advantage_N]).float().cpu())
            memory, numbers = result.memory, {**numbers, **result.numbers}
    weights: dict[str, Tensor] = {}
    for own, divisor in shares:
        lengths = [len(s.completion_ids) for s in own]
        whole = [s.answer_tokens or len(s.completion_ids) for s in own]
        shares_N = reduction_weights(lengths, reduction, divisor, whole) * counted(own)
        for s, share_T in zip(own, torch.split(shares_N, lengths), strict=True):
            credit_3T = torch.tensor([[s.distil], [s.advantage], [s.reference]]).float().repeat(1, len(share_T))
            if s.uid in weighed:
                credit_3T[:2] = weighed[s.uid]
            weights[s.uid] = share_T * credit_3T
    return weights, dict(memory), numbers


def token_table(samples: Sequence[TrainingSample], stats: Sequence[TokenStats]) -> TokenTable:
    """The samples' numbers, one row per token."""
    like = stats[0].logprobs_N
    return TokenTable(
        answer_N=per_token(samples, list(range(len(samples))), like),
        position_N=torch.cat([torch.arange(len(s.completion_ids), device=like.device) for s in samples]),
        logprobs_N=torch.cat([found.logprobs_N for found in stats]),
        log_ratio_N=torch.cat([found.log_ratio_N for found in stats]),
        teacher_entropy_N=torch.cat([found.teacher_entropy_N for found in stats]),
        counted_N=counted(samples).to(like.device),
        advantage_R=torch.tensor([s.advantage for s in samples], device=like.device),
        distil_R=torch.tensor([s.distil for s in samples], device=like.device),
    )


def counted(samples: Sequence[TrainingSample]) -> Tensor:
    """counted_N, bool: tokens in the spans of their sample."""
    rows = [torch.full((len(s.completion_ids),), s.spans is None) for s in samples]
    for sample, row_T in zip(samples, rows, strict=True):
        for start, stop in sample.spans or ():
            row_T[start:stop] = True
    return torch.cat(rows)


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    loss_specs: Sequence[LossSpec],
    batch: UpdateBatch,
    *,
    max_grad_norm: float,
    tokens: int,
    attempt: Attempt | None = None,
) -> UpdateReport:
    """One update of the policy, in micro-batches of `tokens` tokens, or as many as `attempt` gives: their size does not
    change the result."""
    if batch.reference is not None:  # samples carry their own scale
        loss_specs = [replace(spec, reference=ReferenceKL(1.0)) for spec in loss_specs]
    attempt = attempt or partial(_once, tokens)
    parts = attempt(partial(_accumulate, policy, optimizer, loss_specs, batch))
    measured = []
    for part, found in parts:
        started_N = found.stats.logprobs_N
        if batch.old_logprobs is not None and part:
            started_N = torch.cat([batch.old_logprobs[s.uid] for s in part])
        rows = by_uid(part, (found.stats.teacher_logprobs_N - started_N).cpu())  # one transfer for all samples
        entropy = by_uid(part, found.stats.entropy_N.cpu())
        known = _known({s.uid: rows[s.uid] for s in part if s.distil}), _known(entropy)
        terms_T = torch.stack([found.terms[name] for name in LOSS_TERMS]).cpu()
        numbers_MN = torch.stack([getattr(found.stats, f"{name}_N") * 1.0 for name in MEANS]).cpu()
        measured.append((known, terms_T, numbers_MN))
    by_token, terms, numbers = zip(*policy.ranks.gather(measured), strict=True)
    limit = max_grad_norm if max_grad_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), limit)
    grad_norm = float(getattr(norm, "full_tensor", lambda: norm)())  # of weights that are divided among ranks
    by_term = dict(zip(LOSS_TERMS, torch.stack(terms).sum(0).tolist(), strict=True))
    loss = sum(by_term.values())
    skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
    if not skipped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    columns = zip(MEANS, torch.cat(numbers, dim=1), strict=True)
    means = {name: 0.0 if row_N.isnan().all() else float(row_N.nanmean()) for name, row_N in columns}
    log_ratio, entropies = ({uid: row for known in by_token for uid, row in known[place].items()} for place in (0, 1))
    return UpdateReport(loss, by_term, grad_norm, skipped, **means, log_ratio=log_ratio, entropies=entropies)


def _once(tokens: int, work: Callable[[int], T]) -> T:
    return work(tokens)


def _accumulate(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    loss_specs: Sequence[LossSpec],
    batch: UpdateBatch,
    tokens: int,
) -> list[tuple[list[TrainingSample], FusedResult]]:
    """Sums the gradient over micro-batches of so many tokens, from zero; their samples and results."""
    optimizer.zero_grad(set_to_none=True)  # of an attempt that ran out of memory
    found = micro_batches(batch.samples, tokens, shares=policy.shares_prompts, launched=policy.launched)
    parts = policy.ranks.even(found)
    return [(part, _backward(policy, loss_specs[part[0].spec_index if part else 0], batch, part)) for part in parts]


def micro_batches(
    samples: Sequence[TrainingSample], tokens: int, *, shares: bool = True, launched: int = 0
) -> list[list[TrainingSample]]:
    """Samples of one loss and of similar length together, those of one prompt side by side, since a model that `shares`
    reads it once. Reading a batch takes at most `tokens` tokens, unless it is a single sample."""

    def fits(part: Sequence[TrainingSample]) -> bool:
        pairs = [(s.student_prompt_ids, s.continuation()[0] if s.observed else s.completion_ids) for s in part]
        lengths = [len(prompt) + len(ids) for prompt, ids in pairs]
        most = len(pairs) * max(lengths) if launched else 1.25 * sum(lengths) + 16 * len(pairs)
        return most <= tokens or tokens_read(pairs, shares=shares, launched=launched) <= tokens

    groups: dict[tuple[int, int, TokenIds], list[TrainingSample]] = {}
    for s in sorted(samples, key=lambda s: len(s.completion_ids)):
        key = (s.spec_index, len(s.student_prompt_ids), s.student_prompt_ids)
        groups.setdefault(key, []).append(s)
    batches: list[list[TrainingSample]] = []
    for _, group in sorted(groups.items(), key=lambda item: item[0]):
        for piece in [group] if fits(group) else [[s] for s in group]:
            if batches and batches[-1][0].spec_index == group[0].spec_index and fits([*batches[-1], *piece]):
                batches[-1] += piece
            else:
                batches.append(list(piece))
    return batches


def _known(rows: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """The rows without NaN: of a support of the teacher's top tokens some sampled tokens have no log-ratio."""
    return {uid: tuple(row_T.tolist()) for uid, row_T in rows.items() if not row_T.isnan().any()}


def _backward(policy: Policy, loss_spec: LossSpec, batch: UpdateBatch, part: Sequence[TrainingSample]) -> FusedResult:
    """Adds the gradient of one micro-batch. Log-probabilities are NaN for tokens that were not sampled from their
    prompt: there is no policy to correct for. An empty micro-batch adds zeros: other ranks have samples left."""
    hidden_ND = forward.sampled_hidden(policy, [s.student_prompt_ids for s in part], part)
    device = hidden_ND.device
    old_N = sampled_N = reference = None
    if batch.old_logprobs is not None and part:
        old = {s.uid: batch.old_logprobs[s.uid] for s in part}
        old_N = torch.cat([old[s.uid] if s.sampled_logprobs else torch.full_like(old[s.uid], math.nan) for s in part])
    if batch.sampler_correction:
        unknown = (math.nan,)
        rows = [s.sampled_logprobs or unknown * len(s.completion_ids) for s in part]
        sampled_N = torch.tensor(list(chain(*rows)), device=device)
    if batch.reference is not None and part:
        reference = TeacherStates(batch.reference.rows(part, hidden_ND), batch.reference.head)
    result = fused_loss(
        loss_spec,
        hidden_ND,
        policy.head(),
        torch.tensor([token for s in part for token in s.completion_ids], dtype=torch.long, device=device),
        TokenWeights(*torch.cat([torch.zeros(3, 0), *(batch.weights[s.uid] for s in part)], dim=1).to(device)),
        teacher=forward.teacher_states(batch.teacher, part, hidden_ND),
        reference=reference,
        old_logprobs_N=old_N,
        sampler_logprobs_N=sampled_N,
        given_N=per_token(part, [not s.sampled_logprobs for s in part], hidden_ND),
    )
    result.loss.backward()  # type: ignore[no-untyped-call]
    return replace(result, loss=result.loss.detach())  # without its graph
