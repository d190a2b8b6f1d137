"""What guards know of a run: its records, words of the private contexts of its first steps, and right answers of the
last evaluation, which are read again between evaluations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from selfdistill.losses import LossSpec
from selfdistill.runs import EvalRecord, EvalSplit, GuardRecord, RolloutRecord, StepRecord, read_run
from selfdistill.runs.guards import GuardOptions
from selfdistill.training.forward import behaviour_pass
from selfdistill.training.guards import LOST, check_probe, decide, evaluation_due, probe_split, reading_due
from selfdistill.training.samples import parts_of, solved
from selfdistill.training.session import KeptAnswer, Session
from selfdistill.training.signals import PrivateWords, measure_signals
from selfdistill.types import RolloutGroup, TokenIds, TrainingSample

FEWEST = 6  # right answers that say something
MOST_TOKENS = 4096  # of all that are read again


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

    def measured(
        self, session: Session, kept: Sequence[KeptAnswer], record: StepRecord, rollouts: Sequence[RolloutRecord]
    ) -> StepRecord:
        """The record of a new step, with its signals; those of the `kept` answers where they are due to be read."""
        if self.options.action != "off":
            if record.step <= self.options.warmup:
                self.words.add(rollouts)
            signals, seconds = measure_signals(rollouts, self.words), dict(record.seconds)
            if kept and self.read_again and reading_due(self.steps, self.evals, self.options, record.step):
                began = time.monotonic()
                now = _logprobs(session, [(prompt, ids) for prompt, ids, _ in kept])
                lost = [before - after for (*_, before), after in zip(kept, now, strict=True)]
                signals |= {"lost": fmean(lost), "kept": fmean(one <= LOST for one in lost)}
                seconds["reread"] = time.monotonic() - began
            record = replace(record, signals=signals, seconds=seconds)
        self.steps.append(record)
        return record

    def doubts(self) -> bool:
        """Whether accuracy is to be measured before its time."""
        return self.options.action != "off" and evaluation_due(self.steps, self.evals, self.options)

    @property
    def read_again(self) -> EvalSplit | None:
        """The tasks whose right answers are read again; None where none are."""
        reads = self.options.reread and self.options.action != "off"
        return probe_split(self.evals, self.options) if reads else None

    def right_answers(self, session: Session, groups: Sequence[RolloutGroup]) -> list[KeptAnswer]:
        """Those of an evaluation that are to be read again."""
        right, most = [one for group in groups for one in group.rollouts if solved(one)], self.options.reread
        found, tokens = list[tuple[TokenIds, TokenIds]](), 0
        for rollout in right[:: max(1, len(right) // most)][:most]:
            part = parts_of(rollout, len(rollout.turns) - 1, session.renderer)[-1]
            tokens += len(part.prompt) + len(part.ids)
            if part.ids and tokens <= MOST_TOKENS:
                found.append((part.prompt, part.ids))
        if len(found) < FEWEST:
            return []
        return [(*pair, value) for pair, value in zip(found, _logprobs(session, found), strict=True)]

    def decided(self) -> GuardRecord | None:
        """The decision after the last step, None where it is that of the step before."""
        found = decide(self.steps, self.evals, self.options, moves=self.moves)
        before, self.last = self.last, found
        calm = all(one.family == "forgetting" for one in found.findings)
        measured = [*(step.step for step in self.steps if "kept" in step.signals), *(one.step for one in self.evals)]
        if calm and max(measured, default=0) in (found.step, 0):
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


def _logprobs(session: Session, answers: Sequence[tuple[TokenIds, TokenIds]]) -> list[float]:
    """The mean log-probability of the tokens of each answer behind its prompt."""
    samples = [TrainingSample(str(place), prompt, (), ids, ()) for place, (prompt, ids) in enumerate(answers)]
    found = behaviour_pass(session.policy, [LossSpec()], samples, (), session.config.micro_batch_tokens)
    return [float(found[sample.uid].logprobs_N.mean()) for sample in samples]


def check_guards(session: Session) -> None:
    """Raises `ConfigError` for a probe that cannot decide."""
    config = session.config
    tasks = {"train": len(session.measured_tasks)}
    tasks |= {split: len(found) for split, found in session.held_out.items()}
    check_probe(config.guards, tasks, config.evaluation.every)
