"""One generation batch: sample, judge, find what the teacher may know, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from selfdistill.evaluate import roll_out
from selfdistill.loops.recording import Totals, rollout_record, step_record
from selfdistill.loops.session import Session
from selfdistill.loops.tasks import draw_tasks
from selfdistill.runs import RolloutRecord, StepRecord
from selfdistill.runs.progress import Reporter
from selfdistill.samples import Prepared, prepare, rehearsal_sample
from selfdistill.signal import denominators
from selfdistill.step import Batch, UpdateReport, behaviour_logprobs, read_reference, read_teacher, train_step
from selfdistill.types import Completion, Outcome, Task, TrainingSample
from selfdistill.worlds.base import Pair


def one_step(
    session: Session, totals: Totals, reporter: Reporter, began: float
) -> tuple[StepRecord, list[RolloutRecord]]:
    """Samples a generation batch, learns from it, and says what happened; `totals` counts what it used."""
    config, policy = session.config, session.policy
    clock = Laps()
    reporter.phase("sampling and judging")
    tasks = draw_tasks(session.tasks, config.tasks_per_step, totals.step, config.seed)
    batch = roll_out(
        policy,
        session.world,
        session.renderer,
        tasks,
        config.sampling,
        rollouts=config.rollouts_per_task,
        seed=config.seed,
        label=str(totals.step + 1),
        version=totals.step,
    )
    rehearsed = _rehearse(session, totals.step)
    clock.lap("rollout")
    prepared = prepare(session.method, batch.groups, session.renderer)
    reporter.phase("updating")
    lr = _set_rate(session, totals.step)
    reports = _update(session, prepared, rehearsed)
    skipped = sum(report.skipped for report in reports)
    if skipped:
        reporter.note(
            f"step {totals.step + 1}: {skipped} of {len(reports)} updates skipped: loss or gradient not finite"
        )
    if skipped < len(reports):  # a batch from which nothing was learned moves no teacher either
        session.teacher.update(policy)
    clock.lap("update")
    totals.generations += len(batch.rollouts)
    totals.tokens += sum(len(r.completion.token_ids) for r in batch.rollouts)
    totals.tokens += sum(len(sample.completion_ids) for sample in rehearsed)
    totals.wall_s = time.monotonic() - began
    record = step_record(totals, prepared, reports, lr, clock.seconds)
    evidence = {uid: row for report in reports for uid, row in report.evidence.items()}
    records = [rollout_record(totals.step + 1, entry, batch.faults, evidence) for entry in prepared]
    return record, records


def _update(session: Session, prepared: Sequence[Prepared], rehearsed: Sequence[TrainingSample]) -> list[UpdateReport]:
    """All optimiser steps of a generation batch."""
    config, method, policy = session.config, session.method, session.policy
    tokens = config.micro_batch_tokens
    per_update = (config.tasks_per_update or config.tasks_per_step) * config.rollouts_per_task
    parts = [prepared[start : start + per_update] for start in range(0, len(prepared), per_update)]
    samples = [entry.sample for entry in prepared if entry.sample is not None]
    if not samples:
        return []
    signal = method.signal(config.sampling.temperature or 1.0)
    everything = [*samples, *rehearsed]
    teacher = read_teacher(policy, session.teacher, samples, tokens)
    reference = read_reference(policy, session.anchor, everything, tokens)
    old = behaviour_logprobs(policy, everything, signal.temperature, tokens) if len(parts) > 1 else None
    reports = []
    for index, part in enumerate(parts):
        own = [entry.sample for entry in part if entry.sample is not None]
        if not own:
            continue
        dropped = [len(entry.rollout.completion.token_ids) for entry in part if entry.sample is None]
        over = denominators([len(sample.completion_ids) for sample in own], dropped, count_dropped=method.count_dropped)
        batch = Batch(
            samples=[*own, *rehearsed[index :: len(parts)]],
            over=over,
            teacher=teacher,
            reference=reference,
            old_logprobs=old,
            sampler_correction=config.sampling.top_p == 1.0 and config.sampling.temperature > 0,
        )
        limit = config.optimiser.max_grad_norm
        reports.append(
            train_step(policy, session.optimizer, signal, method.reduction, batch, max_grad_norm=limit, tokens=tokens)
        )
    return reports


def _rehearse(session: Session, step: int) -> list[TrainingSample]:
    """The student's own answers to questions of the past."""
    config = session.config
    if config.rehearsal is None:
        return []
    tasks = draw_tasks(session.rehearsal, config.rehearsal.per_step, step, config.seed)
    batch = roll_out(
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
    return [rehearsal_sample(r, config.rehearsal.weight) for r in batch.rollouts if r.completion.token_ids]


def _set_rate(session: Session, step: int) -> float:
    """The learning rate of a generation batch: rises linearly, then stays."""
    options = session.config.optimiser
    rate = options.lr * min(1.0, (step + 1) / max(1, options.warmup_steps))
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    return rate


class Unjudged:
    """Answers that need no verdict."""

    name = "unjudged"

    def judge(self, task: Task, completion: Completion) -> Outcome:
        """Nothing is said."""
        return Outcome(0.0)

    def judge_many(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Nothing is said of any, and no thread is started to say it."""
        return [self.judge(*pair) for pair in pairs]


@dataclass
class Laps:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """What has passed since the last lap belongs to this phase."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
