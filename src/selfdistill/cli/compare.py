"""`selfdistill compare`: finished runs in one table, or strategies run on the same tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli.arguments import Data, EnvName, Model, Seed, as_overrides, optional
from selfdistill.cli.output import print_comparison, print_notes
from selfdistill.errors import ConfigError
from selfdistill.runs import fresh_path, read_run
from selfdistill.runs.store import write_atomic
from selfdistill.view.plots import check_plot_file, overview
from selfdistill.view.progress import RunDisplay

if TYPE_CHECKING:
    from selfdistill.runs.solving import SolveResult
    from selfdistill.test_time.comparison import StrategyComparison
    from selfdistill.view.discovery import ArmResults

RESULTS, CURVES = "results.md", "discovery.png"


def compare(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN... | KEY=VALUE...",
            help="Run directories (seeds of one method share a column); with --arm, settings of all arms.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        optional("PNG file for the plot. (with --arm: discovery.png in --out)"),
    ] = None,
    jobs: Annotated[
        int | None,
        optional("With --arm or --resume: searches run at a time. (default: 1 on a GPU, else one per core)"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of runs as Markdown.")] = False,
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
    budget: Annotated[
        int | None,
        optional("With --arm: attempts per task and seed. (default: 640)"),
    ] = None,
    model: Model = None,
    env: EnvName = None,
    data: Data = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        optional("With --arm: directory of searches and results. (default: runs/strategy_comparison)"),
    ] = None,
    resume: Annotated[
        Path | None,
        optional("Directory of a strategy comparison to resume; --arm and --seeds may add to it."),
    ] = None,
    search: Annotated[
        str | None, typer.Option(hidden=True, help="The one search to run, by the name of its directory.")
    ] = None,
) -> None:
    """Compare runs by accuracy, cost and forgetting, or compare strategies that solve tasks at test time.

    With --arm, every strategy searches the same tasks and seeds under one budget. The report has discovery curves,
    mean attempts, and attempts to reach each level of discovery.
    """
    flags = {"model": model, "env": env, "data": data}
    kept: dict[str, object] = {f"--{key}": value for key, value in flags.items()}
    kept |= {"--task": task, "--out": out, "--seed": seed, "--budget": budget, "--markdown": markdown or None}
    if resume is not None and search is not None:  # a subprocess of this command
        from selfdistill.test_time.comparison import run_search

        run_search(search, resume, print_notes)
    elif resume is not None:
        _refuse({**kept, "KEY=VALUE": given}, "a resumed strategy comparison keeps its settings")
        _run_comparison(_resumed(resume, arm or (), seeds), resume, plot, jobs)
    elif arm:
        _refuse({"--markdown": markdown or None}, "the tables of a strategy comparison are Markdown already")
        numbers = {"seeds": seeds, "budget": budget, "first_seed": seed}
        shared = [*as_overrides(flags), *(given or ())]
        _run_comparison(
            _new(arm, task or (), shared, numbers), out or fresh_path(Path("runs"), "strategy_comparison"), plot, jobs
        )
    elif given:
        _refuse(
            {**kept, "--seeds": seeds, "--jobs": jobs, "--markdown": None}, "finished runs are compared as they are"
        )
        _compare_finished_runs([Path(path) for path in given], plot, markdown=markdown)
    else:
        raise ConfigError("nothing to compare", do="name run directories, or strategies to run with --arm")


def _compare_finished_runs(paths: Sequence[Path], plot: Path | None, *, markdown: bool) -> None:
    if plot:
        check_plot_file(plot)
    runs = [read_run(path) for path in paths]
    print_comparison(runs, markdown=markdown)
    if plot:
        typer.echo(f"plot: {overview(runs, plot)}")


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raises `ConfigError` for options that were given and would not be read."""
    given = [name for name, value in options.items() if value not in (None, [])]
    if given:
        raise ConfigError(why, got=", ".join(given), do="leave these options out")


def _new(
    arms: Sequence[str],
    tasks: Sequence[str],
    shared: Sequence[str | tuple[str, object]],
    numbers: Mapping[str, int | None],
) -> StrategyComparison:
    from selfdistill.test_time.comparison import StrategyComparison, pairs_of, parse_arm, task_ids

    settings, ids = task_ids(tasks, pairs_of(shared), numbers["first_seed"] or 0)
    chosen = {name: value for name, value in numbers.items() if value is not None}
    return StrategyComparison(tuple(parse_arm(text) for text in arms), ids, settings=settings, **chosen)


def _resumed(path: Path, arms: Sequence[str], seeds: int | None) -> StrategyComparison:
    from selfdistill.test_time.comparison import parse_arm, read_strategy_comparison

    saved = read_strategy_comparison(path)
    added = tuple(parse_arm(text) for text in arms)
    return replace(saved, arms=added or saved.arms, seeds=saved.seeds if seeds is None else seeds)


def arms_of(
    strategy_comparison: StrategyComparison, found: Mapping[str, Sequence[SolveResult]], tasks: Collection[str] = ()
) -> list[ArmResults]:
    """Each arm's results on some tasks (none named: on all)."""
    from selfdistill.view.discovery import arm_of

    arms = []
    for arm in strategy_comparison.arms:
        strategy = strategy_comparison.config(arm).strategy
        own = [result for result in found[arm.label] if not tasks or result.task in tasks]
        arms.append(arm_of(arm.label, own, batch=strategy.batch, independent=strategy.independent))
    return arms


def _run_comparison(strategy_comparison: StrategyComparison, folder: Path, plot: Path | None, jobs: int | None) -> None:
    from selfdistill.test_time.comparison import run_comparison
    from selfdistill.view.discovery import discovery_figure, report

    if plot:
        check_plot_file(plot)
    with RunDisplay() as display:
        whole, found = run_comparison(strategy_comparison, folder, display, at_once=jobs)
    arms, figure = arms_of(whole, found), plot or folder / CURVES
    text = report(arms, whole.budget) + _skipped(whole, found)
    write_atomic(folder / RESULTS, text)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"results: {folder / RESULTS}")
    typer.echo(f"plot:    {discovery_figure(arms, whole.budget, 'Discovery', figure)}")


def _skipped(strategy_comparison: StrategyComparison, found: Mapping[str, Sequence[SolveResult]]) -> str:
    """A line that names the tasks without results."""
    searched = {result.task for own in found.values() for result in own}
    left = [task for task in strategy_comparison.tasks if task not in searched]
    return f"\nSkipped, too long for the model of some arm: {', '.join(left)}\n" if left else ""
