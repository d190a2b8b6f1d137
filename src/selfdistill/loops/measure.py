"""Measuring without learning: accuracies of the policy on every split, and of its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from selfdistill.config import EvaluationOptions, RunConfig
from selfdistill.evaluate import Accuracy, accuracy, roll_out
from selfdistill.loops.recording import Totals
from selfdistill.loops.session import Session, open_session
from selfdistill.models.sampler import SamplingOptions
from selfdistill.runs import EvalRecord, Split
from selfdistill.runs.progress import Reporter
from selfdistill.samples import prepare
from selfdistill.types import Task

EVERY_SPLIT: tuple[Split, ...] = ("train", "holdout", "retained", "teacher")


def measure(config: RunConfig, reporter: Reporter) -> list[EvalRecord]:
    """The accuracies of a model as it is, on the splits that its world has; kept in `config.out` when that is set."""
    session = open_session(config, reporter)
    splits: tuple[Split, ...] = EVERY_SPLIT[:3]
    records = list(evaluate_all(session, Totals(), reporter, splits))
    for record in records:
        reporter.evaluated(record)
    return records


def evaluate_all(session: Session, totals: Totals, reporter: Reporter, splits: Sequence[Split]) -> Iterator[EvalRecord]:
    """One record per split that there is something to ask of."""
    options = session.config.evaluation
    for split in splits:
        tasks = session.tasks[: options.tasks] if split in ("train", "teacher") else session.held_out.get(split, [])
        if not tasks or (split == "teacher" and session.method.teacher is None):
            continue
        reporter.phase(f"measuring: {split}")
        found = _teacher(session, tasks) if split == "teacher" else _student(session, tasks, split)
        if found is not None:
            yield EvalRecord(
                totals.step, totals.generations, totals.wall_s, split, found.estimate, found.tasks, found.solved
            )


def _student(session: Session, tasks: Sequence[Task], split: str) -> Accuracy:
    config = session.config
    batch = roll_out(
        session.policy,
        session.judge_for_evaluation,
        session.renderer,
        tasks,
        _sampling(config.sampling, config.evaluation),
        rollouts=config.evaluation.rollouts if split == "train" else 1,
        seed=config.seed,
        label=f"eval-{split}",
    )
    return accuracy(batch.groups)


def _teacher(session: Session, tasks: Sequence[Task]) -> Accuracy | None:
    """What the teacher's weights answer when they read what a failed attempt taught: the ceiling of the next steps.

    Attempts are sampled as in training; those that get no context are left out. None when all are.
    """
    config = session.config
    attempts = roll_out(
        session.policy,
        session.world,
        session.renderer,
        tasks,
        config.sampling,
        rollouts=2,
        seed=config.seed,
        label="eval-attempt",
    )
    read = [entry for entry in prepare(session.method, attempts.groups, session.renderer) if entry.sample]
    if not read:
        return None
    shadow = next(iter(session.teacher.views()))
    with session.teacher.applied(session.policy, shadow):
        batch = roll_out(
            session.policy,
            session.judge_for_evaluation,
            session.renderer,
            [entry.rollout.task for entry in read],
            _sampling(config.sampling, config.evaluation),
            rollouts=1,
            seed=config.seed,
            label="eval-teacher",
            prompts=[entry.sample.teacher_prompt_ids or () for entry in read if entry.sample],
        )
    return accuracy(batch.groups)


def _sampling(sampling: SamplingOptions, options: EvaluationOptions) -> SamplingOptions:
    return replace(sampling, temperature=options.temperature)
