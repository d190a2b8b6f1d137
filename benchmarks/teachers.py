"""Teachers over a long run: frozen, EMA, trust region and live, 400 steps each, guards on *warn*.

    python -m benchmarks.teachers --out runs/teachers

SDPO on sixteen coined verbs with the smaller embedded model, two verbs of four answers a step at a learning rate of
2e-4, the three splits measured every 50 steps on 48 tasks each. Four claims of the papers in one run: a regularised
teacher does better than a live one; a live one collapses; the teacher improves (its accuracy with the context before
and after: the contexts are those of the attempts that the student then fails); answers become shorter (median of the
tokens, first and last ten steps). A run that is finished is not repeated, one that was stopped goes on. About three
minutes a run on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import arms
from selfdistill.runs import EvalSplit, Run
from selfdistill.runs.stats import mean_of_shares

TEACHERS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"kind": "frozen"},
    "EMA .01": {"kind": "ema", "rate": 0.01},
    "EMA .05": {"kind": "ema", "rate": 0.05},
    "trust region .05": {"kind": "trust_region", "rate": 0.05},
    "live": {"kind": "live"},
}
KEPT: tuple[EvalSplit, ...] = ("held_out", "forgetting")


def settings(chosen: argparse.Namespace, teacher: str, seed: int) -> dict[str, Any]:
    """One run."""
    return {
        "model": chosen.model, "env": "verbs", "method": "sdpo", "seed": seed, "device": chosen.device,
        "teacher": dict(TEACHERS[teacher]), "tasks_per_step": 2, "rollouts_per_task": 4,
        "optimiser": {"lr": chosen.lr, "warmup_steps": 0}, "checkpoint_every": 25,
        "evaluation": {"every": chosen.every, "tasks": chosen.evaluated},
        "guards": {"action": "warn", "preflight": "off"}, **arms.pairs(chosen.set),
    }  # fmt: skip


def at(runs: Sequence[Run], split: EvalSplit, *, end: bool) -> str:
    """An accuracy before the first step or after the last one, over the seeds that measured it."""
    found = [
        record.accuracy
        for run in runs
        for record in run.evals_of(split)
        if record.step == (run.steps[-1].step if end else 0)
    ]
    return arms.shown(mean_of_shares(found)) if found else "–"


def row(name: str, runs: Sequence[Run]) -> list[str]:
    """What a teacher has led to."""
    best = fmean(max(record.accuracy.value for record in run.evals_of("train")) for run in runs)
    lengths = [
        f"{median(step.completion_tokens for run in runs for step in run.steps[part]):.1f}"
        for part in (slice(10), slice(-10, None))
    ]
    warned = [str(next((record.step for record in run.guards if record.action != "ok"), "–")) for run in runs]
    accuracies = [at(runs, "train", end=True), f"{best:.2f}", *(at(runs, split, end=True) for split in KEPT)]
    teacher = [at(runs, "teacher", end=end) for end in (False, True)]
    return [name, str(len(runs)), *accuracies, *teacher, " → ".join(lengths), ", ".join(warned)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the table after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/teachers"), help="folder of runs and results")
    parser.add_argument("--model", default="sapling-small")
    parser.add_argument("--teachers", nargs="+", choices=tuple(TEACHERS), default=list(TEACHERS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations")
    parser.add_argument("--evaluated", type=int, default=48, help="tasks of each split that are measured, at most")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--tiny", action="store_true", help="two steps of one teacher")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.seeds, chosen.steps, chosen.every, chosen.evaluated, chosen.teachers = 1, 2, 1, 2, ["live"]
    found: dict[str, list[Run]] = {}
    head = ["teacher", "seeds", "new verbs at the end", "at best", "plain English", "known verbs"]
    head += ["teacher before", "and after", "tokens of an answer", "first warning"]
    for seed in range(chosen.seeds):
        for name in chosen.teachers:
            path = chosen.out / f"{name.replace(' ', '-')}-seed{seed}"
            found.setdefault(name, []).append(arms.train_to(path, chosen.steps, settings(chosen, name, seed)))
            rows = [row(*one) for one in found.items()]
            arms.save(chosen.out, "results", {"head": head, "rows": rows}, arms.table(head, rows))


if __name__ == "__main__":
    main()
