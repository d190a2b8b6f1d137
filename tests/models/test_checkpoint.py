from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.errors import RunError
from selfdistill.models.checkpoint import (
    check_whole,
    latest_checkpoint,
    load_checkpoint,
    load_newest,
    read_about,
    save_checkpoint,
)
from selfdistill.models.load import LoraOptions, Policy, load_policy
from selfdistill.models.resumable import Resumable, random_states, restore_random_states
from selfdistill.models.teacher import Ema, Frozen, Teacher

PAIRS = [((5, 6), (7, 8)), ((9, 10, 11), (12,))]


class Run:
    """A policy in training: two steps of AdamW give the optimiser moments and the teacher a history."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2)
        self.teacher = Teacher(Ema(0.1), policy)

    def train(self, steps: int = 2) -> None:
        for _ in range(steps):
            noise = torch.rand(()) + random.random() + numpy.random.rand()
            (self.policy.answer_hidden(PAIRS).square().mean() * noise).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.teacher.update(self.policy)

    def parts(self) -> Resumable:
        return Resumable(self.policy, self.optimizer, self.teacher)

    def save(self, directory: Path, step: int, **options) -> Path:
        return save_checkpoint(directory, step, self.parts(), extra={"position": [step, "a"]}, **options)

    def bits(self) -> list[torch.Tensor]:
        states = self.optimizer.state_dict()["state"]
        moments = [states[index][key] for index in states for key in ("exp_avg", "exp_avg_sq")]
        return [*self.policy.trainable().values(), *self.teacher.state_dict().values(), *moments]


def assert_same_bits(one: Run, other: Run) -> None:
    assert len(one.bits()) == len(other.bits())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.bits(), other.bits(), strict=True))


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=2, alpha=4)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_resumed_run_goes_on_to_the_same_bits(
    policy_of, tmp_path: Path, tied: bool, lora: LoraOptions | None
) -> None:
    run = Run(policy_of(tied=tied, lora=lora))
    run.train()
    path = run.save(tmp_path, 40)
    assert path == tmp_path / "step-000040"
    resumed = Run(policy_of(tied=tied, lora=lora))
    run.train()  # draws from all three global generators, which the resumed run gets back as they were
    assert load_checkpoint(path, resumed.parts()) == {"position": [40, "a"]}
    resumed.train()
    assert_same_bits(run, resumed)


def test_bfloat16_runs_resume_too(policy_of, tmp_path: Path) -> None:
    run = Run(policy_of(dtype="bfloat16"))
    run.train()
    path = run.save(tmp_path, 1)
    resumed = Run(policy_of(dtype="bfloat16"))
    run.train()
    load_checkpoint(path, resumed.parts())
    resumed.train()
    assert_same_bits(run, resumed)


def test_a_checkpoint_is_a_plain_model_directory_that_others_may_read(policy, tmp_path: Path) -> None:
    run = Run(policy)
    run.train()
    path = run.save(tmp_path, 7)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = torch.tensor([tokenizer("What is seven?").input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.base(ids).logits)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}
    assert load_policy(str(path), device="cpu").end_ids == policy.end_ids


def test_a_lora_checkpoint_holds_the_adapter_alone_and_loads_by_its_path(adapted, tmp_path: Path) -> None:
    run = Run(adapted)
    run.train()
    path = run.save(tmp_path, 7)
    assert not (path / "model.safetensors").exists()
    again = load_policy(str(path), device="cpu")
    with torch.no_grad():
        assert torch.equal(again.answer_hidden(PAIRS), adapted.answer_hidden(PAIRS))
        plain = AutoModelForCausalLM.from_pretrained(path)  # base and adapter
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(plain(ids).logits, adapted.base(ids).logits)


def test_only_the_newest_and_the_final_are_kept(policy, tmp_path: Path) -> None:
    run = Run(policy)
    run.save(tmp_path, 10, final=True)
    for step in (20, 30, 40):
        run.save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000030", "step-000040"]
    assert read_about(tmp_path / "step-000010")["final"] is True
    run.save(tmp_path, 50, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000050"]


def test_steps_are_ordered_as_numbers(policy, tmp_path: Path) -> None:
    run = Run(policy)
    run.save(tmp_path, 999_999)
    newest = run.save(tmp_path, 1_000_000)
    assert latest_checkpoint(tmp_path) == newest
    assert latest_checkpoint(tmp_path / "absent") is None


def test_the_same_step_may_be_written_again(policy, tmp_path: Path) -> None:
    run = Run(policy)
    run.save(tmp_path, 5)
    run.train()
    path = run.save(tmp_path, 5, final=True)
    assert read_about(path)["final"] is True
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000005"]
    resumed = Run(policy)
    load_checkpoint(path, resumed.parts())
    assert resumed.teacher.batches == 2


def test_a_run_killed_while_writing_leaves_the_last_whole_checkpoint(shelf: Path, policy, tmp_path: Path) -> None:
    """A real process is killed at its third fsync, half-way through the second checkpoint."""
    program = f"""
        import os, signal, sys
        from pathlib import Path
        import torch
        from selfdistill.models.checkpoint import Resumable, save_checkpoint
        from selfdistill.models.load import load_policy
        from selfdistill.models.teacher import Frozen, Teacher

        policy = load_policy({policy.name!r}, device="cpu")
        optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.1)
        state = Resumable(policy, optimizer, Teacher(Frozen(), policy))
        directory = Path({str(tmp_path)!r})
        save_checkpoint(directory, 1, state, extra={{}})
        real, calls = os.fsync, []
        def fsync(descriptor):
            calls.append(descriptor)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)
        os.fsync = fsync
        save_checkpoint(directory, 2, state, extra={{}})
    """
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", ".partial-step-000002"}
    newest = latest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-000001"
    run = Run(policy)
    run.teacher = Teacher(Frozen(), policy)
    run.optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.1)
    load_checkpoint(newest, run.parts())
    run.save(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "step-000003"}, "the stray directory is gone"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("taken", [480_000, 330_000, 250_000, 150_000])
def test_a_disk_that_is_really_full_is_recognised_in_every_layer(policy, small_disk: Path, taken: int) -> None:
    """The disk fills up in the weights, in the optimiser's moments, at its end and in the last file."""
    run = Run(policy)
    run.train(1)
    (small_disk / "taken").write_bytes(b"x" * taken)
    with pytest.raises(RunError, match=r"the disk is full[\s\S]*No space left on device"):
        run.save(small_disk / "checkpoints", 1)
    assert list((small_disk / "checkpoints").iterdir()) == []


