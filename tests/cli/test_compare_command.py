"""`selfdistill compare --arm`: strategies from the command line, bad input, Ctrl-C and a second run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app

SOLVE_ENVS = Path(__file__).parent.parent / "test_time" / "solve_envs.py"
WIDE = {"COLUMNS": "200"}
runner = CliRunner()


def chosen(model_dir: Path, out: Path, *arms: str, budget: int = 8, env: str = "rare") -> list[str]:
    named = [word for arm in arms for word in ("--arm", arm)]
    where = ["--env", f"{SOLVE_ENVS}:{env}", "--model", str(model_dir), "--out", str(out)]
    limits = ["--budget", str(budget), "--seeds", "1", "--task", "q0", "--task", "q1"]
    return ["compare", *named, *where, *limits, "sampling.max_new_tokens=8", "device=cpu"]


@pytest.mark.usefixtures("searches_in_this_process")
def test_curves_means_and_levels_and_a_second_run(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "strategy_comparison"
    result = runner.invoke(app, chosen(model_dir, out, "best-of-k", "few: hybrid strategy.batch=4"), env=WIDE)
    assert result.exit_code == 0, result.output
    text = (out / "results.md").read_text()
    assert text in result.output
    assert "mean attempts (≤ 8) | ÷ few" in text
    assert "| best-of-k |" in text
    assert "tasks that best-of-k never solves, solved by some seed: few" in text
    assert (out / "discovery.png").read_bytes()[:4] == b"\x89PNG"
    again = runner.invoke(app, ["compare", "--resume", str(out), "--arm", "best-of-k"], env=WIDE)
    assert again.exit_code == 0, again.output
    assert "step 1/" not in again.output, "nothing is searched again, and a way that is there already is no other one"
    assert text in again.output
    wrong = runner.invoke(app, ["compare", "--resume", str(out), "--budget", "3"], env=WIDE)
    assert wrong.exit_code == 2
    assert "a resumed strategy comparison keeps its settings" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["--arm", "hybird"], "did you mean 'hybrid'"),
        (["--arm", "hybrid strategy.bacth=3"], "did you mean 'batch'"),
        (["--arm", "hybrid", "--budget", "0"], "budget must be a whole number, 1 or more"),
        (["--arm", "hybrid", "seed=5"], "the seeds are those of the strategy comparison"),
        (
            ["--arm", "hybrid", "--data", "a.jsonl", "--task", "b.jsonl"],
            "a strategy comparison takes its tasks from one file",
        ),
        (["--arm", "hybrid", "--markdown"], "are Markdown already"),
        (["--arm", "hybrid", "--task", "q9"], "there is no such task"),
        (["--arm", "hybrid", "--jobs", "0"], "no job would ever run"),
        (["runs/a", "--jobs", "2"], "finished runs are compared as they are"),
        (["--arm", "hybrid", "--plot", "x.foo"], "this is no kind of figure"),
        (["--arm", "hybrid", "--plot", "/dev/null/x.png"], "the figure cannot be written"),
        (["runs/a", "--plot", "x"], "this is no kind of figure"),
        (["--resume", "nowhere"], "there is no strategy comparison here"),
        (["runs/a", "--task", "q0"], "finished runs are compared as they are"),
        (["runs/a", "--seeds", "2"], "finished runs are compared as they are"),
    ],
)
def test_bad_input_is_a_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    own = ["env.draw=0", "--out", str(tmp_path / "out")] if "--arm" in arguments else []
    result = runner.invoke(app, ["compare", *arguments, *own], env=WIDE)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_place_that_cannot_be_written_to_is_said_before_anything_runs(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    result = runner.invoke(app, ["compare", "--arm", "hybrid", "env.draw=0", "--out", str(tmp_path / out)], env=WIDE)
    assert result.exit_code == 2, result.output
    assert "cannot be written to" in result.stderr
    assert "Traceback" not in result.output
    assert (tmp_path / "file").read_text() == "mine"


def test_ctrl_c_says_how_to_go_on(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "strategy_comparison"
    arguments = chosen(model_dir, out, "multi-turn", budget=100_000, env="hints")
    command = [sys.executable, "-c", "from selfdistill.cli import main; main()", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "step 2/" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"selfdistill compare --resume {out}" in said
