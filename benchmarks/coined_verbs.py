"""The main result: SDPO and GRPO on coined verbs, three seeds each, GRPO at each rate of a grid and for twice as long.

    python benchmarks/coined_verbs.py --out runs/coined-verbs

About half an hour on two cores. A run that is already finished is not repeated, one that was stopped goes on.
Writes results.md and results.png beside the runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfdistill.cli.display import RunDisplay
from selfdistill.config import RunConfig, from_settings
from selfdistill.loops.compare import compare
from selfdistill.runs import read_run
from selfdistill.view.plots import overview
from selfdistill.view.tables import comparison

SEEDS = (0, 1, 2)
ALL = {"rehearsal": {"per_step": 32}}
GRID = {"grpo": (2.5e-4, 5e-4, 1e-3, 2e-3)}
EVALUATION = {"every": 4, "rollouts": 8, "temperature": 1.0}


def arms() -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, settings and steps of every arm; a step is 16 verbs times 8 rollouts."""
    for rate in (5e-4, 2.5e-4):
        yield f"sdpo-{rate:g}", {"method": "sdpo", "optimiser": {"lr": rate}}, 40
        yield f"sdpo-{rate:g}-rehearsal", {"method": "sdpo", "optimiser": {"lr": rate}, **ALL}, 40
    for rate in GRID["grpo"]:
        yield f"grpo-{rate:g}", {"method": "grpo", "optimiser": {"lr": rate}}, 80


def configs(out: Path, only: str) -> list[RunConfig]:
    """Every arm under every seed; a seed decides verbs and samples alike."""
    return [
        from_settings(
            settings
            | {"seed": seed, "steps": steps, "evaluation": EVALUATION, "out": str(out / f"{name}-seed{seed}")}
            | {"checkpoint_every": 20, "model": "sapling", "world": "verbs"}
        )
        for seed in SEEDS
        for name, settings, steps in arms()
        if only in name
    ]


def main() -> None:
    """Runs what is missing, then tabulates and plots everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/coined-verbs"), help="folder for runs and results")
    parser.add_argument("--only", default="", help="only arms whose name contains this")
    chosen = parser.parse_args()
    wanted = configs(chosen.out, chosen.only)
    open_runs = [config for config in wanted if not (Path(config.out) / "summary.json").exists()]
    with RunDisplay() as display:
        compare(open_runs, display.reporter)
    runs = [read_run(Path(config.out)) for config in wanted]
    (chosen.out / "results.md").write_text(comparison(runs).markdown(), encoding="utf-8")
    overview(runs, chosen.out / "results.png")


if __name__ == "__main__":
    main()
