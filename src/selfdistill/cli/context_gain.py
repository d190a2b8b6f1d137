"""`selfdistill eval --teacher`: the gain of accuracy with each kind of context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from selfdistill.cli.output import print_table
from selfdistill.view.progress import RunDisplay

if TYPE_CHECKING:
    from selfdistill.analysis.context_gain import ContextGain
    from selfdistill.config import RunConfig
    from selfdistill.runs import Estimate

HEADER = ("context", "tasks", "without", "with", "gain, 95 %", "over another task's", "p", "copied", "")


def print_context_gain(settings: RunConfig) -> None:
    """Measures each kind of context; prints gains, the decision and its rule."""
    from selfdistill.analysis.context_gain import RULE, measure_context_gain

    with RunDisplay("eval") as display:
        found = measure_context_gain(settings, display)
    typer.echo(f"without any context: {found.bare} on {found.bare.n} answers")
    print_table(HEADER, [gain_row(gain) for gain in found.gains])
    against = [f"{gain.kind}: {gain.against}" for gain in found.gains if gain.against]
    typer.echo("\n".join(filter(None, [*against, found.decision, found.caveat, RULE])))


def gain_row(gain: ContextGain) -> tuple[str, ...]:
    """The cells of one kind of context."""
    return (
        gain.kind,
        str(gain.tasks),
        f"{gain.bare:.2f}",
        f"{gain.with_context:.2f}",
        _interval(gain.gain),
        "–" if gain.over_control is None else _interval(gain.over_control),
        "–" if gain.p is None else f"{gain.p:.3f}" if gain.p >= 0.001 else "< 0.001",
        "–" if gain.copied is None else f"{100 * gain.copied:.0f} %",
        "?" if gain.p is None else "no" if gain.against else "go",
    )


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} ({estimate.low:+.2f} – {estimate.high:+.2f})"
