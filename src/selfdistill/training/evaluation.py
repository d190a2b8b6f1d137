"""Measuring without learning: accuracies of the policy on every split, and of its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfdistill.config import RunConfig, resolved
from selfdistill.data.tasks import judgeable
from selfdistill.models.sampler import SamplingOptions
from selfdistill.runs import EvalRecord, EvalSplit, RunDir
from selfdistill.runs.environment import describe_environment
from selfdistill.runs.progress import Reporter
from selfdistill.training.recording import Totals, check_environment, rollout_record
from selfdistill.training.rollouts import UpdateBatch, accuracy, roll_out
from selfdistill.training.samples import Prepared, prepare
from selfdistill.training.session import Asking, Session, open_asking
from selfdistill.types import Task, TokenIds

STUDENT_SPLITS: tuple[EvalSplit, ...] = ("train", "held_out", "forgetting")
EVERY_SPLIT: tuple[EvalSplit, ...] = (*STUDENT_SPLITS, "teacher")
SLICE = 64  # answers between two signs of progress
ATTEMPTS = 2  # of each task, for the teacher to read about


@dataclass(frozen=True, slots=True)
class Measurement:
    """An accuracy, and the answers behind it."""

    record: EvalRecord
    batch: UpdateBatch


def measure(config: RunConfig, reporter: Reporter) -> list[EvalRecord]:
    """The accuracies of a model as it is, on the splits that its environment has.

    With `config.out`, answers and accuracies are kept there as in a run's directory. Raises what opening a run raises,
    and `EnvError` when most answers could not be scored.
    """
    asking = open_asking(config, reporter)
    run = None
    if config.out:
        environment = describe_environment(device=str(asking.policy.device), isolation=asking.isolation)
        run = RunDir.create(Path(config.out), {"settings": resolved(config), **environment})
    records = []
    for measured in measure_splits(asking, Totals(), reporter, STUDENT_SPLITS):
        records.append(measured.record)
        reporter.evaluated(measured.record)
        batch = measured.batch
        answers = [rollout_record(0, Prepared(r, drop=r.drop), batch.faults, {}) for r in batch.rollouts]
        if run:
            run.append(*answers, measured.record)
        check_environment(answers)
    if run:
        run.close()
    return records


def measure_splits(
    asking: Asking, totals: Totals, reporter: Reporter, splits: Sequence[EvalSplit]
) -> Iterator[Measurement]:
    """The splits that there is something to ask of; of "teacher" only a session that learns can tell."""
    options = asking.config.evaluation
    for split in splits:
        if split == "teacher":
            assert isinstance(asking, Session)
            batch = _teacher(asking, asking.tasks[: options.tasks], reporter) if asking.method.teacher else None
        else:
            tasks = asking.tasks[: options.tasks] if split == "train" else asking.held_out.get(split, [])
            tasks = judgeable(tasks, asking.env, reporter, least=0)
            batch = _student(asking, tasks, split, reporter) if tasks else None
        if batch is not None:
            found = accuracy(batch.groups)
            if batch.faults:
                last = next(iter(batch.faults.values())).strip().splitlines()[-1]
                reporter.note(f"measuring {split}: {len(batch.faults)} answers count as wrong, not scored: {last}")
            record = EvalRecord(
                totals.step,
                totals.completions_sampled,
                totals.wall_s,
                split,
                found.estimate,
                found.tasks,
                found.solved,
                extra={"faults": len(batch.faults)} if batch.faults else {},
            )
            yield Measurement(record, batch)


def _student(asking: Asking, tasks: Sequence[Task], split: str, reporter: Reporter) -> UpdateBatch:
    rollouts = asking.config.evaluation.answers if split == "train" else 1
    return _ask(asking, tasks, None, rollouts, split, reporter)


def _teacher(session: Session, tasks: Sequence[Task], reporter: Reporter) -> UpdateBatch | None:
    """What the teacher's weights answer when they read what a failed attempt taught: the ceiling of the next steps.

    Attempts are sampled as in training; those that get no context are left out. None when all are. Of a teacher with
    several views, the first one answers.
    """
    config = session.config
    reporter.phase("measuring: teacher")
    attempts = roll_out(
        session.policy,
        session.env,
        session.renderer,
        tasks,
        config.sampling,
        rollouts=ATTEMPTS,
        seed=config.seed,
        label="eval-attempt",
        stages=session.method.stages,
    )
    prepared = prepare(session.method, attempts.groups, session.renderer)
    read = [
        (entry.rollout.task, s.teacher_prompts[0])
        for entry in prepared
        for s in entry.samples[:1]
        if s.teacher_prompts and not s.live  # a live view is the student's: of this prompt the train split tells
    ]
    if not read:
        return None
    if config.evaluation.temperature == 0:  # a prompt that comes twice would get the same answer twice
        read = list({(task.id, prompt): (task, prompt) for task, prompt in read}.values())
    with session.teacher.applied(session.policy, session.teacher.views()[0]) as reader:
        asking = replace(session, policy=reader)
        return _ask(asking, [task for task, _ in read], [prompt for _, prompt in read], 1, "teacher", reporter)


def _ask(
    asking: Asking,
    tasks: Sequence[Task],
    prompts: Sequence[TokenIds] | None,
    rollouts: int,
    split: str,
    reporter: Reporter,
) -> UpdateBatch:
    """Answers in slices, so that somebody who waits sees how far it is."""
    config, whole = asking.config, UpdateBatch([], {})
    size = max(1, SLICE // rollouts)
    for start in range(0, len(tasks), size):
        reporter.phase(f"measuring: {split}", start, len(tasks))
        part = roll_out(
            asking.policy,
            asking.evaluation_env,
            asking.renderer,
            tasks[start : start + size],
            _sampling(config),
            rollouts=rollouts,
            seed=config.seed,
            label=f"eval-{split}-{start}",
            prompts=prompts[start : start + size] if prompts is not None else None,
        )
        whole = UpdateBatch(whole.groups + part.groups, whole.faults | part.faults)
    return whole


def _sampling(config: RunConfig) -> SamplingOptions:
    return replace(config.sampling, temperature=config.evaluation.temperature)
