"""Faults injected into runs of the embedded model: when guards see each, and what held-out accuracy was by then.

    python benchmarks/guards.py --out runs/guards               # every fault; about ten minutes of one core
    python benchmarks/guards.py --out runs/guards --only leak   # one
    python benchmarks/guards.py --out runs/guards --healthy 60  # short runs of all methods, and what guards decide
    python benchmarks/guards.py --out runs/guards --collapse    # 400 steps with a moving teacher, warned and stopped
    python benchmarks/guards.py --out runs/guards --cost        # of guards, as a share of a step of default size
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
from selfdistill.methods import METHODS, SDPO, Credit, Method
from selfdistill.methods.base import CreditOrDrop, credits_of
from selfdistill.models.teacher import Frozen
from selfdistill.runs import EvalRecord, GuardRecord, RolloutRecord, Run, StepRecord, read_run
from selfdistill.runs.guards import GuardOptions
from selfdistill.training import forward
from selfdistill.training.guards import decide
from selfdistill.training.loop import train
from selfdistill.training.signals import PrivateWords, measure_signals
from selfdistill.training.watching import Watch
from selfdistill.types import Completion, Outcome, RolloutGroup, Task

COMMON: Mapping[str, Any] = {
    "model": "sapling-small",
    "method": "sdpo",
    "env": "verbs",
    "steps": 12,
    "tasks_per_step": 8,
    "rollouts_per_task": 4,
    "checkpoint_every": 5,
    "evaluation": {"every": 5, "tasks": 24},
    "optimiser": {"lr": 5e-4, "warmup_steps": 0},
}
ACTIONS = ("warn", "stop")
HEAD = (
    "| run | seen | with guards | held-out on warn, by step | new verbs | held-out, guarded | handed back |",
    "|---|---|---|---|---|--:|--:|",
)
HERE = "benchmarks/guards.py"
FAST: Mapping[str, Any] = {"optimiser": {"lr": 2e-3, "warmup_steps": 0}}
FAULTS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "ema": {"teacher": {"kind": "ema", "rate": 0.5}},
    "ema, fast": {"teacher": {"kind": "ema", "rate": 0.5}, **FAST},
    "rate": {"optimiser": {"lr": 5e-3, "warmup_steps": 0}},
    "rate, risen": {"optimiser": {"lr": 5e-3, "warmup_steps": 10}},
    "limit": {"sampling": {"max_new_tokens": 4}},
    "leak": {"method": f"{HERE}:Leaky"},
    "useless": {"env": f"{HERE}:Useless"},
    "live": {"teacher": {"kind": "live"}, **FAST},
}
# Short, and with a few of everything; a held-out set of 16 can still decide.
SHORT: Mapping[str, Any] = {
    **COMMON,
    "steps": 9,
    "tasks_per_step": 4,
    "checkpoint_every": 0,
    "evaluation": {"every": 4, "tasks": 12},
    "guards": {"action": "warn", "preflight": "off"},
}
VARIANTS: Sequence[Mapping[str, Any]] = (
    {},
    {"method": "grpo", "optimiser": {"lr": 1e-4}},
    {"replay": {"per_step": 16}},
    {"teacher": {"kind": "ema", "rate": 0.05}},
    {"env": {"name": "verbs", "turns": 3}},
    {"lora": {"rank": 8}, "optimiser": {"lr": 2e-3}},
    {"teacher": {"kind": "trust_region", "rate": 0.1}},
    {"method": "sdpo", "skip_solved": 5, "optimiser": {"lr": 1e-3}},
    {"method": "grpo", "env": {"name": "verbs", "turns": 3}, "optimiser": {"lr": 1e-4}},
    {"model": "sapling"},
)
COLLAPSE: Mapping[str, Any] = {
    **COMMON,
    "steps": 400,
    "tasks_per_step": 2,
    "sampling": {"max_new_tokens": 16},
    "checkpoint_every": 25,
    "evaluation": {"every": 25, "tasks": 16},
}
MOVING: Mapping[str, Mapping[str, Any]] = {
    f"{kind} {lr:g}": {"teacher": teacher, "optimiser": {"lr": lr, "warmup_steps": 0}}
    for kind, teacher in (("live", {"kind": "live"}), ("ema", {"kind": "ema", "rate": 0.05}))
    for lr in (5e-4, 2e-4)
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


def run(path: Path, settings: Mapping[str, Any]) -> Run:
    """One run, unless it is there; it may end early, by the guards or by the pre-flight."""
    known = read_run(path) if path.exists() else None
    if known is None or not (known.summary or any(one.action == "stop" for one in known.guards)):
        try:
            train(from_settings({**settings, "out": str(path)}), resume=known is not None)
        except (CollapseError, TrainingError) as error:
            print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
    return read_run(path)


def run_fault(out: Path, settings: Mapping[str, Any], *, action: str) -> Run:
    """One run with guards that warn or stop."""
    return run(out, {**settings, "guards": {"action": action, "preflight": "off" if action == "warn" else "on"}})


def row(name: str, warned: Run, guarded: Run) -> str:
    """When a fault was seen, and held-out accuracy over the run with guards on warn and on stop."""
    seen = [record for record in warned.guards if any(one.family != "forgetting" for one in record.findings)]
    first = f"step {seen[0].step}: {', '.join(one.signal for one in seen[0].findings)}" if seen else "–"
    refused = guarded.preflight is not None and guarded.preflight.decision == "refuse"
    stop = next((record for record in guarded.guards if record.action == "stop"), None)
    why = ", ".join(one.signal for one in stop.findings if one.family != "forgetting") if stop else ""
    stopped = f"step {stop.step}: {why}; back to {stop.restored or 0}" if stop else "ran"
    ended = "refused before step 1" if refused else stopped
    back = stop.restored or 0 if stop else max((record.step for record in guarded.evals), default=0)
    cells = [name, first, ended, *(_curve(warned, split) for split in ("held_out", "train"))]
    return "| " + " | ".join([*cells, _at(guarded, "held_out", 10**6), _at(guarded, "held_out", back)]) + " |"


def _curve(run: Run, split: Any) -> str:
    return " ".join(f"{record.step}:{record.accuracy.value:.2f}" for record in run.evals_of(split))


def healthy(out: Path, count: int) -> list[str]:
    """Short runs of all methods and of variants, and the decisions of guards that may stop, until so many are healthy:
    a run that loses half of its held-out accuracy is not."""
    plans: list[tuple[str, Mapping[str, Any]]]
    plans = [(f"{name}-1", {"method": name, "seed": 1}) for name in METHODS if name != "opd"]
    plans += [
        (f"variant-{place}-{seed}", {**VARIANTS[place], "seed": seed})
        for seed in range(2, 2 + count)
        for place in range(len(VARIANTS))
    ]
    lines, stopped = list[str](), {"healthy": list[bool](), "collapsed": list[bool]()}
    for name, settings in plans:
        if len(stopped["healthy"]) == count:
            break
        path = out / "healthy" / name
        found = run(path, {**SHORT, **settings, "optimiser": {**COMMON["optimiser"], **settings.get("optimiser", {})}})
        if len(found.steps) < 6:
            lines.append(f"{name}: only {len(found.steps)} steps")
            continue
        decisions = recorded(path, GuardOptions())
        stops = [f"step {one.step}: {_names(one)}" for one in decisions if one.action == "stop"]
        warned = sorted({name for one in decisions for name in _names(one)})
        curves = {split: _curve(found, split) for split in ("train", "held_out", "forgetting")}
        held_out = [record.accuracy.value for record in found.evals_of("held_out")]
        kind = "collapsed" if held_out[-1] <= held_out[0] / 2 else "healthy"
        stopped[kind].append(bool(stops))
        early = sum("early" in one.extra and one.split == "train" for one in found.evals)
        decided = f"STOP {stops[0]}" if stops else "ran"
        lines.append(f"{name}: {kind}; {decided}; warned of {warned}; {early} early; {curves}")
        print(lines[-1], flush=True)  # noqa: T201
    lines += [f"{len(stops)} {kind} runs, {sum(stops)} of them stopped" for kind, stops in stopped.items()]
    return lines


def collapse(out: Path) -> list[str]:
    """Long runs with a moving teacher, at several rates, warned and stopped."""
    lines = list(HEAD)
    for name, settings in MOVING.items():
        paths = {action: out / "collapse" / f"{name}-{action}" for action in ACTIONS}
        runs = [run_fault(path, {**COLLAPSE, **settings}, action=action) for action, path in paths.items()]
        lines.append(row(name, *runs))
        print(lines[-1], flush=True)  # noqa: T201
    return lines


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
        signals = {**record.signals, **measure_signals(by_step[record.step], words)}
        steps.append(replace(record, signals=signals))
        evals: list[EvalRecord] = [one for one in run.evals if one.step <= record.step]
        kind = (run.config["settings"].get("teacher") or {}).get("kind", "")
        decision = decide(steps, evals, options, moves=kind in ("ema", "snapshot"))
        before = found[-1] if found else GuardRecord(0, "ok")
        if (decision.action, _names(decision)) != (before.action, _names(before)):
            found.append(decision)
    return found


def _names(record: GuardRecord) -> list[str]:
    return [one.signal for one in record.findings]


def cost(out: Path) -> str:
    """Seconds of guards per second of a run's steps: an EMA teacher, and a batch of the default size."""
    spent = dict[str, float]()

    def timed(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            found = real(*arguments, **options)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
            return found

        setattr(owner, name, call)

    for owner, name in ((Watch, "measured"), (Watch, "decided"), (forward, "_teacher_logprobs")):
        timed(owner, name)
    size = {"steps": 6, "tasks_per_step": 16, "rollouts_per_task": 8, "checkpoint_every": 0}
    settings = {**COMMON, **size, "teacher": {"kind": "ema", "rate": 0.05}, "guards": {"preflight": "off"}}
    found = run(out / "cost", settings)
    whole = sum(sum(record.seconds.values()) for record in found.steps)
    read = sum(record.seconds.get("reread", 0.0) for record in found.steps)
    parts = {"signals": spent["measured"] - read, "decisions": spent["decided"], "right answers read again": read}
    parts["moves of the teacher"] = spent["_teacher_logprobs"]
    shares = "; ".join(f"{name} {seconds / whole:.2%}" for name, seconds in parts.items())
    return f"guards take {sum(parts.values()) / whole:.2%} of {whole:.0f} s in {len(found.steps)} steps: {shares}"


def main() -> None:
    """Injects the faults and tabulates, or looks at recorded runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guards"), help="folder for runs and results")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=FAULTS, help="only these faults")
    parser.add_argument("--recorded", nargs="*", type=Path, help="runs on the disk")
    parser.add_argument("--healthy", type=int, default=0, help="number of short runs")
    parser.add_argument("--collapse", action="store_true", help="the long runs")
    parser.add_argument("--cost", action="store_true", help="seconds of guards in a run")
    chosen = parser.parse_args()
    if chosen.recorded:
        for path in chosen.recorded:
            found = [f"{r.step} {r.action}: {', '.join(_names(r))}" for r in recorded(path, GuardOptions())]
            print(path, len(read_run(path).steps), "steps;", "; ".join(found) or "ok")  # noqa: T201
        return
    name = "healthy" if chosen.healthy else "collapse" if chosen.collapse else "cost" if chosen.cost else "results"
    if chosen.healthy:
        lines = healthy(chosen.out, chosen.healthy)
    elif chosen.collapse:
        lines = collapse(chosen.out)
    elif chosen.cost:
        lines = [cost(chosen.out)]
        print(lines[0])  # noqa: T201
    else:
        lines = list(HEAD)
        for fault in chosen.only:
            settings = {**COMMON, **FAULTS[fault]}
            lines.append(row(fault, *(run_fault(chosen.out / f"{fault}-{a}", settings, action=a) for a in ACTIONS)))
            print(lines[-1], flush=True)  # noqa: T201
    (chosen.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
