"""Killed at any moment, a run goes on to the same bits: weights, optimiser, teacher, records."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import loop_envs
import pytest
import torch
from killed_runs import MOMENTS, RANDOM
from safetensors.torch import load_file
from typer.testing import CliRunner

from selfdistill.cli.app import app
from selfdistill.config import RunConfig, from_settings, resolved
from selfdistill.errors import RunError
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.runs import EvalRecord, StepRecord, read_run
from selfdistill.runs.events import Interrupted
from selfdistill.training.loop import train

SCRIPT = Path(__file__).with_name("killed_runs.py")


def facts(path: Path) -> list[Any]:
    """All that a run says of itself, but for the time it took."""
    run = read_run(path)
    timeless = {StepRecord: {"wall_s": 0.0, "seconds": {}}, EvalRecord: {"wall_s": 0.0}}
    return [replace(row, **timeless.get(type(row), {})) for row in (*run.steps, *run.evals, *run.rollouts())]


def bits(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint."""
    latest = latest_checkpoint(path / "checkpoints")
    assert latest is not None
    model = next(file for file in ("model.safetensors", "adapter_model.safetensors") if (latest / file).exists())
    tensors = {f"model {name}": value for name, value in load_file(latest / model).items()}
    tensors |= {f"teacher {name}": value for name, value in load_file(latest / "teacher.safetensors").items()}
    optimizer = torch.load(latest / "trainer.pt", weights_only=True)["optimizer"]["state"]
    return tensors | {f"{number} {name}": value for number, row in optimizer.items() for name, value in row.items()}


def assert_same_run(found: Path, wanted: Path) -> None:
    assert facts(found) == facts(wanted)
    left, right = bits(found), bits(wanted)
    assert left.keys() == right.keys()
    different = [name for name, value in right.items() if not torch.equal(left[name], value)]
    assert not different
    strays = [file.name for file in (found / "checkpoints").iterdir() if file.name.startswith(".")]
    assert not strays


def settings(model_dir: Path, **changes: Any) -> dict[str, Any]:
    """Everything that has a state: an EMA teacher, several updates a step, replay, a rate that rises."""
    return {
        "model": str(model_dir),
        "env": f"{loop_envs.__file__}:Splits",
        "teacher": {"kind": "ema", "rate": 0.3},
        "device": "cpu",
        "steps": 5,
        "tasks_per_step": 2,
        "tasks_per_update": 1,
        "rollouts_per_task": 4,
        "checkpoint_every": 2,
        "sampling": {"max_new_tokens": 8},
        "evaluation": {"every": 2, "tasks": 2},
        "optimiser": {"lr": 1e-3, "warmup_steps": 3},
        "replay": {"per_step": 2},
        **changes,
    }


def resumed(path: Path, **changes: Any) -> Path:
    saved = json.loads((path / "config.json").read_text())["settings"]
    return train(from_settings({**saved, **changes}), resume=True)


@pytest.fixture(scope="module")
def uninterrupted(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(from_settings({**settings(model_dir), "out": str(out)}))


@pytest.fixture(scope="module")
def killed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The directories of runs that were killed, by moment, and how each process ended."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "settings.json").write_text(json.dumps(settings(model_dir)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder / "settings.json"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("moment", [*MOMENTS, *RANDOM])
def test_a_killed_run_goes_on_to_the_same_bits(killed, uninterrupted: Path, model_dir: Path, moment: str) -> None:
    folder, ends = killed
    path = folder / moment
    if moment in MOMENTS:
        assert ends[moment] == -signal.SIGKILL, "the moment was reached"
    if not (path / "config.json").exists():  # killed before there was a run: it is simply started
        train(from_settings({**settings(model_dir), "out": str(path)}))
    else:
        resumed(path)
    assert_same_run(path, uninterrupted)
    assert read_run(path).summary is not None
    assert replace(read_run(path).summary, wall_s=0.0) == replace(read_run(uninterrupted).summary, wall_s=0.0)


def test_a_run_that_is_killed_again_while_it_resumes_goes_on_too(model_dir, uninterrupted, tmp_path) -> None:
    """Three times over, each time a step later, with what the last one left."""
    out = tmp_path / "run"
    config = from_settings({**settings(model_dir), "out": str(out), "checkpoint_every": 2})
    for steps in (1, 3, 4):
        train(replace(config, steps=steps), resume=out.exists())
    resumed(out, steps=5)
    left, right = bits(out), bits(uninterrupted)
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_finished_run_resumes_to_itself(model_dir, uninterrupted, tmp_path) -> None:
    out = tmp_path / "run"
    train(from_settings({**settings(model_dir), "out": str(out)}))
    assert_same_run(resumed(out), uninterrupted)


def test_a_finished_run_can_be_made_longer(model_dir, uninterrupted, tmp_path) -> None:
    out = tmp_path / "run"
    train(from_settings({**settings(model_dir), "out": str(out), "steps": 4}))
    older = json.loads((out / "config.json").read_text())
    del older["settings"]["thinking"], older["settings"]["sampling"]["top_p"]
    (out / "config.json").write_text(json.dumps(older))  # of a version without these settings
    resumed(out, steps=5)
    left, right = bits(out), bits(uninterrupted)
    assert all(torch.equal(left[name], right[name]) for name in right)
    run = read_run(out)
    assert [record.step for record in run.steps] == [1, 2, 3, 4, 5]
    assert run.summary is not None
    assert run.summary.steps == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "seed"),
        ({"model": "another"}, "model"),
        ({"optimiser": {"lr": 0.5, "warmup_steps": 3}}, "optimiser.lr"),
        ({"method": {"name": "grpo"}}, "method"),
    ],
)
def test_changed_settings_are_refused_by_name_before_anything_is_loaded(model_dir, tmp_path, changes, named) -> None:
    out = tmp_path / "run"
    config = from_settings({**settings(model_dir), "out": str(out), "steps": 1})
    train(config)
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=rf"cannot change its settings\n  got  .*{named}"):
        resumed(out, **changes)
    assert (out / "metrics.jsonl").read_bytes() == before


