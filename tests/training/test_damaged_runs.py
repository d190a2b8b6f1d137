"""A run directory of which a file is gone or edited is refused by name; a damaged checkpoint is passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_envs import __file__ as envs
from safetensors.torch import load_file
from typer.testing import CliRunner

from selfdistill.cli.app import app
from selfdistill.config import RunConfig, from_settings
from selfdistill.errors import RunError
from selfdistill.runs import Event, Note, read_run
from selfdistill.training.loop import train


@pytest.fixture(scope="module")
def finished(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps, a checkpoint after each of the last two."""
    settings = {
        "model": str(model_dir), "env": f"{envs}:hashed", "device": "cpu", "steps": 3, "tasks_per_step": 2,
        "rollouts_per_task": 4, "checkpoint_every": 1, "sampling": {"max_new_tokens": 8},
        "evaluation": {"every": 0, "tasks": 2}, "optimiser": {"lr": 1e-3}, "lora": {"rank": 2, "targets": "q_proj"},
        "out": str(tmp_path_factory.mktemp("whole") / "run"),
    }  # fmt: skip
    return train(from_settings(settings))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def settings_of(run: Path) -> RunConfig:
    return from_settings({**json.loads((run / "config.json").read_text())["settings"], "out": str(run)})


def without_line(name: str, *marks: str) -> Callable[[Path], None]:
    """Takes away the first line that holds all marks."""

    def edit(path: Path) -> None:
        lines = (path / name).read_text().splitlines(keepends=True)
        lines.remove(next(line for line in lines if all(mark in line for mark in marks)))
        (path / name).write_text("".join(lines))

    return edit


def cut(name: str, share: float) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: int(len(data) * share)])

    return edit


