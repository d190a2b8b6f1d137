"""`selfdistill solve` from the command line: a user's own tasks, bad input, what is printed, how it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.cli.solve import print_results
from selfdistill.runs import read_run
from selfdistill.runs.solving import SolveResult, read_result

SOLVE_ENVS = Path(__file__).parent.parent / "test_time" / "solve_envs.py"
SMALL = ("sampling.max_new_tokens=8", "device=cpu")
WIDE = {"COLUMNS": "200"}
runner = CliRunner()


def envs(name: str) -> list[str]:
    return ["--env", f"{SOLVE_ENVS}:{name}", *SMALL]


def test_a_solution_is_printed_with_what_it_took(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    chosen = ["solve", "--task", "q1", "--strategy", "hybrid", "--budget", "200", "--model", str(model_dir)]
    result = runner.invoke(app, [*chosen, "--out", str(out), "--seed", "1", *envs("rare")], env=WIDE)
    assert result.exit_code == 0, result.output
    found = read_result(out / "000-q1")
    assert found is not None
    assert found.seed == 1
    assert found.solution.strip() in result.output
    assert f"solved by attempt {found.solved_at}, in" in result.output
    assert f"every attempt: {out}" in result.output
    again = runner.invoke(app, ["solve", "--resume", str(out)], env=WIDE)
    assert again.exit_code == 0
    assert found.solution.strip() in again.output
    assert len(list(read_run(out / "000-q1").rollouts())) == found.attempts, "nothing is repeated"


def test_a_users_own_programming_task_with_its_tests(model_dir: Path, tmp_path: Path) -> None:
    """The tiny model cannot program: every attempt is run, told what is wrong with it, and learned from."""
    row = {"id": "one", "prompt": "Give one.", "fn_name": "one", "tests": [{"input": [], "output": 1}]}
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(row) + "\n")
    out = tmp_path / "search"
    chosen = ["solve", "--task", str(file), "--budget", "16", "--model", str(model_dir), "--out", str(out), *SMALL]
    result = runner.invoke(app, chosen, env=WIDE)
    assert result.exit_code == 0, result.output
    assert "not solved: 16 attempts" in result.output
    run = read_run(out / "000-one")
    assert run.config["settings"]["env"]["name"] == "code"
    assert all("cut off at the length limit" in r.feedback or "No code was found" in r.feedback for r in run.rollouts())
    assert run.steps[0].samples == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "budget must be a whole number, 1 or more"),
        (["--unit", "hours"], "one of attempts, tokens, seconds"),
        (["--strategy", "self-distil"], "did you mean 'self-distill'"),
        (["steps=3"], "does not read this setting"),
        (["strategy.bacth=3"], "did you mean 'batch'"),
        (["--resume", "nowhere"], "not a run directory"),
        (["--resume", "nowhere", "--seed", "3"], "a resumed search keeps its settings"),
        (["--task", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--resume", "nowhere", "--budget", "5000"], "--budget"),
        (
            ["--resume", "nowhere", "--strategy", "hybrid", "--unit", "tokens", "--exhaust-budget"],
            "--strategy, --unit, --exhaust-budget",
        ),
        (["--resume", "nowhere", "strategy.batch=4", "optimiser.lr=1.0"], "strategy.batch, optimiser.lr"),
        (["--strategy", "best-of-k", "--keep"], "best-of-k does not train, and this setting would have no effect"),
        (["--strategy", "best-of-k", "--method", "grpo"], "got  method"),
        (["--strategy", "multi-turn", "teacher.kind=ema", "seed=1", "replay.per_step=8"], "teacher.kind, replay"),
        (["--strategy", "multi-turn", "optimiser.lr=1.0", "method.alpha=0.5"], "optimiser.lr, method.alpha"),
    ],
)
def test_bad_input_is_a_message(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["solve", *arguments], env=WIDE)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_task_without_tests_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps({"id": "none", "prompt": "Give one.", "fn_name": "one", "tests": []}) + "\n")
    result = runner.invoke(app, ["solve", "--task", str(file), "--out", str(tmp_path / "out")], env=WIDE)
    assert result.exit_code == 2
    assert "task 'none' has no tests" in result.stderr


def test_the_settings_of_a_strategy_can_be_listed() -> None:
    result = runner.invoke(app, ["solve", "--strategy", "hybrid", "--list-settings"], env=WIDE)
    assert result.exit_code == 0
    assert "strategy.share" in result.output
    changed = runner.invoke(app, ["solve", "--list-settings", "strategy.batch=4"], env=WIDE)
    assert next(line.split()[1] for line in changed.output.splitlines() if "strategy.batch" in line) == "4"


def test_a_resumed_search_may_keep_its_weights_after_all(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    begun = ["solve", "--task", "q1", "--budget", "32", "--model", str(model_dir), "--out", str(out), *envs("hints")]
    assert runner.invoke(app, [*begun, "checkpoint_every=1"], env=WIDE).exit_code == 0
    assert not (out / "000-q1" / "checkpoints").exists()
    (out / "000-q1" / "result.json").unlink()
    again = runner.invoke(app, ["solve", "--resume", str(out), "--keep", "checkpoint_every=2"], env=WIDE)
    assert again.exit_code == 0, again.output
    assert list((out / "000-q1" / "checkpoints").iterdir())
    assert read_run(out / "000-q1").config["settings"]["checkpoint_every"] == 1, "as it was begun"
    listed = runner.invoke(app, ["solve", "--resume", str(out), "--list-settings"], env=WIDE)
    assert "strategy.batch" in listed.output


def test_what_is_printed_of_several_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    common = {"strategy": "hybrid", "model": "m", "env": "w", "seed": 0, "budget": 90, "unit": "attempts"}
    used = {"tokens": 1200, "wall_s": 65.0}
    done = SolveResult(
        task="a", attempts=24, rounds=3, **common, **used, right=1, passed=3, solved_at=17, solved_round=3,
        passed_at=2, solution="[bold]x = 1", contexts_cut=4,
    )  # fmt: skip
    print_results([done, SolveResult(task="b", attempts=90, rounds=12, **common, **used, left_out=7)])
    printed = capsys.readouterr().out
    assert "[bold]x = 1" in printed, "a program is not markup"
    assert printed.split("a  ")[-1].split()[:6] == ["17", "3", "24", "1,200", "1:05", "2"]
    assert printed.split("b  ")[-1].split()[:2] == ["no", "–"]
    assert "4 prompts of the teacher" in printed
    assert "7 feedbacks" in printed


def test_ctrl_c_says_how_to_go_on(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    code = "from selfdistill.cli import main; main()"
    chosen = ["solve", "--task", "q1", "--strategy", "best-of-k", "--model", str(model_dir), "--out", str(out)]
    command = [sys.executable, "-c", code, *chosen, "--budget", "100000", *envs("hints")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 2/" in line:
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"selfdistill solve --resume {out}" in said
    assert len(read_run(out / "000-q1").steps) >= 2
