"""Training over tasks: sample, judge, find what the teacher may know, update, record, save; and again.

A run can be killed at any moment and goes on, on a CPU to the same bits: everything random follows from the seed, the
step and the name of a rollout, and everything else is in the checkpoint. On an accelerator the backward pass of
attention adds in no fixed order, and the last bits of two runs differ whether they were stopped or not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfdistill.config import RunConfig, resolved
from selfdistill.data.tasks import wanted_answers
from selfdistill.errors import TrainingError
from selfdistill.plugins import short_name
from selfdistill.runs import EvalSplit, RunDir, StepRecord, allowed_changes, check_records, fresh_path, read_run
from selfdistill.runs.environment import describe_environment
from selfdistill.runs.events import Callback, EvalEnd, Interrupted, Note, Phase, RunEnd, RunStart, StepEnd, no_callback
from selfdistill.runs.store import CHECKPOINTS
from selfdistill.training.evaluation import EVERY_SPLIT, STUDENT_SPLITS, measure_splits
from selfdistill.training.learning import one_step
from selfdistill.training.recording import Totals, check_environment, saved_totals, summarise, why_nothing_was_learned
from selfdistill.training.session import Learner, Session, open_session
from selfdistill.training.stopping import StopSign

PATIENCE = 10  # batches in a row without anything to learn from, after which a run is stopped
MAY_CHANGE = ("steps", "out", "checkpoint_every", "evaluation.every", "micro_batch_tokens")


def train(config: RunConfig, callback: Callback = no_callback, *, resume: bool = False) -> Path:
    """Runs, or goes on with, one training run and returns its directory.

    Raises what `selfdistill.errors` lists; `Interrupted` after Ctrl-C, when the step is finished and saved.
    """
    out = Path(config.out) if config.out else fresh_path(Path("runs"), _run_name(config))
    config = replace(config, out=str(out))
    if resume:
        allowed_changes(out, resolved(config), MAY_CHANGE)  # before a model is loaded that may be another one
    session = open_session(config, callback, learns=True)
    totals = saved_totals(session.restore(out / CHECKPOINTS, callback) if resume else None)
    with _open_run(out, config, session, totals, resume=resume) as run:
        callback(_info(out, session, totals))
        return _Training(session, run, callback, totals, StopSign(callback)).run_all()


@dataclass
class _Training:
    session: Session
    run: RunDir
    callback: Callback
    totals: Totals
    stop: StopSign

    @property
    def learner(self) -> Learner:
        assert self.session.learner is not None
        return self.session.learner

    @property
    def done(self) -> bool:
        return self.totals.step >= self.session.config.steps or self.totals.ended

    def run_all(self) -> Path:
        began = time.monotonic() - self.totals.wall_s
        if self.totals.step == 0:  # a run that was killed at once may have measured some of it
            measured = {record.split for record in read_run(self.run.path).evals}
            self._evaluate([split for split in EVERY_SPLIT if split not in measured])
        with self.stop.watched():
            while not self.done:
                self._one_step(began)
                if self.stop.asked and not self.done:
                    self._save()
                    raise Interrupted(self.run.path, self.totals.step)
        if not any(record.step == self.totals.step for record in read_run(self.run.path).evals):
            self._evaluate(EVERY_SPLIT)  # a resume that was told to end where the run had stopped
        self._save(final=True)
        summary = summarise(self.session.config, self.totals, read_run(self.run.path).evals)
        self.run.finish(summary)
        self.callback(RunEnd(summary))
        return self.run.path

    def _one_step(self, began: float) -> None:
        config, totals = self.session.config, self.totals
        record, rollouts = one_step(self.session, totals, self.callback, began)
        self.run.append(*rollouts, record)
        totals.step, totals.wall_s = record.step, record.wall_s
        self.callback(StepEnd(record))
        check_environment(rollouts)
        self._check_signal(record)
        if self.done or (config.evaluation.every and totals.step % config.evaluation.every == 0):
            self._evaluate(EVERY_SPLIT if self.done else STUDENT_SPLITS)
        if config.checkpoint_every and totals.step % config.checkpoint_every == 0 and not self.done:
            self._save()

    def _evaluate(self, splits: Sequence[EvalSplit]) -> None:
        for measured in measure_splits(self.session, self.totals, self.callback, splits):
            self.run.append(measured.record)
            self.callback(EvalEnd(measured.record))

    def _save(self, *, final: bool = False) -> None:
        self.callback(Phase("saving"))
        self.session.save(self.run.checkpoints, self.totals.step, vars(self.totals), final=final)

    def _check_signal(self, record: StepRecord) -> None:
        """Says why a batch taught nothing; ends a run that goes on like that, and refuses one that began like that."""
        self.totals.no_signal_steps = 0 if record.informative else self.totals.no_signal_steps + 1
        if record.informative:
            return
        counts = {**record.dropped, "with the reference divergence alone": record.samples}
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        reasons = reasons or f"no task has what the method reads, {self.learner.method.reads}"
        self.callback(Note(f"step {record.step} taught nothing: {reasons} (mean reward {record.reward:.2f})"))
        if self.totals.no_signal_steps < PATIENCE:
            return
        if record.accuracy == 1.0 or self.totals.step > self.totals.no_signal_steps:
            self.callback(Note(f"{PATIENCE} batches in a row taught nothing: nothing is left to learn, the run ends"))
            self.totals.ended = True
        else:
            self._save()
            raise TrainingError(
                f"{PATIENCE} batches in a row taught nothing, from the first one on",
                got=f"{reasons}; mean reward {record.reward:.2f}",
                **why_nothing_was_learned(record.dropped, self.learner.method),
            )


def _run_name(config: RunConfig) -> str:
    return f"{short_name(config.method.name)}-{short_name(config.env.name)}-seed{config.seed}"


def _open_run(out: Path, config: RunConfig, session: Session, totals: Totals, *, resume: bool) -> RunDir:
    settings = resolved(config)
    if resume:
        check_records(out, totals.step, measured=True)
        return RunDir.resume(out, totals.step, settings, MAY_CHANGE)
    trained = sum(value.numel() for value in session.policy.trainable().values())
    environment = describe_environment(device=str(session.policy.device), isolation=session.isolation)
    # Three checkpoints may lie side by side for a moment: weights, two moments of the optimiser and a shadow each.
    return RunDir.create(out, {"settings": settings, **environment}, expected_bytes=3 * 16 * trained)


def _info(out: Path, session: Session, totals: Totals) -> RunStart:
    assert session.learner is not None
    config, stages = session.config, session.learner.method.stages
    draws = config.steps * config.tasks_per_step
    asked, given = wanted_answers(session.tasks, stages, config.rollouts_per_task, draws, config.seed)
    return RunStart(
        path=out,
        method=config.method.name,
        model=config.model,
        env=session.env.name,
        device=str(session.policy.device),
        steps=config.steps,
        completions_sampled=asked,
        first_step=totals.step,
        given=given,
        more=len(stages) > 1,
    )