def test_a_full_disk_is_said_and_costs_nothing(policy, tmp_path: Path, monkeypatch) -> None:
    run = Run(policy)
    earlier = run.save(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("selfdistill.models.checkpoint.os.fsync", full)
    with pytest.raises(RunError, match=r"the disk is full[\s\S]*free space and resume"):
        run.save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    load_checkpoint(earlier, Run(policy).parts())


@pytest.mark.parametrize("limit", [1_000, 60_000, 150_000])
def test_writes_that_the_system_refuses_are_one_clear_error(policy, tmp_path: Path, limit: int) -> None:
    """Every file over `limit` bytes is refused by the kernel: in config.json, in the weights, in the optimiser."""
    run = Run(policy)
    run.train(1)
    earlier = run.save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(RunError, match="could not be written"):
            run.save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    load_checkpoint(earlier, Run(policy).parts())


def test_a_damaged_or_foreign_checkpoint_is_refused(policy_of, policy, adapted, tmp_path: Path) -> None:
    path = Run(policy).save(tmp_path, 1)
    with pytest.raises(RunError, match="cannot be resumed"):
        load_checkpoint(path, Run(adapted).parts())
    (path / "trainer.pt").write_bytes((path / "trainer.pt").read_bytes()[:100])
    with pytest.raises(RunError, match=r"damaged[\s\S]*trainer\.pt[\s\S]*use an earlier one"):
        load_checkpoint(path, Run(policy).parts())
    with pytest.raises(RunError, match="this is not a checkpoint"):
        load_checkpoint(tmp_path, Run(policy).parts())


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 0x20
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_flipped_byte_in_any_file_is_found_and_its_file_named(policy, adapted, tmp_path: Path, kind: str) -> None:
    run = Run(policy if kind == "whole" else adapted)
    path = run.save(tmp_path, 1)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    assert {"checkpoint.json", "teacher.safetensors", "trainer.pt", "tokenizer.json"} < {file.name for file in files}
    for file in files:
        whole = file.read_bytes()
        for place in (0, len(whole) // 3, len(whole) // 2, -1):
            flip(file, place)
            with pytest.raises(RunError, match=rf"this checkpoint is damaged[\s\S]*{file.name}"):
                check_whole(path)
            file.write_bytes(whole)
        file.unlink()
        with pytest.raises(RunError, match=file.name):
            check_whole(path)
        file.write_bytes(whole)
    check_whole(path)
    (path / "notes.txt").write_text("a file of somebody else's is no damage")
    load_checkpoint(path, run.parts())


def test_every_byte_of_the_description_counts(policy, tmp_path: Path) -> None:
    """Also those of a checksum's own name: the description then has no checksum."""
    about = Run(policy).save(tmp_path, 1) / "checkpoint.json"
    whole = about.read_bytes()
    for place in range(len(whole)):
        flip(about, place)
        with pytest.raises(RunError, match=r"checkpoint\.json"):
            check_whole(about.parent)
        about.write_bytes(whole)


def test_random_states_of_an_earlier_checkpoint_are_lists() -> None:
    states = random_states()
    version, words, gauss = states["python"]
    wanted = random.random()
    restore_random_states({**states, "python": [version, list(words), gauss]})
    assert random.random() == wanted


def test_a_description_without_checksums_is_damaged(policy, tmp_path: Path) -> None:
    path = Run(policy).save(tmp_path, 1)
    about = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({key: about[key] for key in ("format", "step", "final", "extra")}))
    with pytest.raises(RunError, match=r"damaged[\s\S]*checkpoint\.json"):
        load_checkpoint(path, Run(policy).parts())


def test_a_resume_takes_the_newest_whole_checkpoint_and_notes_which_is_damaged(policy, tmp_path: Path) -> None:
    run = Run(policy)
    for step in (1, 2, 3):
        run.train(1)
        run.save(tmp_path, step, keep=3)
    (tmp_path / "step-000003" / "checkpoint.json").write_text("{")
    flip(tmp_path / "step-000002" / "trainer.pt", 500)
    notes: list[str] = []
    assert load_newest(tmp_path, notes.append, run.parts()) == {"position": [1, "a"]}
    assert run.teacher.batches == 1
    assert ["step-000003: " in notes[0], "step-000002: " in notes[1]] == [True, True]
    assert "checkpoint.json" in notes[0]
    assert "trainer.pt); resumes from step-000001 instead" in notes[1]
    run.save(tmp_path, 2)
    run.save(tmp_path, 4)  # and the damaged one, which nobody can say is final, goes in its turn
    run.save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000005"]
    for step in (4, 5):
        flip(tmp_path / f"step-00000{step}" / "model.safetensors", -1)
    with pytest.raises(RunError, match=r"no checkpoint of this run[\s\S]*step-000005[\s\S]*step-000004.*model\."):
        load_newest(tmp_path, notes.append, run.parts())
    assert load_newest(tmp_path / "absent", notes.append, run.parts()) is None


def test_a_checkpoint_of_another_format_is_refused(policy, tmp_path: Path) -> None:
    path = Run(policy).save(tmp_path, 1)
    (path / "checkpoint.json").write_text('{"format": 99, "step": 1, "final": false, "extra": {}}')
    with pytest.raises(RunError, match="99"):
        load_checkpoint(path, Run(policy).parts())


def test_state_that_is_not_json_leaves_nothing_behind(policy, tmp_path: Path) -> None:
    run = Run(policy)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, run.parts(), extra={"position": object()})
    assert list(tmp_path.iterdir()) == []
