import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from selfdistill.runs import (
    Accuracies,
    EvalEnd,
    EvalRecord,
    Note,
    Phase,
    RunEnd,
    RunStart,
    StepEnd,
    StepRecord,
    Summary,
)
from selfdistill.runs.stats import share
from selfdistill.view.progress import RunDisplay

INFO = RunStart(Path("runs/a"), "sdpo", "sapling", "verbs", "cpu", 20, 2560)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_step(step: int, dropped: int = 3) -> StepRecord:
    return StepRecord(step, step * 128, 0, 0.0, 0.5, 0.25, 0.125, 1.0, 5e-4, dropped={"no_context": dropped})


def follow_a_run(display: RunDisplay, timer: Clock) -> None:
    with display:
        display(INFO)
        display(Note("programs run under landlock"))
        display(EvalEnd(EvalRecord(0, 0, 0.0, "train", share(3, 100), 16, 0)))
        for step in (1, 2):
            timer.now += 6
            display(Phase("sampling", 64, 128))
            display(StepEnd(a_step(step)))
        display(RunEnd(Summary("sdpo", "sapling", "verbs", 0, 20, 2560, 9, 75.0, Accuracies(), Accuracies())))


def test_plain_lines_tell_the_whole_run():
    output, timer = io.StringIO(), Clock()
    follow_a_run(RunDisplay("sdpo", Console(file=output, width=200), timer), timer)
    lines = output.getvalue().splitlines()
    assert lines[0].endswith("→ runs/a")
    assert "device cpu" in lines[0]
    assert lines[1] == "sdpo: programs run under landlock"
    assert lines[2] == "sdpo: step 0, accuracy on train 0.030 [0.010, 0.085]"
    assert lines[3] == "sdpo: sampling 64/128"
    # 6 s a step, 19 steps left: 114 s; then 18 steps: 108 s
    assert lines[4].endswith(
        "accuracy 0.030  batch 0.250  reward 0.500  loss 0.1250  dropped 3  completions 128  left 1:54"
    )
    assert lines[6].startswith("sdpo: step 2/20")
    assert lines[6].endswith("dropped 6  completions 256  left 1:48")
    assert lines[-1] == "sdpo: done in 1:15"
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize(
    ("completions_sampled", "given", "more", "words"),
    [
        (2560, 0, False, "20 steps, 2,560 completions →"),
        (0, 640, False, "20 steps, 640 given answers →"),
        (2560, 640, False, "20 steps, 2,560 completions and 640 given answers →"),
        (2560, 0, True, "20 steps, at least 2,560 completions →"),
        (0, 0, False, "20 steps →"),
    ],
)
def test_a_run_begins_by_saying_how_many_answers_there_will_be(
    completions_sampled: int, given: int, more: bool, words: str
):
    output = io.StringIO()
    info = replace(INFO, completions_sampled=completions_sampled, given=given, more=more)
    RunDisplay("sdpo", Console(file=output, width=200))(info)
    assert words in output.getvalue()


def test_a_terminal_shows_one_row_for_each_run():
    output, timer = io.StringIO(), Clock()
    display = RunDisplay("sdpo", Console(file=output, width=160, force_terminal=True), timer)
    display(Phase("starting", run="grpo"))
    follow_a_run(display, timer)
    screen = Console(width=160, file=io.StringIO())
    screen.print(display.table())
    rows = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert rows[1].split()[0] == "grpo"
    assert rows[1].split()[-1] == "starting"
    assert {"sdpo", "2/20", "0.030", "0.250", "256", "1:48"} <= set(rows[2].split())


def test_time_left_after_a_resume_counts_the_new_steps_only():
    timer = Clock()
    display = RunDisplay("sdpo", Console(file=io.StringIO()), timer)
    display(RunStart(Path("runs/a"), "sdpo", "sapling", "verbs", "cpu", 20, 2560, first_step=10))
    assert display.rows["sdpo"].left(timer()) == "–"
    timer.now += 20
    display(StepEnd(a_step(12)))
    assert display.rows["sdpo"].left(timer()) == "1:20"  # 10 s a step, 8 left


def test_without_a_number_of_steps_there_is_no_total_and_no_time_left():
    """A search whose budget counts tokens or seconds."""
    output, timer = io.StringIO(), Clock()
    display = RunDisplay("sdpo", Console(file=output, width=200), timer)
    display(replace(INFO, steps=0, completions_sampled=0))
    timer.now += 6
    display(StepEnd(a_step(7)))
    first, line = output.getvalue().splitlines()
    assert "device cpu, steps while the budget lasts → runs/a" in first
    assert line.startswith("sdpo: step 7  accuracy")
    assert line.endswith("left –")
    screen = Console(width=160, file=io.StringIO())
    screen.print(display.table())
    cells = screen.file.getvalue().splitlines()[1].split()  # type: ignore[attr-defined]
    assert "7" in cells
    assert "7/0" not in cells


def test_a_run_that_goes_on_beyond_its_steps_has_no_time_left():
    timer = Clock()
    display = RunDisplay("sdpo", Console(file=io.StringIO()), timer)
    display(INFO)
    timer.now += 22
    display(StepEnd(a_step(22)))
    assert display.rows["sdpo"].left(timer()) == "0:00"
