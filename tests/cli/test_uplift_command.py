from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.cli.uplift import HEADER, gain_row
from selfdistill.loops.uplift import Gain
from selfdistill.runs import Estimate


def test_a_row_says_what_a_context_is_worth_and_whether_to_go():
    gain = Gain("solution", 9, 0.1, 0.6, Estimate(0.5, 9, 0.25, 0.75), Estimate(-0.1, 9, -0.2, 0.0), copied=0.4)
    row = dict(zip(HEADER, gain_row(gain), strict=True))
    assert row == {
        "told": "solution", "tasks": "9", "bare": "0.100", "with it": "0.600", "gain": "+0.500",
        "95 %": "+0.25 – +0.75", "another task's": "-0.100 -0.20 – +0.00", "copied": "40 %", "": "go",
    }  # fmt: skip
    alone = gain_row(Gain("reply", 9, 0.1, 0.1, Estimate(0.0, 9, -0.1, 0.1)))
    assert alone[6:] == ("–", "–", "no: no gain that is sure")


def test_the_teacher_is_measured_from_the_command_line():
    result = CliRunner().invoke(
        app, ["eval", "--teacher", "--tasks", "6", "rollouts_per_task=1", "world.verbs=6", "world.steps=[1]",
              "world.holdout=1"], env={"COLUMNS": "160"},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Go: the model is better when it is told more" in result.output
    assert "Rule: go where the 95 % interval" in result.output
