"""`selfdistill solve`: searches for solutions of hard tasks at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selfdistill.cli import arguments as arg
from selfdistill.cli.arguments import as_overrides, flag, optional
from selfdistill.cli.output import print_settings, print_table
from selfdistill.runs.solving import SolveResult
from selfdistill.view.progress import RunDisplay
from selfdistill.view.tables import duration


def solve(
    overrides: arg.Overrides = None,
    task: Annotated[
        list[str] | None,
        optional("Task id, or .jsonl file of tasks; repeatable. (default: all tasks of --data or of the environment)"),
    ] = None,
    strategy: Annotated[
        str | None,
        optional(
            "self-distill: train on the feedback on each failure. hybrid: the same, with recent feedback in the "
            "prompt. read-first: multi-turn, and training once failures repeat. multi-turn: feedback in the prompt, no "
            "training. best-of-k: independent attempts. grpo: train on the reward alone. FILE.py:NAME: one of your "
            "own. (default: self-distill)"
        ),
    ] = None,
    budget: Annotated[
        int | None, optional("Most attempts, tokens or seconds per task; see --unit. (default: 2750)")
    ] = None,
    unit: Annotated[str | None, optional("Unit of --budget: attempts, tokens or seconds. (default: attempts)")] = None,
    config: arg.ConfigFile = None,
    model: arg.Model = None,
    method: arg.MethodName = None,
    env: arg.EnvName = None,
    data: arg.Data = None,
    seed: arg.Seed = None,
    out: Annotated[Path | None, optional("Directory of the search. (default: runs/solve-<strategy>-…)")] = None,
    keep: Annotated[bool, flag("--keep", "Save the weights at the end of each task as a checkpoint.")] = False,
    exhaust_budget: Annotated[
        bool, flag("--exhaust-budget", "Use the whole budget, even after a correct attempt.")
    ] = False,
    resume: Annotated[
        Path | None,
        optional("Directory of a search to resume; --keep, checkpoint_every and what bounds memory may change."),
    ] = None,
    list_settings: Annotated[bool, flag("--list-settings", "Print the strategy's settings and exit.")] = False,
) -> None:
    """Search for solutions of hard tasks at test time: attempt, train on the feedback, repeat until one is correct.

    Every task starts from the model's own weights. A correct attempt passes the tests whose feedback training sees and
    the private tests. Settings of the strategy are written strategy.KEY=VALUE.
    """
    from selfdistill.config import load_config, parse_override, read_saved, resolved
    from selfdistill.test_time.config import config_from, refuse_unread, solve_config
    from selfdistill.test_time.search import MAY_CHANGE
    from selfdistill.test_time.solve import default_path
    from selfdistill.test_time.solve import solve as search
    from selfdistill.test_time.strategies.bare import SelfDistill

    flags = {"model": model, "method": method, "env": env, "data": data, "seed": seed}
    limits = {"budget": budget, "unit": unit, "exhaust_budget": exhaust_budget or None}
    written = [parse_override(text) for text in overrides or ()]
    settings = [*as_overrides(flags), *written]
    if resume is not None:
        fixed = [key for key, _ in written if key not in MAY_CHANGE]
        options = {"task": task, "strategy": strategy, "config": config, "out": out, **flags, **limits}
        arg.refuse(
            [*arg.given(options), *fixed],
            "a resumed search keeps its settings",
            why="its records would mix two experiments",
            do=f"leave these out; what may change: {', '.join(MAY_CHANGE).replace('solve.keep', '--keep')}",
        )
        saved = read_saved(resume, config_from)
        chosen = replace(saved, run=load_config(None, written, resolved(saved.run)))
    else:
        name = SelfDistill.name if strategy is None else strategy
        chosen = solve_config(name, settings, file=config, tasks=task or (), limits=dict(as_overrides(limits)))
    refuse_unread(chosen, [*(key for key, _ in settings), *["--keep"] * keep])
    chosen = replace(chosen, keep=keep or chosen.keep)
    if list_settings:
        print_settings(chosen.strategy, prefix="strategy.")
        return
    path = out or resume or default_path(chosen)
    with RunDisplay("solve") as display:
        results = search(chosen, display, out=path, resume=resume is not None)
    print_results(results)
    typer.echo(f"every attempt: {path}")


def print_results(results: Sequence[SolveResult]) -> None:
    """The solutions, and the cost of each."""
    console, rows = Console(), list[tuple[str, ...]]()
    for result in results:
        solved = ("no", "–")
        if result.solved:
            solved = (f"{result.solved_at:,}", f"{result.solved_round:,}")
            console.rule(result.task, align="left", style="dim")
            console.print(result.solution, markup=False, highlight=False, soft_wrap=True)
        used = (f"{result.attempts:,}", f"{result.tokens:,}", duration(result.wall_s))
        rows.append((result.task, *solved, *used, str(result.passed - result.right)))
    print_table(("task", "solved by attempt", "round", "attempts", "tokens", "time", "passed, not right"), rows)
    contexts = sum(result.contexts_cut for result in results)
    prompts = sum(result.prompts_cut + result.left_out for result in results)
    if contexts or prompts:
        text = f"shortened to fit: {contexts:,} prompts of the teacher; left out or shortened in prompts of attempts: "
        console.print(f"{text}{prompts:,} feedbacks", style="dim", highlight=False)
    if redrawn := sum(result.redrawn for result in results):
        console.print(f"sampled and not submitted: {redrawn:,} attempts that repeat a failure", style="dim")
