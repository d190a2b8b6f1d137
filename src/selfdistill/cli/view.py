"""`selfdistill view`: runs, searches and journals as pages in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.arguments import argument, flag, optional
from selfdistill.errors import ConfigError
from selfdistill.runs.credit import AnswerCredit

MOST_STEPS = 100_000  # of one range


def view(
    paths: Annotated[
        list[Path] | None, argument("Directories of runs, runs, or journals. (default: runs)", "DIR")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
    no_open: Annotated[bool, flag("--no-open", "Print the address, and open no browser.")] = False,
    export: Annotated[
        Path | None, optional("Write the page of one run to this HTML file, with its rollouts, and exit.")
    ] = None,
    steps: Annotated[
        str | None, optional("Steps whose rollouts --export writes, such as 1,5-8. (default: all)")
    ] = None,
) -> None:
    """Look at runs, searches and journals in the browser: curves, steps, groups, and the credit of every token.

    The pages are served to this machine alone, work offline, and follow a run that is being written.
    """
    from selfdistill.plugins import import_extra

    for package in ("starlette", "uvicorn"):
        import_extra(package, "view", "selfdistill view")
    from selfdistill.view.site.answers import Answers
    from selfdistill.view.site.app import serve
    from selfdistill.view.site.export import export as write_page
    from selfdistill.view.site.library import Library

    roots = paths or [Path("runs")]
    if export is not None:
        if len(roots) != 1:
            raise ConfigError("--export writes one run", got=f"{len(roots)} directories", do="name one run")
        size = write_page(roots[0], export, _steps(steps) if steps else ())
        typer.echo(f"{export}: {size / 1e6:.1f} MB")
        return
    if steps is not None:
        raise ConfigError("--steps belongs to --export", do="leave it out; the page shows every step")
    library = Library(roots)

    def ready(url: str) -> None:
        typer.echo(f"{url}\nshown to every program and user of this machine; Ctrl-C ends it")
        if not no_open:
            typer.launch(url)

    serve(Answers(library), port, ready, _recompute)


def _recompute(run: Path, uid: str) -> AnswerCredit:
    """The credit of a rollout, read by the newest checkpoint of its run."""
    from selfdistill.analysis.credit_source import credit_of_rollout
    from selfdistill.runs import no_callback

    return credit_of_rollout(run, uid, no_callback)


def _steps(text: str) -> list[int]:
    """The numbers in a list such as 1,5-8. Raises `ConfigError`."""
    found = list[int]()
    for part in text.split(","):
        first, _, last = part.partition("-")
        ends = [int(end) if end.isdecimal() else -1 for end in (first, last or first)]
        if not 0 <= ends[0] <= ends[1] < ends[0] + MOST_STEPS:
            raise ConfigError("--steps takes numbers", got=text[:80], do="write for example --steps 1,5-8")
        found += range(ends[0], ends[1] + 1)
    return found
