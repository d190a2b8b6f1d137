"""One step: sample and score a generation batch, learn from it, and make its records."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor

from selfdistill.config import ReplayOptions
from selfdistill.data.mixing import MixedTasks, next_tasks
from selfdistill.data.tasks import draw_tasks
from selfdistill.envs.base import spent_by
from selfdistill.models.sampler import sample
from selfdistill.plugins import seed_global
from selfdistill.runs import RolloutRecord, StepRecord
from selfdistill.runs.events import Callback, Note, Phase
from selfdistill.training.forward import move_teacher
from selfdistill.training.out_of_memory import within_memory
from selfdistill.training.recording import rollout_record, step_record
from selfdistill.training.samples import (
    CreditedRollout,
    credit_rollouts,
    replay_sample,
    session_groups,
)
from selfdistill.training.samples import solved as is_solved
from selfdistill.training.session import Session, Totals
from selfdistill.training.update import update_all
from selfdistill.types import ANSWER, Rollout, RolloutGroup, TrainingSample

Records: TypeAlias = tuple[StepRecord, list[RolloutRecord]]
"""Of a step and of its rollouts."""


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """The scored answers of one step, what the draws of the next one read (`drawn` and `solved`, see `Totals`), what
    the environment counted as its cost, numbers for the records, and how long the learner waited for it."""

    groups: Sequence[RolloutGroup]
    drawn: dict[str, int]
    solved: dict[str, int]
    spent: Mapping[str, float]
    numbers: Mapping[str, float]
    waited_s: float = 0.0


def one_step(
    session: Session, totals: Totals, callback: Callback, began: float, ahead: GenerationBatch | None = None
) -> Records:
    """Learns from the batch that was sampled `ahead`, or from one that it samples and scores; `totals` counts what it
    used."""
    timer, batch = Timer(since=time.monotonic() - (ahead.waited_s if ahead else 0.0)), ahead
    if batch is None:
        callback(Phase("sampling and scoring"))
        work = partial(sample_batch, session, totals.step, totals.drawn, totals.solved)
        batch = within_memory(session, totals, callback, lambda _: work())
    record, rollouts = learn(session, batch.groups, totals, callback, began, timer, batch.spent)
    totals.drawn, totals.solved = batch.drawn, batch.solved
    return replace(record, extra={**record.extra, **batch.numbers}), rollouts


def sample_batch(session: Session, step: int, drawn: Mapping[str, int], solved: Mapping[str, int]) -> GenerationBatch:
    """Draws the tasks of a step, and samples and scores answers to them."""
    config, skip, before, now = session.config, session.config.skip_solved, spent_by(session.env), {**drawn}
    assert session.learner is not None
    seed_global(config.seed, "batch", step)
    if skip or isinstance(session.tasks, MixedTasks):
        options: dict[str, Any] = {"drawn": now, "solved": solved, "skip": skip}
        tasks, passed_over = next_tasks(session.tasks, config.tasks_per_step, step, config.seed, **options)
    else:
        tasks, passed_over = draw_tasks(session.tasks, config.tasks_per_step, step, config.seed), 0
    groups = session_groups(
        session,
        tasks,
        rollouts=config.rollouts_per_task,
        label=str(step + 1),
        version=step,
        stages=session.learner.method.stages,
        bad_rows={} if session.all_usable else session.bad_rows(tasks),
    )
    spent = sum(session.policy.ranks.gather([spent_by(session.env) - before]), Counter[str]())
    numbers = {"solved_passed_over": float(passed_over)} if skip else {}
    return GenerationBatch(groups, now, solved_lately(solved, groups, step, skip) if skip else {}, spent, numbers)


def solved_lately(earlier: Mapping[str, int], groups: Sequence[RolloutGroup], step: int, skip: int) -> dict[str, int]:
    """By task the step in which all its answers were solved, where it is not drawn in the next one."""
    answers = {group.task.id: [one for one in group.rollouts if one.stage == ANSWER] for group in groups}
    lately = {name: at for name, at in earlier.items() if step - at < skip and name not in answers}
    return lately | {name: step for name, found in answers.items() if found and all(map(is_solved, found))}


def learn(
    session: Session,
    groups: Sequence[RolloutGroup],
    totals: Totals,
    callback: Callback,
    began: float,
    timer: Timer,
    spent: Mapping[str, float] = MappingProxyType({}),
) -> Records:
    """Updates the weights from a scored generation batch. `spent`: what the environment counted as its cost."""
    config, learner, step = session.config, session.learner, totals.step
    assert learner is not None
    seed_global(config.seed, "step", step)
    credited = credit_rollouts(learner.method, groups, session.renderer)
    replayed: list[TrainingSample] = []
    if config.replay is not None and any(entry.samples for entry in credited):
        replay = partial(_replay, session, step, config.replay)
        replayed = within_memory(session, totals, callback, lambda _: replay())
    timer.lap("rollout")
    callback(Phase("updating"))
    lr = config.optimiser.rate(step, config.steps)
    for group in learner.optimizer.param_groups:  # torchao compiles its step: a number would be a constant in it
        group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
    attempt = partial(within_memory, session, totals, callback)
    found = update_all(session.policy, learner, session.config, groups, credited, replayed, totals, attempt)
    reports, numbers, tokens = found
    if totals.lowered_to:
        numbers = {**numbers, "micro_batch_tokens": session.config.micro_batch_tokens}
    skipped = sum(report.skipped for report in reports)
    if skipped:
        callback(Note(f"step {step + 1}: {skipped} of {len(reports)} updates skipped: loss or gradient not finite"))
    shock = None
    if skipped < len(reports):  # without an update the teacher does not move either
        samples = [sample for entry in credited for sample in entry.samples]
        shock = move_teacher(session.policy, learner.teacher, samples, config.micro_batch_tokens)
    numbers = {**numbers, **({} if shock is None else {"refresh_shock": shock})}
    timer.lap("update")
    totals.wall_s = time.monotonic() - began
    totals.tokens += sum(len(sample.completion_ids) for sample in replayed)
    numbers = {**numbers, **spent, "contexts_lost": sum(entry.lost for entry in credited), "replayed": len(replayed)}
    record = step_record(totals, credited, reports, lr, timer.seconds, numbers, tokens)
    return record, [rollout_record(step + 1, entry, tokens, session.renderer.tokenizer) for entry in credited]


def record_round(
    session: Session, groups: Sequence[RolloutGroup], totals: Totals, began: float, timer: Timer
) -> Records:
    """The records of a generation batch from which nothing is to be learned."""
    timer.lap("rollout")
    credited = [CreditedRollout(rollout, drop=rollout.drop) for group in groups for rollout in group.rollouts]
    totals.wall_s = time.monotonic() - began
    record = step_record(totals, credited, [], 0.0, timer.seconds, {}, {})
    return record, [rollout_record(totals.step + 1, entry, {}, session.renderer.tokenizer) for entry in credited]


def _replay(session: Session, step: int, options: ReplayOptions) -> list[TrainingSample]:
    """The student's own answers to prompts of the replay set."""
    config = session.config
    assert session.learner is not None
    tasks = draw_tasks(session.learner.replay, options.per_step, step, config.seed)
    prompts = [session.renderer.prompt(task.messages) for task in tasks]
    uids = [f"rehearsal-{step + 1}-{place}-0" for place in range(len(tasks))]
    draw = session.sampler.generate if session.sampler else sample
    found = session.policy.each(
        range(len(uids)),
        lambda places: draw(
            session.policy, [prompts[n] for n in places], config.sampling,
            seed=config.seed, uids=[uids[n] for n in places], version=step,
        ),
        first=session.sampler is not None,
    )  # fmt: skip
    if session.sampler:
        session.sampler.rest()
    rollouts = [Rollout(*entry) for entry in zip(tasks, prompts, found, strict=True)]
    return [replay_sample(rollout, options.weight) for rollout in rollouts if rollout.completion.token_ids]


@dataclass
class Timer:
    """Seconds by phase; the first one began at `since`."""

    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """Ends a phase; the time since the last lap is its time."""
        now = time.monotonic()
        self.seconds[name], self.since = now - self.since, now