def hole(name: str) -> Callable[[Path], None]:
    """Takes some bytes out of the middle of a file: from within one key to behind another, so that the seam is no JSON.

    Where a hole begins and ends at any byte, its seam is JSON by chance: the file's length is that of measured seconds.
    """

    def edit(path: Path) -> None:
        data = (path / name).read_bytes()
        first, last = data.index(b'{"', len(data) // 3) + len(b'{"'), data.index(b'":', len(data) // 2) + len(b'":')
        assert first < last
        (path / name).write_bytes(data[:first] + data[last:])

    return edit


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


def folder(name: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return edit


def settings_with(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        config["settings"] |= changes
        (path / "config.json").write_text(json.dumps(config))

    return edit


CONFIGS: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: (path / "config.json").unlink(),
    "empty": written("config.json", ""),
    "{}": written("config.json", "{}"),
    "a list": written("config.json", "[1]"),
    "no JSON": written("config.json", "{settings"),
    "settings of another kind": written("config.json", '{"settings": [1, 2]}'),
    "an optimiser of another kind": settings_with(optimiser=3),
    "a rate that is text": settings_with(optimiser={"lr": "fast"}),
    "a method of another kind": settings_with(method=7),
    "bytes that are no text": lambda path: (path / "config.json").write_bytes(b"\xff\xfe{}") and None,
}
SETTINGS: dict[str, Callable[[Path], None]] = {
    "a number that is text": settings_with(steps="many"),
    "an unknown setting": settings_with(stepz=3),
    "a method that is not there": settings_with(method={"name": "no-such"}),
}
RECORDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "metrics gone": ("metrics.jsonl", lambda path: (path / "metrics.jsonl").unlink()),
    "metrics emptied": ("metrics.jsonl", written("metrics.jsonl", "")),
    "metrics cut": ("metrics.jsonl", cut("metrics.jsonl", 0.5)),
    "metrics with a hole": ("metrics.jsonl", hole("metrics.jsonl")),
    "metrics without a step": ("metrics.jsonl", without_line("metrics.jsonl", '"step":2,', '"event":"step"')),
    "metrics without the start": ("metrics.jsonl", without_line("metrics.jsonl", '"step":0,', '"split":"train"')),
    "metrics of other types": ("metrics.jsonl", written("metrics.jsonl", '{"event": "step", "step": "one"}\n[]\n{}\n')),
    "metrics a folder": ("metrics.jsonl", folder("metrics.jsonl")),
    "rollouts gone": ("rollouts.jsonl", lambda path: (path / "rollouts.jsonl").unlink()),
    "rollouts cut": ("rollouts.jsonl", cut("rollouts.jsonl", 0.6)),
    "rollouts with a hole": ("rollouts.jsonl", hole("rollouts.jsonl")),
    "rollouts without one": ("rollouts.jsonl", without_line("rollouts.jsonl", '"step":2,')),
}


def listed(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def on_the_command_line(*words: str) -> str:
    """What a command that is refused says."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 2, done.output + done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.stderr


@pytest.mark.parametrize("kind", [*CONFIGS, *SETTINGS])
def test_an_edited_config_is_refused_by_name_and_nothing_is_written(run: Path, kind: str) -> None:
    (CONFIGS | SETTINGS)[kind](run)
    before = listed(run)
    assert str(run / "config.json") in on_the_command_line("train", "--resume", str(run), "--steps", "4")
    if kind != "a method that is not there":  # credit needs none
        assert "config.json" in on_the_command_line("credit", "--run", str(run), "--uid", "1-0-0")
    assert "config.json" in on_the_command_line("solve", "--resume", str(run))
    if kind in CONFIGS:
        assert "config.json" in on_the_command_line("compare", str(run))
        assert "config.json" in on_the_command_line("compare", str(run), "--plot", str(run.parent / "p.png"))
    assert listed(run) == before


@pytest.mark.parametrize("kind", RECORDS)
def test_records_with_a_gap_are_refused_by_name_and_nothing_is_written(run: Path, kind: str) -> None:
    name, edit = RECORDS[kind]
    edit(run)
    before = listed(run)
    said = on_the_command_line("train", "--resume", str(run), "--steps", "4")
    assert name in said
    assert "restore" in said
    assert {file: data for file, data in listed(run).items() if file != ".lock"} == {
        file: data for file, data in before.items() if file != ".lock"
    }


@pytest.mark.parametrize("kind", [kind for kind in RECORDS if kind.endswith(("gone", "folder", "hole"))])
def test_what_cannot_be_read_is_no_traceback(run: Path, kind: str) -> None:
    name, edit = RECORDS[kind]
    edit(run)
    assert name in on_the_command_line("credit", "--run", str(run), "--uid", "1-0-0")
    if name == "metrics.jsonl":
        assert name in on_the_command_line("compare", str(run))


def test_records_beyond_the_checkpoint_are_taken_back_and_their_loss_is_no_matter(run: Path) -> None:
    """After a kill they reach further than the checkpoint; what they say of later steps did not happen."""
    shutil.rmtree(run / "checkpoints" / "step-000003")
    without_line("rollouts.jsonl", '"step":3,')(run)
    train(settings_of(run), resume=True)
    assert [record.step for record in read_run(run).steps] == [1, 2, 3]


def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(run: Path, finished: Path) -> None:
    """The run goes on from step 2 to the bits it had, and says why."""
    newest = run / "checkpoints" / "step-000003"
    file = newest / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    notes: list[str] = []

    def keep_notes(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    train(settings_of(run), keep_notes, resume=True)
    (said,) = [note for note in notes if "step-000003" in note]
    assert "adapter_model.safetensors" in said
    assert "resumes from step-000002" in said
    found, wanted = (load_file(path / file.relative_to(run)) for path in (run, finished))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert [record.step for record in read_run(run).steps] == [1, 2, 3]


def test_a_run_without_a_whole_checkpoint_is_refused(run: Path) -> None:
    for file in (run / "checkpoints").glob("*/config.json"):
        file.write_text("{}")
    for file in (run / "checkpoints").glob("*/trainer.pt"):
        file.write_bytes(b"")
    before = listed(run)
    said = on_the_command_line("train", "--resume", str(run), "--steps", "4")
    assert "no checkpoint of this run can be resumed from" in said
    assert said.count("trainer.pt") == 2
    assert listed(run) == before
    with pytest.raises(RunError):
        train(settings_of(run), resume=True)


def test_a_run_directory_is_no_model_and_says_which_of_it_is(run: Path) -> None:
    said = on_the_command_line("eval", "--model", str(run))
    assert "this is a run directory, not a model" in said
    assert str(run / "checkpoints" / "step-000003") in said
