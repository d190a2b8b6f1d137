"""`selfdistill solve`: searches for solutions of hard tasks at test time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli.arguments import (
    ConfigFile,
    Data,
    EnvName,
    MethodName,
    Model,
    Overrides,
    Seed,
    as_overrides,
    optional,
)
from selfdistill.cli.output import print_settings, print_table
from selfdistill.errors import ConfigError
from selfdistill.runs.solving import SolveResult
from selfdistill.view.progress import RunDisplay
from selfdistill.view.tables import duration

if TYPE_CHECKING:
    from selfdistill.test_time.config import SolveConfig


def solve(
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None,
        optional("Task id, or .jsonl file of tasks; repeatable. (default: all tasks of --data or of the environment)"),
    ] = None,
    strategy: Annotated[
        str | None,
        optional(
            "self-distill: train on the feedback on each failure. hybrid: the same, with recent feedback in the "
            "prompt. multi-turn: feedback in the prompt, no training. best-of-k: independent attempts. grpo: train on "
            "the reward alone. FILE.py:NAME: one of your own. (default: self-distill)"
        ),
    ] = None,
    budget: Annotated[
        int | None,
        optional("Most attempts, tokens or seconds per task; see --unit. (default: 2750)"),
    ] = None,
    unit: Annotated[
        str | None,
        optional("Unit of --budget: attempts, tokens or seconds. (default: attempts)"),
    ] = None,
    config: ConfigFile = None,
    model: Model = None,
    method: MethodName = None,
    env: EnvName = None,
    data: Data = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        optional("Directory of the search. (default: runs/solve-<strategy>-…)"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Save the weights at the end of each task as a checkpoint.")
    ] = False,
    exhaust_budget: Annotated[
        bool, typer.Option("--exhaust-budget", help="Use the whole budget, even after a correct attempt.")
    ] = False,
    resume: Annotated[
        Path | None,
        optional("Directory of a search to resume; --keep, checkpoint_every and micro_batch_tokens may change."),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", help="Print the strategy's settings and exit.")
    ] = False,
) -> None:
    """Search for solutions of hard tasks at test time: attempt, train on the feedback, repeat until one is correct.

    Every task starts from the model's own weights. A correct attempt passes the tests whose feedback training sees and
    the private tests. Settings of the strategy are written strategy.KEY=VALUE.
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
    from selfdistill.test_time.solve import default_path
    from selfdistill.test_time.solve import solve as search

    path = out or resume or default_path(chosen)
    with RunDisplay("solve") as display:
        results = search(chosen, display, out=path, resume=resume is not None)
    print_results(results)
    typer.echo(f"every attempt: {path}")


def _new(
    strategy: str | None,
    settings: Sequence[str | tuple[str, object]],
    file: Path | None,
    tasks: Sequence[str],
    limits: Mapping[str, object],
) -> SolveConfig:
    from selfdistill.config import parse_override
    from selfdistill.test_time.config import solve_config
    from selfdistill.test_time.strategies.bare import SelfDistill

    found = solve_config(
        SelfDistill.name if strategy is None else strategy, settings, file=file, tasks=tasks, limits=limits
    )
    _refuse_unread(found, [parse_override(item)[0] if isinstance(item, str) else item[0] for item in settings])
    return found


def _resumed(path: Path, overrides: Sequence[str], given: Mapping[str, object]) -> SolveConfig:
    """The search in a directory, with the settings that may change. Raises `ConfigError` for any other option."""
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
            do="leave these out; --keep, checkpoint_every and micro_batch_tokens may change",
        )
    saved = read_saved(path, config_from)
    _refuse_unread(saved, keys)
    return replace(saved, run=load_config(None, overrides, resolved(saved.run)))


def _refuse_unread(config: SolveConfig, given: Collection[str]) -> None:
    """Raises `ConfigError` for settings of training, where the strategy does not train."""
    from selfdistill.test_time.config import LEARNING

    unread = [key for key in given if key == "--keep" or key.partition(".")[0] in LEARNING]
    if unread and not config.strategy.learns:
        raise ConfigError(
            f"{config.strategy.name} does not train, and this setting would have no effect",
            got=", ".join(unread),
            do="leave it out, or choose a strategy that trains, such as hybrid",
        )


def print_results(results: Sequence[SolveResult]) -> None:
    """The solutions, and the cost of each."""
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
