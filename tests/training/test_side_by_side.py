"""Runs side by side, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from selfdistill.errors import ConfigError, RunError
from selfdistill.runs import Event, RunEnd, RunStart, StepEnd, read_run
from selfdistill.runs.events import Interrupted
from selfdistill.training.loop import train
from selfdistill.training.side_by_side import Job, compare, demo_configs, places, side_by_side


def test_the_demo_gives_both_methods_the_same_verbs_budget_and_seed(tmp_path: Path) -> None:
    sdpo, grpo = demo_configs(tmp_path, seed=3, completions=2560)
    assert (sdpo.method.name, grpo.method.name) == ("sdpo", "grpo")
    assert sdpo.completions_sampled == grpo.completions_sampled == 2560
    assert sdpo.seed == grpo.seed == 3
    assert sdpo.env == grpo.env
    assert Path(sdpo.out).parent == Path(grpo.out).parent == tmp_path / "demo-seed3"
    with pytest.raises(ConfigError, match="128 completions of one step"):
        demo_configs(tmp_path, seed=3, completions=5)


def test_runs_in_their_own_processes_give_the_bits_they_give_alone(config_of, recorder, tmp_path: Path) -> None:
    """The second one fails: it is said in the end, and the first is whole."""
    good = config_of("hashed", out=str(tmp_path / "good"), steps=2)
    bad = config_of("BreaksLater", out=str(tmp_path / "bad"), steps=3)
    with pytest.raises(RunError, match=r"bad failed[\s\S]*more than half of a batch"):
        compare([good, bad], recorder)
    alone = read_run(train(replace(good, out=str(tmp_path / "alone"))))
    beside = read_run(tmp_path / "good")
    assert [record.grad_norm for record in beside.steps] == [record.grad_norm for record in alone.steps]
    assert [(r.uid, r.token_ids) for r in beside.rollouts()] == [(r.uid, r.token_ids) for r in alone.rollouts()]
    kinds = [type(event) for event in recorder.events]
    assert kinds.count(RunStart) == 2
    assert kinds.count(StepEnd) == 4
    assert kinds.count(RunEnd) == 1


def test_how_many_jobs_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may leave a process fewer cores than the machine has; a GPU is shared by no two searches."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not bind processes to cores")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert places(["cpu", "cpu"]) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert places(["cpu"]) == len(allowed)
    assert places(["cpu"], 3) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert places(["cpu", "auto"]) == 1
    with pytest.raises(ConfigError, match="no job would ever run"):
        places(["cpu"], 0)


def job_in(path: Path) -> Job:
    start = RunStart(path, "sdpo", "toy", "toy", "cpu", 2, 0)
    script = Path(__file__).with_name("stopped_jobs.py")
    return Job(path, (sys.executable, str(script), str(path)), start, command="solve")


def jobs_in(folder: Path, count: int) -> list[Job]:
    return [job_in(folder / f"job-{number}") for number in range(count)]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_after_ctrl_c_a_job_that_was_in_its_last_round_is_done_and_one_that_did_not_begin_is_not(
    tmp_path: Path, stop: signal.Signals
) -> None:
    def press(event: Event) -> None:
        if isinstance(event, StepEnd):
            os.kill(os.getpid(), stop)

    with pytest.raises(KeyboardInterrupt) as stopped:
        side_by_side(jobs_in(tmp_path, 2), press, at_once=1)
    assert not isinstance(stopped.value, Interrupted), "the second one has nothing to go on with"
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*asked")] == ["job-0/asked"]


def test_ctrl_c_while_a_job_is_still_starting_is_no_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def callback(event: Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(jobs_in(tmp_path, 1), callback, at_once=1)
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capfd.readouterr().err


PARENT = """
import sys
import time
from pathlib import Path
from selfdistill.runs import StepEnd
from selfdistill.training.side_by_side import side_by_side
from test_side_by_side import job_in

def report(event):
    if isinstance(event, StepEnd):
        print("running", flush=True)

side_by_side([job_in(Path(sys.argv[1]) / "job-0")], report, at_once=1)
"""


def test_a_job_whose_parent_is_killed_saves_and_ends(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    own = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True, env=own)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "running\n"
    parent.kill()
    parent.wait()
    left = tmp_path / "job-0"
    for _ in range(300):
        if (left / "asked").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"the job left {[file.name for file in left.iterdir()]}")
