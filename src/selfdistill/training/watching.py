"""What guards know of a run: its records, and words of the private contexts of its first steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfdistill.runs import EvalRecord, GuardRecord, RolloutRecord, StepRecord, read_run
from selfdistill.runs.guards import GuardOptions
from selfdistill.training.guards import check_probe, decide
from selfdistill.training.session import Session
from selfdistill.training.signals import PrivateWords, measure_signals


@dataclass
class Watch:
    """Guards of one run, as after its last step. `well` is the last step at which no guard found anything but
    forgetting, by the newest evaluation."""

    options: GuardOptions
    moves: bool
    words: PrivateWords
    steps: list[StepRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)
    last: GuardRecord = field(default_factory=lambda: GuardRecord(0, "ok"))
    well: int = 0

    def measured(self, record: StepRecord, rollouts: Sequence[RolloutRecord]) -> StepRecord:
        """The record of a new step, with its signals."""
        if self.options.action != "off":
            if record.step <= self.options.warmup:
                self.words.add(rollouts)
            record = replace(record, signals=measure_signals(rollouts, self.words))
        self.steps.append(record)
        return record

    def decided(self) -> GuardRecord | None:
        """The decision after the last step, None where it is that of the step before."""
        found = decide(self.steps, self.evals, self.options, moves=self.moves)
        before, self.last = self.last, found
        calm = all(one.family == "forgetting" for one in found.findings)
        if calm and (not self.evals or self.evals[-1].step in (found.step, 0)):
            self.well = found.step
        same = [one.signal for one in before.findings] == [one.signal for one in found.findings]
        return None if same and before.action == found.action else found


def watch(session: Session, path: Path) -> Watch:
    """The guards of a run, of which some steps may be recorded."""
    config, learner = session.config, session.learner
    assert learner is not None
    found = Watch(config.guards, learner.teacher.moves, PrivateWords(config.context.templates))
    run = read_run(path)
    found.evals = list(run.evals)
    if run.steps:
        first: dict[int, list[RolloutRecord]] = {}
        for rollout in run.rollouts():
            if rollout.step <= config.guards.warmup:
                first.setdefault(rollout.step, []).append(rollout)
        for step in sorted(first):
            found.words.add(first[step])
        found.steps = list(run.steps)
        found.decided()
    return found


def check_guards(session: Session) -> None:
    """Raises `ConfigError` for a probe that cannot decide."""
    config = session.config
    tasks = {"train": len(session.tasks[: config.evaluation.tasks])}
    tasks |= {split: len(found) for split, found in session.held_out.items()}
    check_probe(config.guards, tasks, config.evaluation.every)
