import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.cli.guard import Guarded
from selfdistill.errors import RunError
from selfdistill.runs import EvalRecord, RunDir, StepRecord
from selfdistill.runs.events import Interrupted
from selfdistill.runs.stats import share

COMMANDS = ("train", "eval", "check", "solve", "methods", "envs", "demo", "compare")
runner = CliRunner()


def parameters(command: str) -> list[object]:
    return list(typer.main.get_command(app).commands[command].params)  # type: ignore[attr-defined]


def a_run(path: Path) -> Path:
    with RunDir.create(path, {"settings": {"method": {"name": "sdpo"}, "env": {"name": "verbs"}}}) as run:
        run.append(EvalRecord(0, 0, 0.0, "train", share(2, 100), 16, 0))
        run.append(StepRecord(1, 128, 900, 30.0, 0.5, 0.5, 0.1, 1.0, 5e-4))
        run.append(EvalRecord(1, 128, 30.0, "train", share(80, 100), 16, 12))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str):
    assert not [p.name for p in parameters(command) if not getattr(p, "help", None)]  # type: ignore[attr-defined]
    result = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_tells_the_defaults():
    result = runner.invoke(app, ["train", "--help"], env={"COLUMNS": "200"})
    assert "(default: sdpo)" in result.output


def test_help_lists_the_commands_without_loading_torch_or_matplotlib():
    code = "import sys; from selfdistill.cli import app; print({'torch', 'matplotlib'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    listed = runner.invoke(app, ["--help"]).output
    assert all(command in listed for command in COMMANDS)


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("selfdistill ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--modle", "x"], "--model"),
        (["trian"], "train"),
        (["train", "stepps=3"], "did you mean 'steps'?"),
        (["train", "steps"], "key=value"),
        (["train", "--steps", "many"], "--steps"),
        (["train", "--steps", "0"], "1 or more"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml"),
        (["train", "--resume", "nowhere"], "not a run directory"),
        (["eval", "evaluation.task=3"], "did you mean 'tasks'?"),
        (["compare", "nowhere"], "not a run directory"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(arguments: list[str], message: str):
    result = runner.invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_every_setting_can_be_listed():
    result = runner.invoke(app, ["train", "--list-settings", "seed=12"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "optimiser.lr" in result.output
    assert "learning rate" in result.output
    assert "12" in result.output


def test_compare_prints_a_table_and_draws_a_plot(tmp_path: Path):
    run, plot = a_run(tmp_path / "run"), tmp_path / "plot.png"
    result = runner.invoke(app, ["compare", str(run), "--plot", str(plot)], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "0.800 (0.71–0.87)" in result.output
    assert "12 of 16" in result.output
    assert plot.exists()
    markdown = runner.invoke(app, ["compare", str(run), "--markdown"], env={"COLUMNS": "40"})
    assert "| new verbs: after | 0.800 (0.71–0.87) |" in markdown.output


def raising(error: BaseException) -> typer.Typer:
    failing = typer.Typer(cls=Guarded)

    @failing.command()
    def command() -> None:
        raise error

    @failing.command()
    def other() -> None: ...

    return failing


def test_our_errors_keep_their_four_parts():
    error = RunError("the disk is full", got="/tmp", why="no room", do="make room")
    result = runner.invoke(raising(error), ["command"])
    assert result.exit_code == 2
    assert result.stderr == "RunError: the disk is full\n  got  /tmp\n  why  no room\n  do   make room\n"


def test_an_interruption_says_how_to_go_on():
    result = runner.invoke(raising(Interrupted(Path("runs/a"), 7)), ["command"])
    assert result.exit_code == 130
    assert "selfdistill train --resume runs/a" in result.stderr


def test_ctrl_c_elsewhere_ends_without_a_traceback():
    result = runner.invoke(raising(KeyboardInterrupt()), ["command"])
    assert (result.exit_code, result.stderr) == (130, "\nStopped.\n")


def test_a_defect_of_ours_is_not_hidden():
    result = runner.invoke(raising(ZeroDivisionError()), ["command"])
    assert isinstance(result.exception, ZeroDivisionError)
