"""`selfdistill eval --teacher`: whether there is anything to learn, before any training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from selfdistill.cli.display import RunDisplay
from selfdistill.cli.output import print_table

if TYPE_CHECKING:
    from selfdistill.config import RunConfig
    from selfdistill.loops.uplift import Gain
    from selfdistill.runs import Estimate

HEADER = ("told", "tasks", "bare", "with it", "gain", "95 %", "another task's", "copied", "")


def print_uplift(settings: RunConfig) -> None:
    """Measures each kind of context and prints what it is worth, the verdict and its rule."""
    from selfdistill.loops.uplift import RULE, measure_uplift

    with RunDisplay() as display:
        found = measure_uplift(settings, display.reporter("eval"))
    typer.echo(f"without any context: {found.bare} on {found.bare.n} answers")
    print_table(HEADER, [gain_row(gain) for gain in found.gains])
    typer.echo(found.verdict)
    if found.caveat:
        typer.echo(found.caveat)
    typer.echo(RULE)


def gain_row(gain: Gain) -> tuple[str, ...]:
    """The cells of one kind of context."""
    return (
        gain.kind,
        str(gain.tasks),
        f"{gain.bare:.3f}",
        f"{gain.told:.3f}",
        f"{gain.gain.value:+.3f}",
        _interval(gain.gain),
        "–" if gain.shuffled is None else f"{gain.shuffled.value:+.3f} {_interval(gain.shuffled)}",
        "–" if gain.copied is None else f"{100 * gain.copied:.0f} %",
        f"no: {gain.against}" if gain.against else "go",
    )


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:+.2f} – {estimate.high:+.2f}"
