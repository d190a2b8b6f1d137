"""Every method on the same sixteen coined verbs: 20 steps of 16 x 8 answers, each at the better of two rates.

    python benchmarks/every_method.py --out runs/every-method

Shows what a method gains and what it makes the model forget. Rates are compared on the first seed; the better one runs
on the others. `opd` learns from the weights that `sdpo` ended with. A run that is finished is not repeated, one that
was stopped goes on. Writes results.md beside the runs. About an hour on two cores with three seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from selfdistill.config import RunConfig, from_settings
from selfdistill.methods import METHODS
from selfdistill.runs import Run, read_run
from selfdistill.training.side_by_side import compare
from selfdistill.view.progress import RunDisplay
from selfdistill.view.tables import duration

RATES = (2.5e-4, 5e-4)
STEPS = 20
COMMON = {
    "model": "sapling",
    "env": "verbs",
    "steps": STEPS,
    "tasks_per_step": 16,
    "rollouts_per_task": 8,
    "tasks_per_update": 0,
    "checkpoint_every": 0,
    "sampling": {"temperature": 1.0, "max_new_tokens": 48},
    "evaluation": {"every": 0},
}
FIRST = "sdpo"  # its weights teach `opd`


def config_of(out: Path, method: str, rate: float, seed: int) -> RunConfig:
    """One run; what a method's paper asks of a large model (rates, batch sizes) is left to the common settings."""
    settings: dict[str, Any] = {"method": method, "seed": seed, "out": str(path_of(out, method, rate, seed))}
    settings["optimiser"] = {"lr": rate, "warmup_steps": 0}
    if method == "opd":
        learned = path_of(out, FIRST, max(RATES), seed) / "checkpoints" / f"step-{STEPS:06d}"
        settings["teacher"] = {"kind": "other", "model": str(learned)}
    return from_settings(COMMON | settings)


def path_of(out: Path, method: str, rate: float, seed: int) -> Path:
    """Where a run is kept."""
    return out / f"{method}-{rate:g}-seed{seed}"


def run_all(configs: Sequence[RunConfig]) -> None:
    """Runs those that are not finished."""
    waiting = [config for config in configs if not (Path(config.out) / "summary.json").exists()]
    with RunDisplay() as display:
        compare(waiting, display)


def after(run: Run, split: str, which: int = -1) -> float | None:
    """The last (or first) accuracy on a split."""
    records = [record for record in run.evals if record.split == split]
    return records[which].accuracy.value if records else None


def best_rate(out: Path, method: str, rates: Sequence[float], seed: int) -> float:
    """Of the finished rates of the grid, the one with the highest last accuracy on the verbs."""
    finished = [rate for rate in rates if (path_of(out, method, rate, seed) / "summary.json").exists()]
    return max(finished, key=lambda rate: after(read_run(path_of(out, method, rate, seed)), "train") or 0.0)


def table(out: Path, methods: Sequence[str], rates: Sequence[float], seeds: Sequence[int]) -> str:
    """One row for each method, means over seeds."""
    head = "| method | lr | new verbs | solved of 16 | teacher at the start | known verbs | plain English | wall |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for method in methods:
        rate = best_rate(out, method, rates, seeds[0])
        runs = [read_run(path_of(out, method, rate, seed)) for seed in seeds]
        solved = fmean(next(r.solved for r in reversed(run.evals) if r.split == "train") for run in runs)
        cells = [_mean(runs, "train"), f"{solved:.3g}", _mean(runs, "teacher", 0), _mean(runs, "forgetting")]
        wall = fmean(run.summary.wall_s for run in runs if run.summary)
        cells += [_mean(runs, "held_out"), duration(wall)]
        lines.append("| " + " | ".join((f"`{method}`", f"{rate:g}", *cells)) + " |")
    return "\n".join(lines) + "\n"


def _mean(runs: Sequence[Run], split: str, which: int = -1) -> str:
    values = [value for run in runs if (value := after(run, split, which)) is not None]
    if not values:
        return "–"
    spread = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def main() -> None:
    """Runs what is missing, then tabulates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/every-method"), help="folder for runs and results")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, of which the first decides the rate")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="learning rates to choose from")
    parser.add_argument("--only", nargs="*", default=[], help="only these methods")
    chosen = parser.parse_args()
    seeds = list(range(chosen.seeds))
    methods = [name for name in METHODS if not chosen.only or name in chosen.only]
    for wave in ([m for m in methods if m != "opd"], [m for m in methods if m == "opd"]):
        run_all([config_of(chosen.out, method, rate, seeds[0]) for method in wave for rate in chosen.rates])
        best = {method: best_rate(chosen.out, method, chosen.rates, seeds[0]) for method in wave}
        run_all([config_of(chosen.out, method, rate, seed) for method, rate in best.items() for seed in seeds[1:]])
    (chosen.out / "results.md").write_text(table(chosen.out, methods, chosen.rates, seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
