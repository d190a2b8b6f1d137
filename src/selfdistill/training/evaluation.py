"""Evaluation: the accuracy of the policy on every split, and of its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from selfdistill.config import RunConfig, resolved
from selfdistill.data.tasks import bad_rows, usable_tasks
from selfdistill.runs import EvalRecord, EvalSplit, RunDir
from selfdistill.runs.environment import describe_environment
from selfdistill.runs.events import Callback, EvalEnd, Note, Phase, no_callback
from selfdistill.training.recording import check_environment, rollout_record
from selfdistill.training.rollouts import accuracy, roll_out
from selfdistill.training.samples import CreditedRollout, credit_rollouts
from selfdistill.training.session import Session, Totals, open_session
from selfdistill.types import RolloutGroup, Task, TokenIds

STUDENT_SPLITS: tuple[EvalSplit, ...] = ("train", "held_out", "forgetting")
EVERY_SPLIT: tuple[EvalSplit, ...] = (*STUDENT_SPLITS, "teacher")
SLICE = 64  # answers between two progress events
ATTEMPTS = 2  # at each task, whose contexts the teacher reads


def measure(config: RunConfig, callback: Callback = no_callback) -> list[EvalRecord]:
    """The accuracies of a model as it is, on the splits that its environment has.

    With `config.out`, answers and accuracies are kept there as in a run's directory. Raises what opening a run raises,
    and `EnvError` when most answers could not be scored.
    """
    session = open_session(config, callback)
    run = None
    if config.out:
        environment = describe_environment(device=str(session.policy.device), isolation=session.isolation)
        run = RunDir.create(Path(config.out), {"settings": resolved(config), **environment})
    records = []
    for record, groups in measure_splits(session, Totals(), callback, STUDENT_SPLITS):
        records.append(record)
        callback(EvalEnd(record))
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        answers = [rollout_record(0, CreditedRollout(r, drop=r.drop), {}, session.renderer.tokenizer) for r in rollouts]
        if run:
            run.append(*answers, record)
        check_environment(answers)
    if run:
        run.close()
    return records


def measure_splits(
    session: Session, totals: Totals, callback: Callback, splits: Sequence[EvalSplit]
) -> Iterator[tuple[EvalRecord, list[RolloutGroup]]]:
    """Evaluates the splits that have tasks; "teacher" needs a session that learns. Yields records and answers."""
    options = session.config.evaluation
    for split in splits:
        first = session.tasks[: options.tasks]
        if split == "teacher":
            groups = _teacher(session, first, callback)
        else:
            tasks = first if split == "train" else session.held_out.get(split, [])
            tasks = usable_tasks(tasks, session.env, callback, least=0)
            groups = _answers(session, tasks, None, options.answers if split == "train" else 1, split, callback)
        if not groups:
            continue
        found = accuracy(groups)
        faults = [rollout.fault for group in groups for rollout in group.rollouts if rollout.fault]
        if faults:
            last = faults[0].strip().splitlines()[-1]
            callback(Note(f"measuring {split}: {len(faults)} answers count as wrong, not scored: {last}"))
        record = EvalRecord(
            totals.step,
            totals.completions_sampled,
            totals.wall_s,
            split,
            found.estimate,
            found.tasks,
            found.solved,
            extra={"faults": len(faults)} if faults else {},
        )
        yield record, groups


def _teacher(session: Session, tasks: Sequence[Task], callback: Callback) -> list[RolloutGroup]:
    """Answers of the teacher's weights to the prompts with context that attempts give, the ceiling of the next steps.

    Attempts are sampled as in training; those without context are left out. Of a teacher with several views, the first
    one answers.
    """
    config, learner = session.config, session.learner
    assert learner is not None
    if learner.method.teacher is None:
        return []
    callback(Phase("measuring: teacher"))
    attempts = roll_out(
        session.policy,
        session.env,
        session.renderer,
        tasks,
        config.sampling,
        rollouts=ATTEMPTS,
        seed=config.seed,
        label="eval-attempt",
        stages=learner.method.stages,
        bad_rows={} if session.all_usable else bad_rows(session.env, tasks),
    )
    credited = credit_rollouts(learner.method, attempts, session.renderer)
    read = [
        (entry.rollout.task, s.teacher_prompts[0])
        for entry in credited
        for s in entry.samples[:1]
        if s.teacher_prompts and not s.live  # the student's weights would read a live one
    ]
    if not read:
        return []
    if config.evaluation.temperature == 0:  # equal prompts have equal answers
        read = list({(task.id, prompt): (task, prompt) for task, prompt in read}.values())
    with learner.teacher.applied(session.policy, learner.teacher.views()[0]) as reader:
        tasks, prompts = [task for task, _ in read], [prompt for _, prompt in read]
        return _answers(replace(session, policy=reader), tasks, prompts, 1, "teacher", callback)


def _answers(
    session: Session,
    tasks: Sequence[Task],
    prompts: Sequence[TokenIds] | None,
    rollouts: int,
    split: str,
    callback: Callback,
) -> list[RolloutGroup]:
    """Answers in slices, with a progress event before each."""
    config, groups = session.config, list[RolloutGroup]()
    size = max(1, SLICE // rollouts)
    for start in range(0, len(tasks), size):
        callback(Phase(f"measuring: {split}", start, len(tasks)))
        groups += roll_out(
            session.policy,
            session.evaluation_env,
            session.renderer,
            tasks[start : start + size],
            replace(config.sampling, temperature=config.evaluation.temperature),
            rollouts=rollouts,
            seed=config.seed,
            label=f"eval-{split}-{start}",
            prompts=prompts[start : start + size] if prompts is not None else None,
        )
    return groups
