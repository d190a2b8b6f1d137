"""Evaluation: the accuracy of the policy on every split, and of its teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from selfdistill.config import RunConfig, resolved
from selfdistill.data.tasks import usable_tasks
from selfdistill.envs.base import ConversationEnvironment, in_short, spent_by
from selfdistill.errors import ConfigError
from selfdistill.losses.shaping import Attract
from selfdistill.runs import Estimate, EvalRecord, EvalSplit
from selfdistill.runs.events import Callback, EvalEnd, Note, Phase, no_callback
from selfdistill.runs.stats import clustered_share
from selfdistill.training.ahead import sampled_ahead
from selfdistill.training.recording import check_environment, rollout_record
from selfdistill.training.samples import CreditedRollout, credit_rollouts, session_groups, solved
from selfdistill.training.session import Session, Totals, open_session
from selfdistill.types import Rollout, RolloutGroup, Task, TokenIds

STUDENT_SPLITS: tuple[EvalSplit, ...] = ("train", "held_out", "forgetting")
EVERY_SPLIT: tuple[EvalSplit, ...] = (*STUDENT_SPLITS, "teacher")
SLICE = 64  # answers between two progress events
ATTEMPTS = 2  # at each task, whose contexts the teacher reads


class Accuracy(NamedTuple):
    """The share of solved answers with its 95 % interval, and how many tasks were solved more often than not."""

    estimate: Estimate
    tasks: int
    solved: int


def accuracy(groups: Sequence[RolloutGroup]) -> Accuracy:
    """Over all answers, clustered by task; one that the environment could not score counts as wrong.

    Groups of one task, such as those that read different contexts, are one cluster.
    """
    by_task: dict[str, list[bool]] = {}
    for group in groups:
        by_task.setdefault(group.task.id, []).extend(solved(rollout) for rollout in group.rollouts)
    counts = [(sum(own), len(own)) for own in by_task.values() if own]
    return Accuracy(clustered_share(counts), tasks=len(counts), solved=sum(2 * right > n for right, n in counts))


def measure(
    config: RunConfig, callback: Callback = no_callback, splits: Sequence[EvalSplit] = STUDENT_SPLITS
) -> list[EvalRecord]:
    """The accuracies of a model as it is, on those of the splits that its environment has.

    With `config.out`, answers and accuracies are kept there as in a run's directory. Raises what opening a run raises,
    and `EnvError` when most answers could not be scored.
    """
    session, records = open_session(config, callback), list[EvalRecord]()
    new_run = partial(session.new_run, Path(config.out), resolved(config)) if config.out else nullcontext
    with sampled_ahead(session, Path(config.out or "evaluation"), 0, callback), new_run() as run:
        for record, groups in measure_splits(session, Totals(), callback, splits):
            records.append(record)
            callback(EvalEnd(record))
            unlearned = [CreditedRollout(r, drop=r.drop) for group in groups for r in group.rollouts]
            answers = [rollout_record(0, entry, {}, session.renderer.tokenizer) for entry in unlearned]
            if run:
                run.append(*answers, record)
            check_environment(answers)
    if not records:
        got = f"{config.env.name}, {' and '.join(splits)}"
        raise ConfigError(
            "there is nothing to measure", got=got, why="it has no tasks there whose answers get a reward"
        )
    return records


def measure_splits(
    session: Session, totals: Totals, callback: Callback, splits: Sequence[EvalSplit]
) -> Iterator[tuple[EvalRecord, list[RolloutGroup]]]:
    """Evaluates the splits that have tasks; "teacher" needs a session that learns. Yields records and answers."""
    first = session.measured_tasks
    for split in splits:
        before = spent_by(session.env)
        extra: dict[str, float] = {}
        if split == "teacher":
            groups, extra = _teacher(session, first, callback)
        else:
            tasks = first if split == "train" else session.held_out.get(split, [])
            tasks = usable_tasks(tasks, session.bad_rows(tasks), callback, least=0)
            groups = _answers(session, tasks, None, split, callback)
        if not groups:
            continue
        faults = [rollout.fault for group in groups for rollout in group.rollouts if rollout.fault]
        if faults:
            first_fault = in_short(faults[0])
            callback(Note(f"measuring {split}: {len(faults)} answers count as wrong, not scored: {first_fault}"))
            extra["faults"] = float(len(faults))
        extra |= sum(session.policy.ranks.gather([spent_by(session.env) - before]), Counter[str]())
        if isinstance(session.env, ConversationEnvironment):
            extra |= _by_turns([rollout for group in groups for rollout in group.rollouts])
        used = totals.step, totals.completions_sampled, totals.wall_s
        yield EvalRecord(*used, split, *accuracy(groups), extra), groups


def _by_turns(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of conversations: the share that was solved in the first turn, and the mean number of turns."""
    lengths = [len(rollout.turns) or 1 for rollout in rollouts]
    first = [solved(rollout) and length == 1 for rollout, length in zip(rollouts, lengths, strict=True)]
    return {"first_turn": fmean(first), "turns": fmean(lengths)}


def _teacher(
    session: Session, tasks: Sequence[Task], callback: Callback
) -> tuple[list[RolloutGroup], dict[str, float]]:
    """Answers of the teacher's weights to the prompts with context that attempts give, the ceiling of the next steps;
    and as `distilled` the share of attempts that would learn from nothing but being moved towards the teacher.

    Attempts are sampled as in training; those without context are left out. Of a teacher with several views, the first
    one answers.
    """
    config, learner = session.config, session.learner
    assert learner is not None
    if learner.method.teacher is None or not tasks:
        return [], {}
    callback(Phase("measuring: teacher"))
    attempts = session_groups(
        session,
        tasks,
        rollouts=ATTEMPTS,
        label="eval-attempt",
        stages=learner.method.stages,
        bad_rows={} if session.all_usable else session.bad_rows(tasks),
    )
    credited = credit_rollouts(learner.method, attempts, session.renderer)
    read = [
        (entry.rollout.task, s.teacher_prompts[0])
        for entry in credited
        for s in entry.samples[:1]
        if s.teacher_prompts and not s.live  # the student's weights would read a live one
    ]
    specs = learner.loss_specs
    towards = [
        not any(s.advantage for s in entry.samples)
        and all(s.distil > 0 and isinstance(specs[s.spec_index].distil_sign, Attract) for s in entry.samples)
        for entry in credited
        if entry.samples
    ]
    if config.evaluation.temperature == 0:  # equal prompts have equal answers
        read = list({(task.id, prompt): (task, prompt) for task, prompt in read}.values())
    with learner.teacher.applied(session.policy, learner.teacher.views()[0]) as reader:
        tasks, prompts = [task for task, _ in read], [prompt for _, prompt in read]
        answers = _answers(replace(session, policy=reader, sampler=None), tasks, prompts, "teacher", callback)
        return answers, {"distilled": fmean(towards)} if towards else {}


def _answers(
    session: Session, tasks: Sequence[Task], prompts: Sequence[TokenIds] | None, split: str, callback: Callback
) -> list[RolloutGroup]:
    """Answers in slices, with a progress event before each; on tasks of the training set several to each."""
    count, groups = session.config.evaluation.answers if split == "train" else 1, list[RolloutGroup]()
    size = max(1, SLICE // count)
    for start in range(0, len(tasks), size):
        callback(Phase(f"measuring: {split}", start, len(tasks)))
        part = slice(start, start + size)
        read, label = None if prompts is None else prompts[part], f"eval-{split}-{start}"
        groups += session_groups(session, tasks[part], evaluates=True, rollouts=count, label=label, prompts=read)
    return groups
