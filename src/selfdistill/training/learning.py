"""One step: sample a generation batch, judge, find what the teacher may know, update once or several times; and the
last two alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from statistics import fmean

from selfdistill.data.tasks import bad_rows, draw_tasks
from selfdistill.envs.base import Pair
from selfdistill.losses import Denominators, LossSpec, Memory, Relative, denominators, relative_size
from selfdistill.methods import Method
from selfdistill.randomness import seed_global
from selfdistill.runs import RolloutRecord, StepRecord
from selfdistill.runs.events import Callback, Note, Phase
from selfdistill.training.forward import BehaviourPass, behaviour_pass, reference_pass, teacher_pass
from selfdistill.training.recording import Totals, rollout_record, step_record
from selfdistill.training.rollouts import roll_out
from selfdistill.training.samples import CreditedRollout, credit_rollouts, replay_sample
from selfdistill.training.session import Session
from selfdistill.training.update import UpdateBatch, UpdateReport, train_step
from selfdistill.types import Completion, Outcome, RolloutGroup, Task, TrainingSample

MAGNITUDE = "magnitude"  # in a run's memory: the running mean of Σ p|a|
KEPT = 0.99  # of that mean, by each generation batch


def one_step(
    session: Session, totals: Totals, callback: Callback, began: float
) -> tuple[StepRecord, list[RolloutRecord]]:
    """Samples a generation batch, learns from it, and says what happened; `totals` counts what it used."""
    config, learner = session.config, session.learner
    assert learner is not None
    timer = Timer()
    seed_global(config.seed, "batch", totals.step)
    callback(Phase("sampling and scoring"))
    tasks = draw_tasks(session.tasks, config.tasks_per_step, totals.step, config.seed)
    groups = roll_out(
        session.policy,
        session.env,
        session.renderer,
        tasks,
        config.sampling,
        rollouts=config.rollouts_per_task,
        seed=config.seed,
        label=str(totals.step + 1),
        version=totals.step,
        stages=learner.method.stages,
        bad_rows={} if session.all_usable else bad_rows(session.env, tasks),
    )
    return learn(session, groups, totals, callback, began, timer)


def learn(
    session: Session, groups: Sequence[RolloutGroup], totals: Totals, callback: Callback, began: float, timer: Timer
) -> tuple[StepRecord, list[RolloutRecord]]:
    """Updates the weights from a batch that was sampled and scored, and says what happened."""
    learner = session.learner
    assert learner is not None
    seed_global(session.config.seed, "step", totals.step)
    credited = credit_rollouts(learner.method, groups, session.renderer)
    replayed = _replay(session, totals.step) if any(entry.samples for entry in credited) else []
    timer.lap("rollout")
    callback(Phase("updating"))
    lr = _set_rate(session, totals.step)
    learned = _update(session, credited, [len(group.rollouts) for group in groups], replayed, totals)
    reports = learned.reports
    skipped = sum(report.skipped for report in reports)
    if skipped:
        callback(
            Note(f"step {totals.step + 1}: {skipped} of {len(reports)} updates skipped: loss or gradient not finite")
        )
    if skipped < len(reports):  # a batch from which nothing was learned moves no teacher either
        learner.teacher.update(session.policy)
    timer.lap("update")
    _count(totals, groups, began)
    totals.memory = learned.memory
    totals.tokens += sum(len(sample.completion_ids) for sample in replayed)
    lost = sum(entry.lost for entry in credited)
    numbers = {**learned.numbers, "contexts_lost": lost, "replayed": len(replayed)}
    record = step_record(totals, credited, reports, lr, timer.seconds, numbers, learned.log_ratio)
    records = [rollout_record(totals.step + 1, entry, learned.log_ratio) for entry in credited]
    return record, records


def record_round(
    groups: Sequence[RolloutGroup], totals: Totals, began: float, timer: Timer
) -> tuple[StepRecord, list[RolloutRecord]]:
    """What happened in a batch from which nothing is to be learned."""
    timer.lap("rollout")
    credited = [CreditedRollout(rollout, drop=rollout.drop) for group in groups for rollout in group.rollouts]
    _count(totals, groups, began)
    record = step_record(totals, credited, [], 0.0, timer.seconds, {}, {})
    return record, [rollout_record(totals.step + 1, entry, {}) for entry in credited]


def _count(totals: Totals, groups: Sequence[RolloutGroup], began: float) -> None:
    sampled = [rollout for group in groups for rollout in group.rollouts if rollout.completion.logprobs]
    totals.completions_sampled += len(sampled)
    totals.tokens += sum(len(rollout.completion.token_ids) for rollout in sampled)
    totals.wall_s = time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Learned:
    """What the updates of a generation batch say, what they pass on to the next one, and numbers for the records."""

    reports: list[UpdateReport]
    memory: Memory
    numbers: Mapping[str, float] = field(default_factory=dict)
    log_ratio: dict[str, tuple[float, ...]] = field(default_factory=dict)


def _update(
    session: Session,
    credited: Sequence[CreditedRollout],
    sizes: Sequence[int],
    replayed: Sequence[TrainingSample],
    totals: Totals,
) -> Learned:
    """All updates (optimiser steps) of a generation batch, whose groups have these sizes."""
    learner = session.learner
    assert learner is not None
    config, method, policy = session.config, learner.method, session.policy
    tokens = config.micro_batch_tokens
    loss_specs = [_bounded(loss_spec, totals.memory) for loss_spec in learner.loss_specs]
    credited = [_heard(entry, loss_specs, totals.step) for entry in credited]
    parts = [_Part.of(part, method) for part in _parts(credited, sizes, config.tasks_per_update)]
    parts = [part for part in parts if part.samples]  # the updates that there are
    samples = [sample for part in parts for sample in part.samples]
    if not samples:
        return Learned([], totals.memory)
    everything = [*samples, *replayed]
    teacher = teacher_pass(policy, learner.teacher, samples, tokens)
    reference = reference_pass(policy, learner.reference_policy, everything, tokens)
    ahead = None
    if len(parts) > 1 or any(loss_spec.needs_table for loss_spec in loss_specs):
        ahead = behaviour_pass(
            policy, loss_specs, everything, teacher, step=totals.step, memory=totals.memory, tokens=tokens
        )
    reports = []
    for part, replayed_part in zip(parts, _shared_out(replayed, [part.over for part in parts], method), strict=True):
        batch = UpdateBatch(
            samples=[*part.samples, *replayed_part],
            over=part.over,
            teacher=teacher,
            reference=reference,
            old_logprobs=ahead.logprobs if ahead and len(parts) > 1 else None,
            sampler_correction=config.sampling.whole,
            weights=ahead.weights if ahead else {},
        )
        limit = config.optimiser.max_grad_norm
        reports.append(
            train_step(
                policy, learner.optimizer, loss_specs, method.reduction, batch, max_grad_norm=limit, tokens=tokens
            )
        )
    return _learned(reports, ahead, totals.memory)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one update learns from."""

    samples: list[TrainingSample]
    over: Denominators

    @classmethod
    def of(cls, credited: Sequence[CreditedRollout], method: Method) -> _Part:
        """These rollouts. Uses of one rollout add up, and count as one answer."""
        dropped = [len(entry.rollout.completion.token_ids) for entry in credited if not entry.samples]
        used = [len(entry.samples[0].completion_ids) for entry in credited if entry.samples]
        over = denominators(used, dropped, count_dropped=method.count_dropped)
        return cls([sample for entry in credited for sample in entry.samples], over)


