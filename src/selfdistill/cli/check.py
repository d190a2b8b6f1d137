"""`selfdistill check`: what is wrong with a file of tasks, before a run; and the rewards of given answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli.arguments import ConfigFile, Data, EnvName, Overrides, Seed, as_overrides, optional
from selfdistill.errors import DataError
from selfdistill.runs import Callback, Event, Note, Phase

if TYPE_CHECKING:
    from selfdistill.analysis.check import Answer, CheckReport, TaskRow
    from selfdistill.envs.base import ScoringEnvironment

PROBLEMS, UNUSABLE = 1, 2  # exit codes
PLAIN_S = 2.0  # seconds between two lines where there is no terminal


def check(
    overrides: Overrides = None,
    data: Data = None,
    answers: Annotated[
        Path | None,
        optional(
            'Score the answers of this JSONL file, {"id": …, "answer": …} a line: one JSON line each on standard '
            "output, in order, with id, reward, feedback and failure."
        ),
    ] = None,
    config: ConfigFile = None,
    model: Annotated[
        str | None,
        optional("Measure the prompts with the tokenizer of this model. (default: they are not measured)"),
    ] = None,
    env: EnvName = None,
    seed: Seed = None,
) -> None:
    """Check a file of tasks before a run: rows, reference solutions, tests, duplicates, lengths of prompts.

    Every row is looked at. Its reference solution is scored by all of its tests, an empty answer and a program that
    does nothing by those that training uses. Exit code 0: nothing to correct; 1: problems, all of them listed (with
    --answers: some answers have no reward); 2: no row can be used.
    """
    from selfdistill.analysis.check import check_rows, every_row, read_answers
    from selfdistill.config import RunConfig, load_config
    from selfdistill.envs.turns import single_turn
    from selfdistill.training.session import open_renderer

    flags = {"model": model, "env": env, "data": data, "seed": seed}
    settings = load_config(config, [*as_overrides(flags), *(overrides or ())])
    given = read_answers(answers) if answers is not None else None
    environment = single_turn(settings.make_env(), "check")
    with _progress() as progress:
        rows = every_row(environment, settings.data, settings.row_options(settings.data_split))
        if given is not None:
            well = _score(environment, rows, given, progress)
        else:
            measured = model is not None or settings.model != RunConfig().model
            renderer = open_renderer(settings, progress) if measured else None
            longest = settings.context.max_prompt_tokens
            report = check_rows(environment, rows, progress, renderer=renderer, max_prompt_tokens=longest)
            well = not report.problems
    if given is None:
        _print(report, settings.data or f"the environment {settings.env.name}")
    if not well:
        raise typer.Exit(UNUSABLE if all(isinstance(row.found, DataError) for row in rows) else PROBLEMS)


def _score(env: ScoringEnvironment, rows: Sequence[TaskRow], answers: Sequence[Answer], progress: Callback) -> bool:
    """Prints a line of JSON for each answer; returns whether every row can be used and every answer has a reward."""
    from selfdistill.analysis.check import score_answers

    broken = [row.found for row in rows if isinstance(row.found, DataError)]
    for error in broken:
        progress(Note(text=str(error)))
    missing = 0
    for score in score_answers(env, rows, answers, progress):
        line = score._asdict()
        fault = line.pop("fault")
        typer.echo(json.dumps(line))
        if score.reward is None:
            missing += 1
            progress(Note(text=fault))
    progress(Note(text=f"{len(answers) - missing:,} of {len(answers):,} answers scored"))
    return not broken and not missing


def _print(report: CheckReport, name: str) -> None:
    """The report: counts, an example of feedback, and everything that was found."""
    lines = [f"{name}: {report.usable:,} of {report.rows:,} rows can be used"]
    passed = f"{report.passed:,} of {report.references:,} pass all tests of their row"
    lines += [f"reference solutions: {passed if report.references else 'none'}"]
    if report.longest is None:
        lines += ["prompts: not measured; name a model with --model"]
    else:
        lines += [f"prompts: the longest has {report.longest:,} tokens; a run takes up to {report.limit:,}"]
    for example in report.examples:
        lines += [f"feedback on a wrong answer to {example.task!r}:"]
        text = f"{example.answer or '(an empty answer)'}\n→ {example.feedback or '(no feedback)'}"
        lines += [f"  {line}" for line in text.split("\n")]
    for title, texts in (("problems", report.problems), ("notes", report.notes)):
        lines += [f"{title}: {len(texts) or 'none'}"]
        lines += [f"  {line}" for text in texts for line in text.split("\n")]
    typer.echo("\n".join(lines))


@contextmanager
def _progress() -> Iterator[Callback]:
    """A callback that shows progress on standard error: a line that changes on a terminal, else one every few
    seconds."""
    console, printed = Console(stderr=True), time.monotonic()

    def show(event: Event) -> None:
        nonlocal printed
        text = event.text if isinstance(event, Note) else ""
        if isinstance(event, Phase):
            phase = f"{event.name} {event.done:,}/{event.total:,}" if event.total else event.name
            if status is not None:
                status.update(phase)
            elif time.monotonic() - printed >= PLAIN_S:
                printed, text = time.monotonic(), phase
        if text:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    with console.status("reading the rows") if console.is_terminal else nullcontext() as status:
        yield show
