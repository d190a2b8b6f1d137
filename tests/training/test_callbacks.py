"""Trackers log what the records say, by step, also after a resume; a callback that fails ends no run."""

from __future__ import annotations

import json
import sqlite3
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from loop_envs import __file__ as envs
from typer.testing import CliRunner

import selfdistill as sd
from selfdistill.cli import app
from selfdistill.errors import ConfigError
from selfdistill.runs import EvalRecord, StepRecord
from selfdistill.runs.stats import share
from selfdistill.training.callbacks import TRACKERS, Tracker, all_of, numbers_of

WITHOUT = "not installed: pip install 'selfdistill[wandb,trackio,tensorboard]'"


@pytest.fixture
def settings(model_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_dir), "env": f"{envs}:hashed", "device": "cpu", "tasks_per_step": 2, "rollouts_per_task": 4,
        "sampling": {"max_new_tokens": 8}, "evaluation": {"every": 0, "tasks": 2}, "progress": False,
        "checkpoint_every": 1,
    }  # fmt: skip


class Kept(Tracker):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("json")
        self.lines: list[tuple[str, int, set[str]]] = []
        self.settings: list[Mapping[str, Any]] = []

    def begin(self, start: sd.RunStart, settings: Mapping[str, Any]) -> str:
        self.settings.append(settings)
        return f"{start.path.name} from {start.first_step}"

    def log(self, run: str, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((run, step, set(values)))

    def end(self, run: str) -> None:
        self.lines.append((run, -1, set()))


def test_the_numbers_of_a_record_are_named_as_in_the_file() -> None:
    step = StepRecord(3, 24, 240, 4.5, 0.25, 0.5, 0.125, 1.0, 1e-5, dropped={"no_context": 2}, extra={"updates": 1})
    numbers = numbers_of(step)
    assert (numbers["reward"], numbers["dropped/no_context"], numbers["extra/updates"]) == (0.25, 2, 1)
    assert not {"step", "event"} & numbers.keys()
    assert all(isinstance(number, int | float) for number in numbers.values())
    found = share(3, 4)
    measured = numbers_of(EvalRecord(3, 24, 4.5, "held_out", found, tasks=4, solved=3))
    assert measured == {
        "eval/held_out/accuracy": 0.75, "eval/held_out/low": found.low, "eval/held_out/high": found.high,
        "eval/held_out/solved": 3,
    }  # fmt: skip


def test_a_resumed_run_continues_by_the_same_steps(settings: dict[str, Any], tmp_path: Path) -> None:
    kept = Kept()
    sd.train(**settings, steps=1, out=tmp_path / "run", callbacks=kept)
    assert kept.settings[0]["steps"] == 1
    assert kept.settings[0]["method"]["name"] == "sdpo"
    steps = [(run, step) for run, step, values in kept.lines if "loss" in values]
    assert steps == [("run from 0", 1)]
    assert [step for _, step, values in kept.lines if "eval/train/accuracy" in values] == [0, 1]
    assert kept.lines[-1] == ("run from 0", -1, set())
    sd.train(**settings, steps=3, resume=tmp_path / "run", callbacks=kept)
    steps = [(run, step) for run, step, values in kept.lines if "loss" in values]
    assert steps == [("run from 0", 1), ("run from 1", 2), ("run from 1", 3)]


def test_events_of_several_runs_are_kept_apart_and_closed(tmp_path: Path) -> None:
    kept, record = Kept(), StepRecord(1, 8, 80, 1.0, 0.5, 0.5, 0.1, 1.0, 1e-5)
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}}))
    with all_of([kept], pytest.fail) as callback:
        callback(sd.StepEnd(record))  # of no run
        for name in ("a", "b"):
            callback(sd.RunStart(tmp_path, "sdpo", "m", "e", "cpu", 2, 8, first_step=len(name), run=name))
        callback(sd.StepEnd(record, run="b"))
        assert kept.runs.keys() == {"a", "b"}
    assert [step for _, step, _ in kept.lines] == [1, -1, -1]
    assert not kept.runs