def _shared_out(
    replayed: Sequence[TrainingSample], overs: Sequence[Denominators], method: Method
) -> list[list[TrainingSample]]:
    """The replayed answers of each update: every one in a single update, as evenly as it goes. Each is weighed as
    beside the trained answers of an update of mean size, so that replay and training have the same shares of a step
    whatever the number of its updates, and however small one of them is."""
    ends = [len(replayed) * number // len(overs) for number in range(len(overs) + 1)]
    scales = [relative_size(over, overs, method.reduction) for over in overs]
    return [
        [replace(sample, reference=sample.reference * scale) for sample in replayed[start:end]]
        for scale, start, end in zip(scales, ends, ends[1:], strict=False)
    ]


def _parts(
    credited: Sequence[CreditedRollout], sizes: Sequence[int], tasks_per_update: int
) -> list[list[CreditedRollout]]:
    """The rollouts of each update: those of so many tasks, or all of them."""
    rollouts, per_update = iter(credited), tasks_per_update or max(1, len(sizes))
    groups = [list(islice(rollouts, size)) for size in sizes]
    return [list(chain(*groups[start : start + per_update])) for start in range(0, len(groups), per_update)]


def _heard(entry: CreditedRollout, loss_specs: Sequence[LossSpec], step: int) -> CreditedRollout:
    """The same uses, those without a teacher whose signal gives it no say at this step: it is not read for nothing."""
    uses = [
        s if loss_specs[s.loss_spec].teaches(step) else replace(s, teacher_prompts=(), against_prompts=(), distil=0.0)
        for s in entry.samples
    ]
    return replace(entry, samples=tuple(uses))


def _bounded(loss_spec: LossSpec, memory: Memory) -> LossSpec:
    """A bound relative to how large the teacher's push has been so far becomes a number."""
    if not isinstance(loss_spec.clipping, Relative):
        return loss_spec
    return replace(loss_spec, clipping=loss_spec.clipping.resolve(memory.get(MAGNITUDE)))


def _learned(reports: list[UpdateReport], ahead: BehaviourPass | None, memory: Memory) -> Learned:
    """The running mean of the teacher's push moves on; what was seen ahead is passed on. All log-ratio is that of the
    weights at the start of the step."""
    seen = [report.magnitude for report in reports if not report.skipped and report.magnitude > 0]
    memory = dict(ahead.memory if ahead else memory)
    if seen:
        mean = fmean(seen)
        memory[MAGNITUDE] = KEPT * memory.get(MAGNITUDE, mean) + (1 - KEPT) * mean
    log_ratio = {uid: row for report in reports for uid, row in report.log_ratio.items()}
    if ahead is None:
        return Learned(reports, memory, log_ratio=log_ratio)
    seen_ahead = {uid: tuple(row.tolist()) for uid, row in ahead.log_ratio.items() if not bool(row.isnan().any())}
    return Learned(reports, memory, ahead.numbers, seen_ahead | log_ratio)


def _replay(session: Session, step: int) -> list[TrainingSample]:
    """The student's own answers to questions of the past."""
    config, learner = session.config, session.learner
    assert learner is not None
    if config.replay is None:
        return []
    tasks = draw_tasks(learner.replay, config.replay.per_step, step, config.seed)
    groups = roll_out(
        session.policy,
        Unjudged(),
        session.renderer,
        tasks,
        config.sampling,
        rollouts=1,
        seed=config.seed,
        label=f"rehearsal-{step + 1}",
        version=step,
    )
    weight, rollouts = config.replay.weight, [rollout for group in groups for rollout in group.rollouts]
    return [replay_sample(rollout, weight) for rollout in rollouts if rollout.completion.token_ids]


def _set_rate(session: Session, step: int) -> float:
    """The learning rate of all updates of a step: rises linearly, then stays."""
    assert session.learner is not None
    options = session.config.optimiser
    rate = options.lr * min(1.0, (step + 1) / max(1, options.warmup_steps))
    for group in session.learner.optimizer.param_groups:
        group["lr"] = rate
    return rate


class Unjudged:
    """Answers that need no verdict."""

    name = "unjudged"

    def score(self, task: Task, completion: Completion) -> Outcome:
        """Nothing is said."""
        return Outcome(0.0)

    def score_batch(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Nothing is said of any, and no thread is started to say it."""
        return [self.score(*pair) for pair in pairs]


@dataclass
class Timer:
    """Seconds by phase, the first one `since` then."""

    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """What has passed since the last lap belongs to this phase."""
        now = time.monotonic()
        self.seconds[name], self.since = now - self.since, now
