from pathlib import Path

import pytest
from matplotlib.figure import Figure
from view_runs import make_run

from selfdistill.errors import RunError
from selfdistill.view.plots import gain_against_forgetting, learning_curves, overview


def test_overview_is_a_png_of_some_size(tmp_path: Path):
    runs = [
        make_run(tmp_path / "a", "sdpo", [2, 55, 80, 96], [100, 99, 98, 97]),
        make_run(tmp_path / "b", "grpo", [2, 10, 20, 30], [100, 90, 80, 65]),
    ]
    file = overview(runs, tmp_path / "plot.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000


def test_learning_curves_show_the_numbers_and_name_the_axes(tmp_path: Path):
    runs = [make_run(tmp_path / str(seed), "sdpo", [0, final], [100, 90], seed) for seed, final in enumerate((70, 90))]
    axes = Figure().subplots()
    learning_curves(axes, runs)
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0, 128]
    assert list(line.get_ydata()) == pytest.approx([0.0, 0.8])
    assert line.get_label() == "SDPO (2 seeds)"
    assert axes.get_xlabel().startswith("completions")
    assert axes.get_ylabel() == "accuracy on new verbs"


def test_forgetting_is_a_path_from_before_to_after(tmp_path: Path):
    axes = Figure().subplots()
    gain_against_forgetting(axes, [make_run(tmp_path / "a", "grpo", [2, 30], [100, 65])])
    path = axes.get_lines()[0]
    assert (list(path.get_xdata()), list(path.get_ydata())) == ([0.02, 0.3], [1.0, 0.65])
    assert axes.get_ylim()[0] < 0.6  # the whole interval is in sight


def test_runs_without_evaluations_cannot_be_plotted(tmp_path: Path):
    with pytest.raises(RunError, match="nothing to plot"):
        overview([make_run(tmp_path / "a", "sdpo", [], [])], tmp_path / "plot.png")


def test_a_plot_that_cannot_be_written_is_said(tmp_path: Path):
    with pytest.raises(RunError, match="cannot be written"):
        overview([make_run(tmp_path / "a", "sdpo", [1], [100])], tmp_path / "missing" / "plot.png")
