"""By hand (`make slow-test`): every method on the embedded model in one process and over two of torchrun; a run that
`scale.learners` starts; a rank that is killed, and Ctrl-C. Prints the differences that it measures.

torchrun --nproc-per-node 2 tests/scale/slow_ranks.py FOLDER      trains all methods, one after the other
"""

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
from fake_vllm import FakeVllm
from safetensors.torch import load_file

from selfdistill import Completion, Task
from selfdistill.config import Values, load_config
from selfdistill.envs.rewards import as_environment
from selfdistill.models.checkpoint import save_weights
from selfdistill.models.load import load_policy
from selfdistill.runs import read_run
from selfdistill.training.loop import train

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
    "few-tasks": ["method=sdpo", "tasks_per_step=2"],
    "conversations": ["method=sdpo", "env=verbs", "env.turns=2"],
}
OWN = (("env", "python:reward"), ("data", "python:data"))
TRAIN = (sys.executable, "-m", "selfdistill", "train", "-q")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "selfdistill", "train", "-q")


def run(out: Path, name: str, way: str, *more: str) -> Path:
    command = TORCHRUN if way == "torchrun" else TRAIN
    learners = ["scale.learners=2"] if way == "learners" else []
    done = subprocess.run(
        [*command, *SMALL, *METHODS[name], *learners, f"out={out}", *more], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def reward(task: Task, completion: Completion) -> float:
    """An odd number of letters is right: half of the answers of a model that solves no task of its environment."""
    return float(len(completion.text) % 2)


def train_all(folder: Path) -> None:
    """All methods in this process, or in all of torchrun's; alone also what the weights are before the first step:
    those after one whose rate is too small to move any."""
    rows = [{"prompt": "Write f(xs) to nebab the list." + " Please." * n, "id": f"q{n}"} for n in range(5)]
    values = Values(env=as_environment(reward), tasks=rows)
    for name, settings in METHODS.items():
        given = [*SMALL, *settings, f"out={folder / name}"]
        own = "method=grpo" in settings
        train(load_config(None, [*given, *OWN], values=values) if own else load_config(None, given))
    if "WORLD_SIZE" not in os.environ:
        for name in ("sdpo", "lora"):
            still = ["steps=1", "optimiser.lr=1e-30", "optimiser.weight_decay=0", f"out={folder / 'start' / name}"]
            train(load_config(None, [*SMALL, *METHODS[name], *still]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `alone` and `torchrun`."""
    folder = tmp_path_factory.mktemp("runs")
    for way, program in (("alone", TRAIN[:1]), ("torchrun", TORCHRUN[:5])):
        done = subprocess.run([*program, __file__, folder / way], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


def final(out: Path) -> dict[str, torch.Tensor]:
    [file] = [f for f in read_run(out).model_dir.glob("*.safetensors") if f.stem != "teacher"]
    return load_file(file)


def compare(runs: Path, name: str, other: Path) -> None:
    """That a run over ranks is the one of one process."""
    alone = runs / "alone" / name
    one, two = read_run(alone).steps, read_run(other).steps
    assert [step.samples for step in one] == [step.samples for step in two]
    assert sum(step.samples for step in one) > 0
    grpo = "method=grpo" in METHODS[name]  # its loss on policy is a sum of terms of size 1 that cancel
    losses = [abs(a.loss - b.loss) / (1.0 if grpo else max(abs(a.loss), 1e-9)) for a, b in zip(one, two, strict=True)]
    norms = [abs(a.grad_norm - b.grad_norm) / max(a.grad_norm, 1e-9) for a, b in zip(one, two, strict=True)]
    mine, theirs = final(alone), final(other)
    start = final(runs / "alone" / "start" / ("lora" if name == "lora" else "sdpo"))
    change = math.sqrt(sum(float((mine[n] - start[n]).square().sum()) for n in mine))
    difference = math.sqrt(sum(float((mine[n] - theirs[n]).square().sum()) for n in mine)) / change
    print(f"{name}: loss {max(losses):.2g}, norm {max(norms):.2g}, weights {difference:.2g}")  # noqa: T201
    assert max(losses) <= 1e-5
    assert max(norms) <= 1e-5 * (4 if name == "many-updates" else 1)  # four updates a step, each with its rounding
    assert difference <= 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_give_the_run_of_one_process(runs: Path, name: str):
    compare(runs, name, runs / "torchrun" / name)


def test_three_ranks_that_a_command_starts_give_it_too_with_fewer_tasks_than_ranks(runs: Path, tmp_path: Path):
    compare(runs, "few-tasks", run(tmp_path / "run", "few-tasks", "learners", "scale.learners=3"))


@pytest.mark.parametrize("way", ["torchrun", "learners"])
def test_a_killed_rank_is_named_and_the_resumed_run_is_bit_identical(tmp_path: Path, way: str):
    whole = run(tmp_path / "whole", "lora", way, "checkpoint_every=1")
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


@pytest.mark.parametrize("way", ["torchrun", "learners"])
def test_ctrl_c_saves_on_all_ranks(tmp_path: Path, way: str):
    out = tmp_path / "stopped"
    command, learners = (TORCHRUN, []) if way == "torchrun" else (TRAIN, ["scale.learners=2"])
    given = [*command, *SMALL, *METHODS["sdpo"], *learners, f"out={out}", "steps=50"]
    process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() or not read_run(out).steps:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 or way == "torchrun"
    assert "Resume with" in said
    assert read_run(out).model_dir.name == f"step-{len(read_run(out).steps):06d}"


def test_learners_whose_server_dies_are_saved_together_and_resume(tmp_path: Path):
    out, model = tmp_path / "run", tmp_path / "model"
    save_weights(model, load_policy("sapling-small", device="cpu", dtype="float32"))
    given = [*TRAIN, *SMALL, *METHODS["frozen-replay"], "scale.learners=2", f"out={out}", "scale.sampler.start_s=1"]

    def served(fake: FakeVllm, *more: str) -> subprocess.CompletedProcess[str]:
        where = f'scale.sampler.addresses=["{fake.url}"]'
        return subprocess.run([*given, where, *more], capture_output=True, text=True)

    done = served(FakeVllm(model, dies_after=90))
    assert done.returncode != 0
    assert "no vLLM server is left" in done.stderr
    steps = len(read_run(out).steps)
    assert 0 < steps < 5
    assert read_run(out).model_dir.name == f"step-{steps:06d}"
    done = served(FakeVllm(model), "--resume", str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    records = list(read_run(out).rollouts())
    assert len({(r.step, r.uid) for r in records}) == len(records) == 5 * 16, "nothing is learned twice"


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


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
