"""The training loop: sample and score a generation batch, update, record, evaluate, save.

A run can be killed at any moment and resumes, on a CPU bit-identically: everything random follows from the seed, the
step and the name of a rollout, and everything else is in the checkpoint. On an accelerator the backward pass of
attention adds in no fixed order, and the last bits of two runs differ whether they were stopped or not.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfdistill.config import RunConfig, completed, resolved
from selfdistill.data.tasks import wanted_answers
from selfdistill.errors import CollapseError, EndpointError, TrainingError, is_out_of_memory
from selfdistill.models.checkpoint import set_aside
from selfdistill.models.policy import Ranks
from selfdistill.plugins import short_name
from selfdistill.runs import EvalSplit, GuardRecord, Run, RunDir, StepRecord, fresh_path, read_run
from selfdistill.runs.events import (
    Callback,
    EvalEnd,
    Guard,
    Interrupted,
    Note,
    Phase,
    RunEnd,
    RunStart,
    StepEnd,
    no_callback,
)
from selfdistill.runs.guards import GuardOptions
from selfdistill.runs.reader import check_records
from selfdistill.runs.scale import Colocate, SamplerOptions, ScaleOptions
from selfdistill.runs.store import CHECKPOINTS, allowed_changes
from selfdistill.scale.launch import learners, opened_by_first
from selfdistill.training import recording
from selfdistill.training.ahead import Ahead, sampled_ahead
from selfdistill.training.evaluation import EVERY_SPLIT, STUDENT_SPLITS, measure_splits
from selfdistill.training.out_of_memory import lowered, out_of_memory
from selfdistill.training.preflight import preflight, recorded_preflight, refusal
from selfdistill.training.session import Learner, Session, Totals, open_session, saved_totals
from selfdistill.training.steps import one_step
from selfdistill.training.stopping import StopSign
from selfdistill.training.watching import Watch, check_guards, watch
from selfdistill.types import RolloutGroup

PATIENCE = 10  # steps in a row without a training sample, after which a run ends
TABLES: tuple[tuple[str, type[Any]], ...] = (
    ("guards", GuardOptions),
    ("scale", ScaleOptions),
    ("scale.sampler", SamplerOptions),
    ("scale.sampler.colocate", Colocate),
)
MAY_CHANGE = (
    *("steps", "out", "checkpoint_every", "evaluation.every"),
    *("micro_batch_tokens", "sampling.batch_tokens", "activation_checkpointing", "offload"),  # none changes a result
    *(f"{table}.{item.name}" for table, kind in TABLES for item in fields(kind)),
)


def train(
    config: RunConfig, callback: Callback = no_callback, *, resume: bool = False, ranks: Ranks | None = None
) -> Path:
    """Starts or resumes one training run and returns its directory. `ranks`: of a process that has joined others.

    Raises what `selfdistill.errors` lists; `Interrupted` after Ctrl-C, when the step is finished and saved.
    """
    with learners(replace(config, out=str(run_directory(config))), ranks, resume=resume) as (joined, config):
        return _train(config, callback if joined.rank == 0 else no_callback, joined, resume=resume)


def run_directory(config: RunConfig) -> Path:
    """`out`, or one in runs/ that is not there yet."""
    name = f"{short_name(config.method.name)}-{short_name(config.env.name)}-seed{config.seed}"
    return Path(config.out) if config.out else fresh_path(Path("runs"), name)


def _train(config: RunConfig, callback: Callback, ranks: Ranks, *, resume: bool) -> Path:
    """The run of this rank, of which rank 0 alone writes and reports."""
    out, settings, changes = Path(config.out), resolved(config), dict[str, Any]()
    if resume:  # before another model may be loaded
        changes = allowed_changes(out, settings, MAY_CHANGE, partial(completed, method=type(config.make_method())))
    else:
        recorded_preflight(config)  # or an error
    session = open_session(config, callback, learns=True, ranks=ranks)
    check_guards(session)
    totals = saved_totals(session.restore(out / CHECKPOINTS, callback) if resume else None)
    if totals.lowered_to:
        session.config = lowered(session.config, totals.lowered_to)
    if resume:
        ranks.same(lambda: check_records(out, totals.step, measured=True))
    opened = partial(RunDir.resume, out, totals.step, changes) if resume else partial(session.new_run, out, settings)
    with sampled_ahead(session, out, totals.step, callback) as ahead, opened_by_first(ranks, out, opened) as run:
        callback(_info(out, session, totals))  # servers start before all else
        guards = ranks.same(lambda: watch(session, out))
        return _Training(session, run, callback, totals, StopSign(callback), guards, ahead).run_all()


@dataclass
class _Training:
    session: Session
    run: RunDir
    callback: Callback
    totals: Totals
    stop: StopSign
    guards: Watch
    ahead: Ahead | None = None
    changed: bool = False  # the weights, since the last whole step

    @property
    def learner(self) -> Learner:
        assert self.session.learner is not None
        return self.session.learner

    @property
    def ranks(self) -> Ranks:
        return self.session.policy.ranks

    @property
    def _known(self) -> Run:
        """The records so far."""
        return self.ranks.same(lambda: read_run(self.run.path))

    @property
    def done(self) -> bool:
        return self.totals.step >= self.session.config.steps or self.totals.ended

    def run_all(self) -> Path:
        began = time.monotonic() - self.totals.wall_s
        if self.totals.step == 0:
            self._before_the_first_step()
        with self.stop.watched(), self._saved_at_an_error():
            while not self.done:
                self._one_step(began)
                if self.ranks.most(self.stop.requested) and not self.done:
                    self._save()
                    raise Interrupted(self.run.path, self.totals.step)
        if not any(record.step == self.totals.step for record in self._known.evals):
            self._evaluate(EVERY_SPLIT)  # a resume that ends where the run had stopped
        self._save(final=True)
        summary = recording.summarise(self.session.config, self.totals, self._known.evals)
        self.run.finish(summary)
        self.callback(RunEnd(summary))
        return self.run.path

    @contextmanager
    def _saved_at_an_error(self) -> Iterator[None]:
        """Turns an out-of-memory error into `OutOfMemoryError`. There, and where no server is left to sample with, the
        state after the last whole step is saved, if no update of the next one has changed it."""
        changed = self.learner.optimizer.register_step_pre_hook(lambda *_: setattr(self, "changed", True))
        try:
            yield
        except (MemoryError, RuntimeError, EndpointError) as error:
            if not (isinstance(error, EndpointError) or is_out_of_memory(error)):
                raise
            failed = error
        else:
            return
        finally:
            changed.remove()
        self.learner.optimizer.zero_grad(set_to_none=True)
        together = self.ranks.size == 1 or getattr(failed, "everywhere", False)
        if saved := self.totals.step > 0 and not self.changed and together:  # else other ranks would not save with this
            self._save()
        resume = f"selfdistill train --resume {self.run.path}"
        if not isinstance(failed, EndpointError):
            raise out_of_memory(self.session.config, failed.__cause__ or failed, resume) from failed
        how = "the run is saved, and resumes" if saved else "the run resumes from its newest checkpoint"
        raise EndpointError(failed.what, got=failed.got, why=failed.why, do=f"{failed.do}; {how} with {resume}")

    def _one_step(self, began: float) -> None:
        self.changed = False
        config, totals = self.session.config, self.totals
        self.learner.teacher.held = self.guards.last.action == "hold"
        batch = self.ahead.next(totals) if self.ahead else None
        record, rollouts = one_step(self.session, totals, self.callback, began, batch)
        due = bool(config.evaluation.every) and record.step % config.evaluation.every == 0
        record = self.guards.measured(self.session, () if due else totals.kept, record, rollouts)
        self.run.append(*rollouts, record)
        totals.step, totals.wall_s, self.changed = record.step, record.wall_s, False
        self.callback(StepEnd(record))
        recording.check_environment(rollouts)
        self._check_signal(record)
        if self.done or due or self.guards.doubts():
            self._evaluate(EVERY_SPLIT if self.done else STUDENT_SPLITS, early=not (self.done or due))
        if (decision := self.guards.decided()) is not None:
            self._act(decision)
        if config.checkpoint_every and totals.step % config.checkpoint_every == 0 and not self.done:
            self._save()

    def _before_the_first_step(self) -> None:
        """Measures what is not measured yet: a run that was killed early may have some of it. Raises `TrainingError`
        where the context does not help."""
        known, options = self._known, self.session.config.guards
        measured = {record.split for record in known.evals}
        found = known.preflight or recorded_preflight(self.session.config)
        checks = options.preflight == "on" and options.action != "off" and found is None
        again = self.guards.read_again  # a run that was killed no longer has the answers
        splits = STUDENT_SPLITS if found else EVERY_SPLIT
        answers = self._evaluate([s for s in splits if checks or s not in measured or s == again], measured)
        if checks and (extra := next((r.extra for r in self.guards.evals if r.split == "teacher"), {})):
            found = preflight(answers["train"], answers["teacher"]) if extra.get("distilled", 0.0) > 0.5 else None
        if found is None or options.preflight == "off" or options.action == "off":
            return
        if known.preflight is None:
            self.run.append(found)
        if found.decision == "refuse" and options.action != "warn":
            raise refusal(found, self.run.path)
        if found.decision != "go":
            self.callback(Note(f"pre-flight: {found.reason} ({found.bare:.2f} → {found.with_context:.2f})"))

    def _evaluate(
        self, splits: Sequence[EvalSplit], measured: Collection[str] = (), *, early: bool = False
    ) -> dict[str, list[RolloutGroup]]:
        """The answers by split; what was `measured` before is not recorded again. `early`: guards want it."""
        answers: dict[str, list[RolloutGroup]] = {}
        if self.ahead:
            self.ahead.load(self.totals.step)
        for record, groups in measure_splits(self.session, self.totals, self.callback, splits):
            record = replace(record, extra={**record.extra, "early": 1.0}) if early else record
            answers[record.split] = groups
            if record.split not in measured:
                self.guards.evals.append(record)
                self.run.append(record)
                self.callback(EvalEnd(record))
        if self.ahead:
            self.ahead.sampler.rest()
        if (split := self.guards.read_again) and split in answers:
            self.totals.kept = self.guards.right_answers(self.session, answers[split])
        return answers

    def _act(self, decision: GuardRecord) -> None:
        """Records and reports a decision of the guards. At a stop all is saved, the checkpoints from after the trouble
        began are set aside, the last one before it is loaded, and `CollapseError` raised."""
        path, restored = self.run.path, None
        if decision.action == "stop":
            self._save(well=decision.since)
            restored = self.ranks.same(lambda: set_aside(self.run.checkpoints, decision.since))
            if restored is not None:
                self.session.restore(self.run.checkpoints, self.callback)
            decision = replace(decision, restored=restored)
        self.run.append(decision)
        self.callback(Guard(decision))
        if decision.action == "stop":
            good = self.run.checkpoints / f"step-{restored:06d}" if restored is not None else None
            raise CollapseError(
                f"guards stopped the run after step {decision.step}: the model gets worse",
                got="; ".join(f"{one.signal} {one.value:.3g}, limit {one.threshold:.3g}" for one in decision.findings),
                why="; ".join(one.reason for one in decision.findings),
                do=f"{good or self.session.config.model} holds the last good weights: train them with a lower "
                "optimiser.lr, a frozen teacher, or replay. Later checkpoints are beside it, as stopped-…; to continue "
                f"in spite of this: selfdistill train --resume {path} guards.action=warn",
            )

    def _save(self, *, final: bool = False, well: int | None = None) -> None:
        self.callback(Phase("saving"))
        well = self.guards.well if well is None else well
        self.session.save(self.run.checkpoints, self.totals.step, vars(self.totals), final=final, well=well)

    def _check_signal(self, record: StepRecord) -> None:
        """Notes why a step has no training samples. After `PATIENCE` such steps the run ends; if it had none from the
        start, with `TrainingError`."""
        self.totals.no_signal_steps = 0 if record.informative else self.totals.no_signal_steps + 1
        if record.informative:
            return
        counts = {**record.dropped, "with the reference divergence alone": record.samples}
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        reasons = reasons or f"no task has what the method reads, {self.learner.method.reads}"
        self.callback(
            Note(f"step {record.step} produced no training samples: {reasons} (mean reward {record.reward:.2f})")
        )
        if self.totals.no_signal_steps < PATIENCE:
            return
        if record.accuracy == 1.0 or self.totals.step > self.totals.no_signal_steps:
            self.callback(Note(f"nothing is left to learn: {PATIENCE} steps in a row produced no training samples"))
            self.totals.ended = True
        else:
            self._save()
            raise TrainingError(
                f"{PATIENCE} steps in a row produced no training samples, from the first one on",
                got=f"{reasons}; mean reward {record.reward:.2f}",
                **recording.why_nothing_was_learned(record.dropped, self.learner.method),
            )


def _info(out: Path, session: Session, totals: Totals) -> RunStart:
    assert session.learner is not None
    config, stages = session.config, session.learner.method.stages
    draws = config.steps * config.tasks_per_step
    sampled, given = wanted_answers(session.tasks, stages, config.rollouts_per_task, draws, config.seed)
    return RunStart(
        path=out,
        method=config.method.name,
        model=config.model,
        env=session.env.name,
        device=str(session.policy.device),
        steps=config.steps,
        completions_sampled=sampled,
        first_step=totals.step,
        given=given,
        more=len(stages) > 1,
    )
