"""The main result: SDPO and GRPO on coined verbs, three seeds each, GRPO at each rate of a grid and for twice as long.

    python benchmarks/coined_verbs.py --out runs/coined-verbs

About half an hour on two cores. A run that is already finished is not repeated, one that was stopped goes on.
Writes results.md and results.png beside the runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from selfdistill.config import RunConfig, from_settings
from selfdistill.runs import Run, read_run
from selfdistill.training.side_by_side import compare
from selfdistill.view.groups import grouped
from selfdistill.view.plots import overview
from selfdistill.view.progress import RunDisplay
from selfdistill.view.tables import comparison

SEEDS = (0, 1, 2)
SDPO_RATE = 5e-4
GRPO_RATES = (1e-4, 2.5e-4, 5e-4, 1e-3)
REHEARSAL = {"replay": {"per_step": 64, "weight": 0.5}}
COMMON = {
    "model": "sapling",
    "env": "verbs",
    "checkpoint_every": 20,
    "evaluation": {"every": 5},
}


def arms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of every arm; a step is 16 verbs times 8 rollouts."""
    sdpo = {"method": "sdpo", "optimiser": {"lr": SDPO_RATE}, "steps": 40}
    yield "sdpo", sdpo
    yield "sdpo-rehearsal", sdpo | REHEARSAL
    for rate in GRPO_RATES:
        grpo = {"method": "grpo", "optimiser": {"lr": rate}, "steps": 80}
        yield f"grpo-{rate:g}", grpo


def configs(out: Path, only: str) -> list[RunConfig]:
    """Every arm under every seed; a seed decides verbs and samples alike."""
    return [
        from_settings(COMMON | settings | {"seed": seed, "out": str(out / f"{name}-seed{seed}")})
        for seed in SEEDS
        for name, settings in arms()
        if only in name
    ]


def best_rate(runs: list[Run]) -> list[Run]:
    """SDPO's runs, and of GRPO's those at the rate whose last accuracy, over all seeds, is the highest."""
    groups = grouped(runs)
    grpo = [group for group in groups if group.label.startswith("GRPO")]
    best = max(grpo, key=lambda group: [*group.curve("train").values()][-1].value, default=None)
    return [run for group in groups if group not in grpo or group is best for run in group.runs]


def from_nothing(runs: list[Run]) -> str:
    """Of the verbs without a success among their first rollouts: how many are solved in the last step, most answers
    right. Before its first success a verb can be learned from feedback alone."""
    lines = []
    for group in grouped(runs):
        cold = solved = 0
        for run in group.runs:
            first, last = run.steps[0].step, run.steps[-1].step
            rewards: dict[int, dict[str, list[float]]] = {first: {}, last: {}}
            for rollout in run.rollouts():
                if rollout.step in rewards and rollout.reward is not None:
                    rewards[rollout.step].setdefault(rollout.task, []).append(rollout.reward)
            never = [task for task, values in rewards[first].items() if not any(values)]
            cold += len(never)
            solved += sum(2 * sum(rewards[last].get(task, [])) > len(rewards[last].get(task, [])) for task in never)
        lines.append(f"- {group.label}: {solved} of {cold}")
    return "Verbs without a success in their first eight rollouts that are solved at the end:\n\n" + "\n".join(lines)


def overtaking(runs: list[Run]) -> str:
    """After how many completions the answers sampled in training are first as often right as GRPO's at its end, seed by
    seed: the mean of GRPO's last five steps, at its best rate. Every step is looked at, not evaluations alone."""
    best = best_rate(runs)
    goal = {_seed(run): fmean(_sampled(run)[-5:]) for run in best if run.config["settings"]["method"]["name"] == "grpo"}
    lines = []
    for group in grouped(best):
        cells = []
        for run in group.runs:
            target, curve = goal[_seed(run)], _sampled(run)
            step = next((number for number, value in enumerate(curve) if value >= target), None)
            cells.append("never" if step is None else f"{run.steps[step].completions_sampled:,}")
        lines.append(f"- {group.label}: {', '.join(cells)}")
    goals = ", ".join(f"{value:.3f}" for value in goal.values())
    return f"Completions until the sampled answers are as good as GRPO's at its end ({goals}):\n\n" + "\n".join(lines)


def _sampled(run: Run) -> list[float]:
    return [step.accuracy for step in run.steps]


def _seed(run: Run) -> int:
    return int(run.config["settings"]["seed"])


def main() -> None:
    """Runs what is missing, then tabulates and plots everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/coined-verbs"), help="folder for runs and results")
    parser.add_argument("--only", default="", help="only arms whose name contains this")
    chosen = parser.parse_args()
    wanted = configs(chosen.out, chosen.only)
    open_runs = [config for config in wanted if not (Path(config.out) / "summary.json").exists()]
    with RunDisplay() as display:
        compare(open_runs, display)
    runs = [read_run(Path(config.out)) for config in wanted]
    (chosen.out / "results.md").write_text(
        f"{comparison(runs).markdown()}\n{from_nothing(runs)}\n\n{overtaking(runs)}\n", encoding="utf-8"
    )
    overview(best_rate(runs), chosen.out / "results.png")


if __name__ == "__main__":
    main()