def test_under_lora_a_run_resumes_to_the_same_bits(model_dir, tmp_path) -> None:
    base = {**settings(model_dir), "lora": {"rank": 2, "alpha": 4}, "steps": 3, "checkpoint_every": 1}
    whole = train(from_settings({**base, "out": str(tmp_path / "whole")}))
    parts = tmp_path / "parts"
    train(from_settings({**base, "out": str(parts), "steps": 1}))
    resumed(parts, steps=3)
    left, right = bits(parts), bits(whole)
    assert any("lora_" in name for name in right)
    assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.fixture
def own_run(model_dir: Path, tmp_path: Path) -> RunConfig:
    config = from_settings({**settings(model_dir), "out": str(tmp_path / "run")})
    return replace(config, evaluation=replace(config.evaluation, every=0), replay=None)


def in_world(config: RunConfig, name: str) -> RunConfig:
    tree = resolved(config)
    return from_settings({**tree, "env": f"{loop_envs.__file__}:{name}"})


def test_ctrl_c_finishes_the_step_saves_and_goes_on_to_the_same_bits(own_run: RunConfig) -> None:
    whole = train(replace(in_world(own_run, "hashed"), out=own_run.out + "-whole"))
    config = in_world(own_run, "CtrlC")
    with pytest.raises(Interrupted) as stopped:
        train(config)
    out = Path(config.out)
    assert (stopped.value.step, stopped.value.path) == (2, out)
    assert [record.step for record in read_run(out).steps] == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_run(resumed(out), whole)


def test_ctrl_c_on_the_command_line_says_how_to_go_on(own_run: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    tree = resolved(in_world(own_run, "CtrlC"))
    lines = [f"{key} = {json.dumps(tree[key])}" for key in ("model", "device", "steps", "tasks_per_step", "out")]
    lines += [f'env = "{tree["env"]["name"]}"', "sampling.max_new_tokens = 8", "evaluation.tasks = 2"]
    file.write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["train", "--config", str(file)])
    assert done.exit_code == 130
    assert "Stopped after step 2; what was done is saved." in done.stderr
    assert f"selfdistill train --resume {own_run.out}" in done.stderr
    assert CliRunner().invoke(app, ["train", "--resume", own_run.out, "--steps", "3"]).exit_code == 0
    assert [record.step for record in read_run(Path(own_run.out)).steps] == [1, 2, 3]


@contextmanager
def files_end_at(size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment sets this limit, as a full disk would, during the second step."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setenv("FULL_AT", str(size))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("size", "said"), [(1, "records cannot be written"), (40_000, "checkpoint")])
def test_a_full_disk_is_a_clean_stop_from_which_the_run_goes_on(own_run, monkeypatch, size: int, said: str) -> None:
    """At 1 byte no record can be written any more; at 40,000 the records can, but not the model."""
    whole = train(replace(in_world(own_run, "hashed"), out=own_run.out + "-whole"))
    config = in_world(own_run, "FullDisk")
    with files_end_at(size, monkeypatch), pytest.raises(RunError, match=said):
        train(config)
    out = Path(config.out)
    assert len(read_run(out).steps) <= 2
    monkeypatch.setenv("FULL_AT", "1000000000")
    assert_same_run(resumed(out), whole)


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_step(own_run: RunConfig, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written to"):
        train(replace(own_run, out=str(tmp_path / "file" / "run")))


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(own_run, monkeypatch) -> None:
    class Usage:
        free = 10_000

    monkeypatch.setattr("selfdistill.runs.store.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(RunError, match="too full for this run"):
        train(own_run)
    assert not (Path(own_run.out) / "metrics.jsonl").exists()


def test_two_processes_cannot_write_to_one_run(own_run: RunConfig) -> None:
    out = train(replace(own_run, steps=1))
    holder = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, 2); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(out / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError, match="another process is writing to this run"):
            resumed(out, steps=2)
        other.communicate("\n")
