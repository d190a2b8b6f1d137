"""`selfdistill compare`: finished runs in one table, or strategies run on the same tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli import arguments as arg
from selfdistill.cli.arguments import argument, as_overrides, flag, optional
from selfdistill.cli.output import print_comparison, print_notes
from selfdistill.errors import ConfigError
from selfdistill.runs import fresh_path, read_run
from selfdistill.runs.store import write_atomic
from selfdistill.view.progress import RunDisplay

if TYPE_CHECKING:
    from selfdistill.runs.solving import SolveResult
    from selfdistill.test_time.comparison import StrategyComparison
    from selfdistill.view.discovery import ArmResults

RESULTS, CURVES = "results.md", "discovery.png"


def compare(
    given: Annotated[
        list[str] | None,
        argument(
            "Run directories (seeds of one method share a column); with --arm, settings of all arms.",
            "RUN... | KEY=VALUE...",
        ),
    ] = None,
    plot: Annotated[Path | None, optional("PNG file for the plot. (with --arm: discovery.png in --out)")] = None,
    jobs: Annotated[
        int | None,
        optional("With --arm or --resume: searches run at a time. (default: 1 on a GPU, else one per core)"),
    ] = None,
    markdown: Annotated[bool, flag("--markdown", "Print the table of runs as Markdown.")] = False,
    arm: Annotated[
        list[str] | None,
        optional(
            "A strategy to run, with a label and settings if wanted: --arm best-of-k "
            '--arm "small: hybrid strategy.batch=4". Repeatable; the last one is the baseline.'
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        optional("With --arm: a task's id, or a .jsonl file of tasks. (default: all of --data or of the environment)"),
    ] = None,
    seeds: Annotated[int | None, optional("With --arm: seeds per task. (default: 3)")] = None,
    budget: Annotated[int | None, optional("With --arm: attempts per task and seed. (default: 640)")] = None,
    model: arg.Model = None,
    env: arg.EnvName = None,
    data: arg.Data = None,
    seed: arg.Seed = None,
    out: Annotated[
        Path | None, optional("With --arm: directory of searches and results. (default: runs/strategy_comparison)")
    ] = None,
    resume: Annotated[
        Path | None, optional("Directory of a strategy comparison to resume; --arm and --seeds may add to it.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(hidden=True, help="The one search to run, by the name of its directory.")
    ] = None,
) -> None:
    """Compare runs by accuracy, cost and forgetting, or compare strategies that solve tasks at test time.

    With --arm, every strategy searches the same tasks and seeds under one budget. The report has discovery curves,
    mean attempts, and attempts to reach each level of discovery.
    """
    shared = {"model": model, "env": env, "data": data}
    kept = {**shared, "task": task, "out": out, "seed": seed, "budget": budget, "markdown": markdown or None}
    if resume is None and not arm:
        if not given:
            raise ConfigError("nothing to compare", do="name run directories, or strategies to run with --arm")
        unread = arg.given({**kept, "seeds": seeds, "jobs": jobs, "markdown": None})
        arg.refuse(unread, "finished runs are compared as they are")
        compare_finished_runs([Path(path) for path in given], plot, markdown=markdown)
        return
    from selfdistill.test_time import comparison

    if resume is not None and search is not None:  # a subprocess of this command
        comparison.run_search(search, resume, print_notes)
        return
    arms = tuple(comparison.parse_arm(text) for text in arm or ())
    if resume is not None:
        arg.refuse([*arg.given(kept), *(given or ())], "a resumed strategy comparison keeps its settings")
        saved = comparison.read_strategy_comparison(resume)
        chosen = replace(saved, arms=arms or saved.arms, seeds=saved.seeds if seeds is None else seeds)
    else:
        arg.refuse(
            arg.given({"markdown": markdown or None}), "the tables of a strategy comparison are Markdown already"
        )
        pairs = comparison.pairs_of([*as_overrides(shared), *(given or ())])
        settings, ids = comparison.task_ids(task or (), pairs, seed or 0)
        numbers = dict(as_overrides({"seeds": seeds, "budget": budget, "first_seed": seed}))
        chosen = comparison.StrategyComparison(arms, ids, settings=settings, **numbers)
    _run_comparison(chosen, resume or out or fresh_path(Path("runs"), "strategy_comparison"), plot, jobs)


def compare_finished_runs(paths: Sequence[Path], plot: Path | None, *, markdown: bool = False) -> None:
    """Prints the table of some runs, and draws their plot."""
    from selfdistill.view.plots import check_plot_file, overview

    if plot:
        check_plot_file(plot)
    runs = [read_run(path) for path in paths]
    print_comparison(runs, markdown=markdown)
    if plot:
        typer.echo(f"plot: {overview(runs, plot)}")


def arms_of(
    chosen: StrategyComparison, found: Mapping[str, Sequence[SolveResult]], tasks: Collection[str] = ()
) -> list[ArmResults]:
    """Each arm's results on some tasks (none named: on all)."""
    from selfdistill.view.discovery import arm_of

    arms = []
    for arm in chosen.arms:
        strategy = chosen.config(arm).strategy
        own = [result for result in found[arm.label] if not tasks or result.task in tasks]
        arms.append(arm_of(arm.label, own, batch=strategy.batch, independent=strategy.pooled))
    return arms


def _run_comparison(chosen: StrategyComparison, folder: Path, plot: Path | None, jobs: int | None) -> None:
    from selfdistill.test_time.comparison import run_comparison
    from selfdistill.view.discovery import discovery_figure, report
    from selfdistill.view.plots import check_plot_file

    if plot:
        check_plot_file(plot)
    with RunDisplay() as display:
        whole, found = run_comparison(chosen, folder, display, at_once=jobs)
    arms, figure = arms_of(whole, found), plot or folder / CURVES
    searched = {result.task for own in found.values() for result in own}
    skipped = ", ".join(task for task in whole.tasks if task not in searched)
    text = report(arms, whole.budget)
    text += f"\nSkipped, too long for the model of some arm: {skipped}\n" if skipped else ""
    write_atomic(folder / RESULTS, text)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"results: {folder / RESULTS}")
    typer.echo(f"plot:    {discovery_figure(arms, whole.budget, 'Discovery', figure)}")
