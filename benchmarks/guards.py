"""Faults injected into runs of the embedded model: when guards see each, and what held-out accuracy was by then.

    python benchmarks/guards.py --out runs/guards               # every fault; about ten minutes of one core
    python benchmarks/guards.py --out runs/guards --only leak   # one
    python benchmarks/guards.py --recorded DIR …                # what guards would have decided in runs on the disk

Faults: an EMA teacher of rate .5, ten times the learning rate, a token limit of four, answers that repeat the private
feedback, and feedback that says nothing. A run that is there is not repeated. Writes results.md beside the runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from selfdistill.config import from_settings
from selfdistill.envs.verbs.env import VerbsEnvironment
from selfdistill.errors import CollapseError, TrainingError
from selfdistill.losses import LossSpec
from selfdistill.methods import SDPO, Credit, Method
from selfdistill.methods.base import CreditOrDrop, credits_of
from selfdistill.models.teacher import Frozen
from selfdistill.runs import EvalRecord, GuardRecord, RolloutRecord, Run, StepRecord, read_run
from selfdistill.runs.guards import GuardOptions
from selfdistill.training.guards import decide
from selfdistill.training.loop import train
from selfdistill.training.signals import PrivateWords, measure_signals
from selfdistill.types import Completion, Outcome, RolloutGroup, Task

COMMON: Mapping[str, Any] = {
    "model": "sapling-small",
    "method": "sdpo",
    "env": "verbs",
    "steps": 15,
    "tasks_per_step": 8,
    "rollouts_per_task": 4,
    "checkpoint_every": 5,
    "evaluation": {"every": 5, "tasks": 40},
    "optimiser": {"lr": 5e-4, "warmup_steps": 0},
}
HERE = "benchmarks/guards.py"
FAULTS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "ema": {"teacher": {"kind": "ema", "rate": 0.5}},
    "rate": {"optimiser": {"lr": 5e-3, "warmup_steps": 0}},
    "limit": {"sampling": {"max_new_tokens": 4}},
    "leak": {"method": f"{HERE}:Leaky"},
    "useless": {"env": f"{HERE}:Useless"},
    "live": {"teacher": {"kind": "live"}, "optimiser": {"lr": 2e-3, "warmup_steps": 0}},
}


@dataclass(frozen=True, slots=True)
class Leaky(Method):
    """SDPO that also learns to write down the feedback: a leak of the private context."""

    teacher: ClassVar = Frozen()
    reads: ClassVar[str] = "feedback"

    def loss_spec(self, temperature: float) -> LossSpec:
        """That of SDPO."""
        return SDPO().loss_spec(temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """SDPO's credits, and the cross-entropy of the feedback as an answer."""
        found = SDPO().credit(group, index)
        credits = credits_of(found)
        texts = [c.context.feedback for c in credits if c.context is not None and c.context.feedback]
        leaks = tuple(Credit(advantage=0.3, text=text) for text in texts)
        return (*credits, *leaks) if leaks else found


class Useless(VerbsEnvironment):
    """Verbs whose feedback says nothing about the answer."""

    name = "verbs"

    def score_batch(self, pairs: Sequence[tuple[Task, Completion]]) -> Any:
        """The rewards of verbs, each with the same sentence."""
        text = "Thank you for this answer. It was read with interest by all of us."
        found = super().score_batch(pairs)
        return [replace(one, feedback=text) if isinstance(one, Outcome) and one.feedback else one for one in found]


