"""Figures from run directories, for a README as much as for a paper: light, colour-blind-safe, every axis named.

Colours are Okabe and Ito's; shapes differ as well, so that nothing depends on colour alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from selfdistill.errors import ConfigError, RunError
from selfdistill.runs import Estimate, EvalSplit, Run
from selfdistill.view.groups import Group, grouped, split_name
from selfdistill.view.tables import sample_size

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: list[dict[str, Any]] = [
    {"color": colour, "marker": marker, "markersize": 4.5, "lw": 1.8}
    for colour, marker in zip(COLOURS, MARKERS, strict=True)
]
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#E6E6E6",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
}


def check_plot_file(file: Path) -> None:
    """Makes the directory of a figure. Raises `ConfigError` for a file that cannot be written or is no figure."""
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.lower().removeprefix(".") not in kinds:
        raise ConfigError("this is no kind of figure", got=file, do=f"end its name with .png (or {', '.join(kinds)})")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("the figure cannot be written", got=error, do="name another file with --plot") from error
    if file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise ConfigError("the figure cannot be written", got=file, do="name another file with --plot")


def overview(runs: Sequence[Run], file: Path) -> Path:
    """Learning curves beside gain against forgetting, as a PNG. Returns `file`.

    Raises `RunError` when the runs hold no evaluation, or the file cannot be written.
    """
    if not any(run.evals for run in runs):
        raise RunError("there is nothing to plot", got="runs without an evaluation", do="wait for the first evaluation")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        learning_curves(left, runs)
        gain_against_forgetting(right, runs)
        return write_figure(figure, _caption(runs), file)


def write_figure(figure: Figure, caption: str, file: Path) -> Path:
    """Writes a figure with a caption below it. Raises `RunError`."""
    figure.supxlabel(caption, fontsize=8, color="#555555")
    try:
        figure.savefig(file, dpi=160)
    except OSError as error:
        raise RunError("the figure cannot be written", got=f"{file} ({error})", do="name another file") from error
    return file


def learning_curves(axes: Axes, runs: Sequence[Run], split: EvalSplit = "train") -> None:
    """Accuracy on `split` by answers sampled so far; the band is the 95 % interval."""
    for group, line in zip(grouped(runs), cycle(LINES), strict=False):
        curve = group.curve(split)
        plot_band(axes, list(curve), list(curve.values()), color=line["color"], alpha=0.15)
        axes.plot(list(curve), [found.value for found in curve.values()], label=_legend(group), **line)
    axes.set(title="Learning curves", xlabel="completions (answers sampled for training)", ylim=(0, 1.02))
    axes.set_ylabel(f"accuracy on {split_name(runs, split)}")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="best")


def gain_against_forgetting(axes: Axes, runs: Sequence[Run]) -> None:
    """Accuracy on training tasks (x) against earlier skills (y), from before training (hollow) to the end."""
    lowest = 1.0
    for group, line in zip(grouped(runs), cycle(LINES), strict=False):
        gain, kept = group.curve("train"), group.curve("forgetting")
        shared = sorted(set(gain) & set(kept))
        if not shared:
            continue
        x, y = [gain[g].value for g in shared], [kept[g].value for g in shared]
        lowest = min([lowest, *(kept[g].low for g in shared)])
        axes.plot(x, y, label=_legend(group), **line)
        axes.plot(x[:1], y[:1], line["marker"], color="white", markeredgecolor=line["color"], zorder=3)
        final = shared[-1]
        axes.errorbar(
            x[-1:], y[-1:], color=line["color"], capsize=3, lw=1.2,
            xerr=[[max(0.0, x[-1] - gain[final].low)], [max(0.0, gain[final].high - x[-1])]],
            yerr=[[max(0.0, y[-1] - kept[final].low)], [max(0.0, kept[final].high - y[-1])]],
        )  # fmt: skip
    axes.set(title="Gain against forgetting", xlim=(-0.02, 1.02), ylim=(max(0.0, lowest - 0.05), 1.02))
    axes.set_xlabel(f"accuracy on {split_name(runs, 'train')}")
    axes.set_ylabel(f"accuracy on {split_name(runs, 'forgetting')}")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def plot_band(axes: Axes, x: Sequence[int], found: Sequence[Estimate], **style: Any) -> None:
    """The 95 % intervals of a curve."""
    axes.fill_between(x, [each.low for each in found], [each.high for each in found], lw=0, **style)


def _legend(group: Group) -> str:
    return f"{group.label} ({len(group.runs)} seeds)" if len(group.runs) > 1 else group.label


def _caption(runs: Sequence[Run]) -> str:
    sizes = {record.accuracy.n for run in runs for record in run.evals_of("train")}
    several = any(len(group.runs) > 1 for group in grouped(runs))
    interval = "over seeds" if several else "over tasks, Wilson"
    return f"bands and bars: 95 % intervals {interval}; {sample_size(sizes)}; hollow: before training"
