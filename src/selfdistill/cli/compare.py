"""`selfdistill compare`: finished runs side by side, or ways to solve tasks, run side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli.arguments import Data, Model, Seed, WorldName, as_overrides
from selfdistill.cli.display import RunDisplay
from selfdistill.cli.output import print_comparison
from selfdistill.errors import ConfigError
from selfdistill.runs import fresh_path, read_run
from selfdistill.view.plots import overview

if TYPE_CHECKING:
    from selfdistill.loops.contest import Contest
    from selfdistill.runs.solving import SolveResult
    from selfdistill.view.discovery import Arm

RESULTS, CURVES = "results.md", "discovery.png"


def compare(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN... | KEY=VALUE...",
            help="Run directories, of which seeds of one method are put together; with --way, settings of all ways.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="PNG file to draw the curves into. (with --way: discovery.png in --out)", show_default=False),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of runs as Markdown.")] = False,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="A way to solve tasks, to be run: a strategy with settings, as in --way best-of-k "
            '--way "small: hybrid strategy.batch=4". Repeat it; the others are measured against the last one.',
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="With --way: a task's id, or a .jsonl file of tasks. (default: all tasks of --data or of the world)",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="With --way: seeds of every task.")] = 3,
    budget: Annotated[int, typer.Option(help="With --way: attempts for each task and seed.")] = 640,
    model: Model = None,
    world: WorldName = None,
    data: Data = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --way: folder of searches and results. (default: runs/contest)", show_default=False),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of a contest to go on with; ways may be added to it.", show_default=False),
    ] = None,
) -> None:
    """Put runs side by side: what was gained, what it cost, what was forgotten. Or run ways to solve tasks.

    With --way, every strategy makes its searches on the same tasks and seeds under the same budget, as many at a time
    as there are cores, and the curves of discovery are drawn with their means, ratios and levels.
    """
    flags = {"model": model, "world": world, "data": data}
    if way or resume:
        if resume is not None and any((given, task, out, seed is not None, *flags.values())):
            raise ConfigError("a resumed contest keeps its settings", got=resume, do="give --resume DIR, and --way")
        if resume is not None:
            contest = _resumed(resume, way or ())
        else:
            shared = [*as_overrides(flags), *(given or ())]
            contest = _new(way or (), task or (), shared, seeds=seeds, first_seed=seed or 0, budget=budget)
        _hold(contest, out or resume or fresh_path(Path("runs"), "contest"), plot)
        return
    if not given:
        raise ConfigError("nothing to compare", do="name run directories, or ways to be run with --way")
    unread = {"--task": task, "--out": out, "--seed": seed, **{f"--{key}": value for key, value in flags.items()}}
    if any(value is not None for value in unread.values()):
        names = ", ".join(name for name, value in unread.items() if value is not None)
        raise ConfigError("finished runs are compared as they are", got=names, do="leave these out, or name a --way")
    runs = [read_run(Path(path)) for path in given]
    print_comparison(runs, markdown=markdown)
    if plot:
        typer.echo(f"plot: {overview(runs, plot)}")


def _new(
    ways: Sequence[str], tasks: Sequence[str], shared: Sequence[str | tuple[str, object]], **numbers: int
) -> Contest:
    from selfdistill.loops.contest import Contest, pairs_of, parse_way, task_ids

    settings, ids = task_ids(tasks, pairs_of(shared), numbers["first_seed"])
    return Contest(tuple(parse_way(text) for text in ways), ids, settings=settings, **numbers)


def _resumed(path: Path, ways: Sequence[str]) -> Contest:
    from selfdistill.loops.contest import parse_way, read_contest

    saved = read_contest(path)
    return replace(saved, ways=(*saved.ways, *(parse_way(text) for text in ways)))


def arms_of(contest: Contest, found: Mapping[str, Sequence[SolveResult]], tasks: Collection[str] = ()) -> list[Arm]:
    """Each way's results on some tasks (none named: on all), as what tables and curves are made of."""
    from selfdistill.view.discovery import arm_of

    arms = []
    for way in contest.ways:
        strategy = contest.config(way).strategy
        own = [result for result in found[way.label] if not tasks or result.task in tasks]
        arms.append(arm_of(way.label, own, batch=strategy.batch, independent=strategy.independent))
    return arms


def _hold(contest: Contest, folder: Path, plot: Path | None) -> None:
    from selfdistill.loops.contest import hold
    from selfdistill.view.discovery import report

    for way in contest.ways:
        contest.config(way)  # what is wrong with a way is said before anything runs
    with RunDisplay() as display:
        whole, found = hold(contest, folder, display.reporter)
    figure = plot or folder / CURVES
    text = report(arms_of(whole, found), whole.budget, figure)
    (folder / RESULTS).write_text(text, encoding="utf-8")
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"plot:    {figure}")
    typer.echo(f"results: {folder / RESULTS}")