def run_fault(out: Path, name: str, *, action: str) -> Path:
    """One run, unless it is there; it may end early, by the guards or by the pre-flight."""
    path = out / f"{name}-{action}"
    if not path.exists():
        guards = {"action": action, "preflight": "off" if action == "warn" else "on"}
        try:
            train(from_settings({**COMMON, **FAULTS[name], "guards": guards, "out": str(path)}))
        except (CollapseError, TrainingError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
    return path


def row(name: str, warned: Run, guarded: Run) -> str:
    """When a fault was seen, and held-out accuracy over the run with guards on warn and on stop."""
    seen = [record for record in warned.guards if record.action != "ok"]
    first = f"step {seen[0].step}: {', '.join(one.signal for one in seen[0].findings)}" if seen else "–"
    refused = guarded.preflight is not None and guarded.preflight.decision == "refuse"
    stop = next((record for record in guarded.guards if record.action == "stop"), None)
    ended = "refused before step 1" if refused else f"step {stop.step}, back to {stop.restored or 0}" if stop else "ran"
    back = stop.restored or 0 if stop else max((record.step for record in guarded.evals), default=0)
    cells = [name, first, ended, *(_curve(warned, split) for split in ("held_out", "train"))]
    return "| " + " | ".join([*cells, _at(guarded, "held_out", back), _at(guarded, "train", back)]) + " |"


def _curve(run: Run, split: Any) -> str:
    return " ".join(f"{record.accuracy.value:.2f}" for record in run.evals_of(split))


def _at(run: Run, split: Any, step: int) -> str:
    return next((f"{r.accuracy.value:.2f}" for r in reversed(run.evals_of(split)) if r.step <= step), "–")


def recorded(path: Path, options: GuardOptions) -> list[GuardRecord]:
    """What guards decide over a run that is on the disk, from its records and rollouts alone."""
    run, words = read_run(path), PrivateWords()
    by_step: dict[int, list[RolloutRecord]] = defaultdict(list)
    for rollout in run.rollouts():
        by_step[rollout.step].append(rollout)
    steps, found = list[StepRecord](), list[GuardRecord]()
    for record in run.steps:
        if record.step <= options.warmup:
            words.add(by_step[record.step])
        steps.append(replace(record, signals=measure_signals(by_step[record.step], words)))
        evals: list[EvalRecord] = [one for one in run.evals if one.step <= record.step]
        kind = (run.config["settings"].get("teacher") or {}).get("kind", "")
        decision = decide(steps, evals, options, moves=kind in ("ema", "snapshot"))
        before = found[-1] if found else GuardRecord(0, "ok")
        if (decision.action, _names(decision)) != (before.action, _names(before)):
            found.append(decision)
    return found


def _names(record: GuardRecord) -> list[str]:
    return [one.signal for one in record.findings]


def cost(path: Path) -> float:
    """Seconds of guards (signals and decision) per second of a run's steps."""
    run, began = read_run(path), time.perf_counter()
    by_step: dict[int, list[RolloutRecord]] = defaultdict(list)
    for rollout in run.rollouts():
        by_step[rollout.step].append(rollout)
    began, words, steps = time.perf_counter(), PrivateWords(), list[StepRecord]()
    for record in run.steps:
        words.add(by_step[record.step])
        steps.append(replace(record, signals=measure_signals(by_step[record.step], words)))
        decide(steps, run.evals, GuardOptions())
    return (time.perf_counter() - began) / sum(sum(record.seconds.values()) for record in run.steps)


def main() -> None:
    """Injects the faults and tabulates, or looks at recorded runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guards"), help="folder for runs and results")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=FAULTS, help="only these faults")
    parser.add_argument("--recorded", nargs="*", type=Path, help="runs on the disk")
    chosen = parser.parse_args()
    if chosen.recorded:
        for path in chosen.recorded:
            found = [f"{r.step} {r.action}: {', '.join(_names(r))}" for r in recorded(path, GuardOptions())]
            print(path, len(read_run(path).steps), "steps;", "; ".join(found) or "ok")  # noqa: T201
        return
    head = "| fault | seen | with guards | held-out, on warn | new verbs, on warn | held-out, handed back | new verbs |"
    lines = [head, "|---|---|---|---|---|--:|--:|"]
    for name in chosen.only:
        paths = [run_fault(chosen.out, name, action=action) for action in ("warn", "stop")]
        lines.append(row(name, *map(read_run, paths)))
        print(lines[-1], flush=True)  # noqa: T201
        print(f"guards took {cost(paths[0]):.2%} of the steps", flush=True)  # noqa: T201
    (chosen.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
