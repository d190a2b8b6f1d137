"""By hand (`make slow-test`): every method on the embedded model in one process, over two processes of torchrun, and
over two that `scale.learners` starts; a rank that is killed, and Ctrl-C. Prints the differences that it measures."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.runs import read_run

SMALL = [
    *("model=sapling-small", "steps=5", "tasks_per_step=4", "rollouts_per_task=4", "sampling.max_new_tokens=24"),
    *("evaluation.tasks=4", "guards.preflight=off", "evaluation.every=0", "device=cpu", "optimiser.warmup_steps=0"),
]
METHODS = {
    "sdpo": ["method=sdpo"],
    "grpo": ["method=grpo"],
    "lora": ["method=sdpo", "lora.rank=8"],
    "top-k": ["method=sdpo", "method.top_k=8"],
    "many-updates": ["method=grpo", "tasks_per_update=1"],
    "trust-region": ["method=sdpo", "teacher.kind=trust_region"],
    "frozen-replay": ["method=sdpo", "teacher.kind=frozen", "replay.per_step=6"],
    "conversations": ["method=sdpo", "env=verbs", "env.turns=2"],
}
TRAIN = (sys.executable, "-m", "selfdistill", "train", "-q")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "selfdistill", "train", "-q")


def run(folder: Path, name: str, way: str, *more: str) -> Path:
    out = folder / f"{name}-{way}"
    command = TORCHRUN if way == "torchrun" else TRAIN
    learners = ["scale.learners=2"] if way == "learners" else []
    given = [*SMALL, *METHODS[name], *learners, f"out={out}", *more]
    done = subprocess.run([*command, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def final(out: Path) -> dict[str, torch.Tensor]:
    [file] = [f for f in read_run(out).model_dir.glob("*.safetensors") if f.stem != "teacher"]
    return load_file(file)


@pytest.mark.parametrize("way", ["torchrun", "learners"])
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_give_the_run_of_one_process(tmp_path_factory: pytest.TempPathFactory, name: str, way: str):
    folder = tmp_path_factory.getbasetemp()
    alone = folder / f"{name}-alone"
    if not alone.exists():
        run(folder, name, "alone")
    other = run(folder, name, way)
    one, two = read_run(alone).steps, read_run(other).steps
    losses = [abs(a.loss - b.loss) / max(abs(a.loss), 1e-9) for a, b in zip(one, two, strict=True)]
    norms = [abs(a.grad_norm - b.grad_norm) / max(a.grad_norm, 1e-9) for a, b in zip(one, two, strict=True)]
    mine, theirs, short = final(alone), final(other), run_start(folder, name)
    change = math.sqrt(sum(float((mine[n] - short[n]).square().sum()) for n in mine))
    difference = math.sqrt(sum(float((mine[n] - theirs[n]).square().sum()) for n in mine)) / change
    print(f"{name} {way}: loss {max(losses):.2g}, norm {max(norms):.2g}, weights {difference:.2g}")  # noqa: T201
    assert max(losses) <= 1e-5
    assert max(norms) <= 1e-5
    assert difference <= 1e-3


def run_start(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights before the first step: those after one whose rate is too small to move any."""
    out = folder / f"{name}-start"
    if not out.exists():
        run(folder, name, "start", "steps=1", "optimiser.lr=1e-30", "optimiser.weight_decay=0")
    return final(out)


@pytest.mark.parametrize("way", ["torchrun", "learners"])
def test_a_killed_rank_is_named_and_the_resumed_run_is_bit_identical(tmp_path: Path, way: str):
    whole = run(tmp_path, "lora", way, "checkpoint_every=1")
    out = tmp_path / "killed"
    command, learners = (TORCHRUN, []) if way == "torchrun" else (TRAIN, ["scale.learners=2"])
    given = [*command, *SMALL, *METHODS["lora"], *learners, f"out={out}", "checkpoint_every=1"]
    process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoints" / "step-000002").exists():
        time.sleep(0.05)
    os.kill(_rank_1(process.pid), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    assert "rank 1" in said or "rank      : 1" in said
    subprocess.run([*command, "--resume", str(out), *learners], check=True)
    mine, theirs = final(whole), final(out)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_ctrl_c_saves_on_all_ranks(tmp_path: Path):
    out = tmp_path / "stopped"
    given = [*TRAIN, *SMALL, *METHODS["sdpo"], "scale.learners=2", f"out={out}", "steps=50"]
    process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() or not read_run(out).steps:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Resume with" in said
    assert read_run(out).model_dir.name == f"step-{len(read_run(out).steps):06d}"


def _rank_1(parent: int) -> int:
    """The process with RANK=1 among the descendants of a process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"RANK=1" in variables and above == parent:
            return int(folder.name)
    raise AssertionError("no rank 1")
