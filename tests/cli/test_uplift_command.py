from typer.testing import CliRunner

from selfdistill.analysis.context_gain import ContextGain
from selfdistill.cli import app
from selfdistill.cli.context_gain import HEADER, gain_row
from selfdistill.runs import Estimate


def test_a_row_says_what_a_context_is_worth_and_whether_to_go():
    gain = ContextGain(
        "solution", 9, 0.1, 0.6, Estimate(0.5, 9, 0.25, 0.75), Estimate(-0.1, 9, -0.2, 0.0), copied=0.4, p=0.004,
        over_control=Estimate(0.6, 9, 0.3, 0.8),
    )  # fmt: skip
    row = dict(zip(HEADER, gain_row(gain), strict=True))
    assert row == {
        "context": "solution", "tasks": "9", "without": "0.10", "with": "0.60", "gain, 95 %": "+0.50 (+0.25 – +0.75)",
        "over another task's": "+0.60 (+0.30 – +0.80)", "p": "0.004", "copied": "40 %", "": "go",
    }  # fmt: skip
    alone = gain_row(ContextGain("reply", 9, 0.1, 0.1, Estimate(0.0, 9, -0.1, 0.1)))
    assert alone[5:] == ("–", "–", "–", "?")


def test_the_teacher_is_measured_from_the_command_line():
    result = CliRunner().invoke(
        app, ["eval", "--teacher", "--tasks", "8", "rollouts_per_task=1", "env.verbs=8", "env.steps=[1]",
              "env.held_out=1"], env={"COLUMNS": "160"},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Go: the model answers significantly better with" in result.output
    assert "on 32 answers" in result.output, "four to each task where nothing else is set"
    assert "exact sign-flip test over tasks, one-sided, p ≤ 0.05 after Holm's correction" in result.output


def test_too_few_tasks_say_how_many_it_takes():
    result = CliRunner().invoke(
        app, ["eval", "--teacher", "--tasks", "3", "--rollouts", "1", "--temperature", "0", "rollouts_per_task=1",
              "env.verbs=3", "env.steps=[1]", "env.held_out=1"], env={"COLUMNS": "160"},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "on 3 answers" in result.output
    assert "document: cannot decide: it needs 6 tasks, and there are 3" in result.output
    assert "Cannot decide: it needs 6 tasks" in result.output