def test_a_callback_that_fails_is_reported_once_and_the_run_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    seen: list[sd.Event] = []

    def broken(event: sd.Event) -> None:
        if isinstance(event, sd.StepEnd):
            raise TypeError("not this one")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = sd.train(**settings, steps=3, out=tmp_path / "run", callbacks=[broken, seen.append])
    assert len(run.steps) == 3
    assert run.summary is not None
    assert [event.record.step for event in seen if isinstance(event, sd.StepEnd)] == [1, 2, 3]
    (said,) = [str(one.message) for one in caught if "called no more" in str(one.message)]
    assert said.startswith("the callback broken failed and is called no more: TypeError: not this one (")
    assert Path(__file__).name in said


def test_ctrl_c_in_a_callback_is_no_failure_of_it() -> None:
    def stops(event: sd.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), all_of([stops], pytest.fail) as callback:
        callback(sd.Note("text"))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    message = rf"the tracker {name} needs the package {name}[\s\S]*pip install 'selfdistill\[{name}\]'"
    with pytest.raises(ConfigError, match=message):
        TRACKERS[name]()
    done = CliRunner().invoke(app, ["train", "--track", name, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert f"selfdistill[{name}]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_the_nearest() -> None:
    done = CliRunner().invoke(app, ["train", "--track", "tensorbord"])
    assert done.exit_code == 2
    assert "did you mean 'tensorboard'?" in done.stderr


def test_tensorboard_holds_the_curves_of_a_resumed_run(settings: dict[str, Any], tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=WITHOUT)
    first = sd.train(**settings, steps=2, out=tmp_path / "run", callbacks=sd.TensorBoardCallback())
    run = sd.train(**settings, steps=3, resume=first.path, callbacks=sd.TensorBoardCallback())
    found = reading.EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    assert losses == [(record.step, pytest.approx(record.loss)) for record in run.steps]
    assert [event.step for event in found.Scalars("eval/train/accuracy")] == [0, 2, 3]
    elsewhere = tmp_path / "logs"
    sd.train(**settings, steps=1, out=tmp_path / "other", callbacks=sd.TensorBoardCallback(log_dir=elsewhere))
    assert list(elsewhere.glob("events.*"))


def test_trackio_holds_the_curves_of_a_resumed_run(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio", reason=WITHOUT)
    project = f"test-{tmp_path.parent.name}"
    first = sd.train(**settings, steps=1, out=tmp_path / "run", callbacks=sd.TrackioCallback(project))
    run = sd.train(**settings, steps=2, resume=first.path, callbacks=sd.TrackioCallback(project))
    (file,) = Path(trackio.TRACKIO_DIR).glob(f"{project}*.db")
    with sqlite3.connect(file) as rows:
        lines = [(name, step, json.loads(text)) for name, step, text in rows.execute(
            "select run_name, step, metrics from metrics order by id")]  # fmt: skip
    losses = [(name, step, values["loss"]) for name, step, values in lines if "loss" in values]
    assert losses == [("run", record.step, pytest.approx(record.loss)) for record in run.steps]
    assert [step for _, step, values in lines if "eval/train/accuracy" in values] == [0, 1, 2]
    trackio.delete_project(project, force=True)


def test_wandb_resumes_by_the_id_in_the_run_directory(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason=WITHOUT)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    first = sd.train(**settings, steps=1, out=tmp_path / "run", callbacks=sd.WandbCallback("tests"))
    sd.train(**settings, steps=2, resume=first.path, callbacks=sd.WandbCallback("tests"))
    logs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    own = (first.path / ".wandb-id").read_text()
    assert [log.name.rpartition("-")[2] for log in logs] == [own, own]
    for log in logs:
        data = next(log.glob("*.wandb")).read_bytes()
        assert b"eval/train/accuracy" in data
        assert b"loss_divergence" in data
        assert b"tests" in data
