"""`selfdistill solve`: one hard task, or some, until they are solved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli.arguments import ConfigFile, Data, EnvName, MethodName, Model, Overrides, Seed, as_overrides
from selfdistill.cli.display import RunDisplay
from selfdistill.cli.output import print_settings, print_table
from selfdistill.errors import ConfigError
from selfdistill.runs.solving import SolveResult
from selfdistill.view.tables import duration

if TYPE_CHECKING:
    from selfdistill.test_time.config import SolveConfig


def solve(
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task's id, or a .jsonl file of tasks; repeat it for more. (default: all tasks of --data or of the "
            "environment)",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="self-distill: learn from the feedback on every failure. hybrid: the same, and read recent feedback "
            "before an attempt. multi-turn: read all feedback, learn nothing. best-of-k: independent attempts. grpo: "
            "learn from the score alone. FILE.py:NAME: one of your own. (default: self-distill)",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="Most attempts (or what --unit says) for each task. (default: 2750)", show_default=False),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="What the budget counts: attempts, tokens or seconds. (default: attempts)", show_default=False
        ),
    ] = None,
    config: ConfigFile = None,
    model: Model = None,
    method: MethodName = None,
    env: EnvName = None,
    data: Data = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the search. (default: runs/solve-<strategy>-…)", show_default=False),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the weights that every task ends with, in its checkpoints.")
    ] = False,
    exhaust_budget: Annotated[
        bool, typer.Option("--exhaust-budget", help="Use the whole budget, also after a right attempt.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Directory of a search to go on with; its settings are kept, but for --keep, checkpoint_every and "
            "micro_batch_tokens.",
            show_default=False,
        ),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", help="Print the settings of the strategy and exit.")
    ] = False,
) -> None:
    """Solve hard tasks at test time: attempt, hear why it failed, learn, and again, until an attempt is right.

    Every task begins with the model's own weights. An attempt is right when it passes the tests that it may be told
    about, and the private ones too. Settings of the strategy are written strategy.KEY=VALUE.
    """
    flags = {"model": model, "method": method, "env": env, "data": data, "seed": seed}
    limits = {"budget": budget, "unit": unit, "exhaust_budget": exhaust_budget or None}
    if resume is not None:
        given = {"task": task, "strategy": strategy, "config": config, "out": out, **flags, **limits}
        chosen = _resumed(resume, overrides or (), given)
    else:
        settings = [*as_overrides(flags), *(overrides or ())]
        chosen = _new(strategy, settings, config, task or (), dict(as_overrides(limits)))
    if keep:
        _refuse_unread(chosen, ["--keep"])
        chosen = replace(chosen, keep=True)
    if list_settings:
        print_settings(chosen.strategy, prefix="strategy.")
        return
    _run(chosen, out or resume, resume is not None)


def _new(
    strategy: str | None,
    settings: Sequence[str | tuple[str, object]],
    file: Path | None,
    tasks: Sequence[str],
    limits: Mapping[str, object],
) -> SolveConfig:
    from selfdistill.config import parse_override
    from selfdistill.test_time.config import solve_config
    from selfdistill.test_time.strategies import SelfDistill

    found = solve_config(
        SelfDistill.name if strategy is None else strategy, settings, file=file, tasks=tasks, limits=limits
    )
    _refuse_unread(found, [parse_override(item)[0] if isinstance(item, str) else item[0] for item in settings])
    return found


def _resumed(path: Path, overrides: Sequence[str], given: Mapping[str, object]) -> SolveConfig:
    """The search of a folder, with what may change. Raises `ConfigError` for anything else that was given."""
    from selfdistill.config import load_config, parse_override, read_saved, resolved
    from selfdistill.test_time.config import config_from
    from selfdistill.test_time.search import MAY_CHANGE

    keys = [parse_override(text)[0] for text in overrides]
    kept = [f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, [])]
    kept += [key for key in keys if key not in MAY_CHANGE]
    if kept:
        raise ConfigError(
            "a resumed search keeps its settings",
            got=", ".join(kept),
            why="its records would mix two experiments",
            do="leave out what is named here; --keep, checkpoint_every and micro_batch_tokens may change",
        )
    saved = read_saved(path, config_from)
    _refuse_unread(saved, keys)
    return replace(saved, run=load_config(None, overrides, resolved(saved.run)))


def _refuse_unread(config: SolveConfig, given: Collection[str]) -> None:
    """Raises `ConfigError` for what only learning reads, where the strategy learns nothing."""
    from selfdistill.test_time.config import LEARNING

    unread = [key for key in given if key == "--keep" or key.partition(".")[0] in LEARNING]
    if unread and not config.strategy.learns:
        raise ConfigError(
            f"{config.strategy.name} learns nothing, and does not read this",
            got=", ".join(unread),
            do="leave it out, or choose a strategy that learns, such as hybrid",
        )


def _run(config: SolveConfig, out: Path | None, again: bool) -> None:
    from selfdistill.test_time.solve import default_path
    from selfdistill.test_time.solve import solve as search

    out = out or default_path(config)
    with RunDisplay("solve") as display:
        results = search(config, display, out=out, resume=again)
    print_results(results)
    typer.echo(f"every attempt: {out}")


def print_results(results: Sequence[SolveResult]) -> None:
    """The solutions, and what each of them took."""
    console = Console()
    for result in results:
        if result.solved:
            console.rule(result.task, align="left", style="dim")
            console.print(result.solution, markup=False, highlight=False, soft_wrap=True)
    header = ("task", "solved by attempt", "round", "attempts", "tokens", "time", "passed, not right")
    print_table(header, [_row(result) for result in results])
    cut = (
        sum(result.contexts_cut for result in results),
        sum(result.prompts_cut + result.left_out for result in results),
    )
    if any(cut):
        console.print(
            f"shortened to fit: {cut[0]:,} prompts of the teacher; left out or shortened in prompts of attempts: "
            f"{cut[1]:,} feedbacks",
            style="dim",
            highlight=False,
        )


def _row(result: SolveResult) -> tuple[str, ...]:
    solved = ("no", "–") if result.solved_at is None else (f"{result.solved_at:,}", f"{result.solved_round:,}")
    used = (f"{result.attempts:,}", f"{result.tokens:,}", duration(result.wall_s))
    return (result.task, *solved, *used, str(result.passed - result.right))
