"""Runs of one, two and three gloo processes that start as forks of this one, which has imported everything.

python tests/scale/two_ranks.py FOLDER      prints what `test_ranks.py` compares, as JSON
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm
from torch._C._distributed_c10d import FileStore
from torch.distributed.checkpoint.filesystem import FileSystemReader

import selfdistill.scale.sharded
import selfdistill.training.loop as loop
from selfdistill.config import RunConfig, load_config
from selfdistill.errors import ModelError, RankError, RunError
from selfdistill.models.adapter import LoraOptions
from selfdistill.models.checkpoint import load_newest, save_checkpoint
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Ranks
from selfdistill.models.resumable import Resumable
from selfdistill.models.teacher import Ema, Teacher
from selfdistill.runs import read_run
from selfdistill.scale.launch import RUNS
from selfdistill.scale.ranks import divided, joined
from tiny_models import tiny_policy_dir

SMALL = [
    *("tasks_per_step=3", "rollouts_per_task=3", "sampling.max_new_tokens=12", "evaluation.tasks=3", "device=cpu"),
    *("guards.preflight=off", "evaluation.every=0", "optimiser.warmup_steps=0", "optimiser.lr=1e-3"),
]
METHODS: Mapping[str, list[str]] = {
    "sdpo": ["method=sdpo", "replay.per_step=3", "replay.prompts=REPLAY"],
    "served": [
        *("method=sdpo", "replay.per_step=1", "replay.prompts=REPLAY", "scale.sampler.staleness=1"),
        *("tasks_per_step=2", "sampling.max_new_tokens=8", "evaluation.tasks=1"),
    ],
    "many": ["method=grpo", "tasks_per_update=1", "lora.rank=4", "checkpoint_every=1"],
}


# An odd number of letters is right, and the feedback is as long as the answer.
REWARD = """
def reward(task, completion):
    odd = len(completion) % 2
    return float(odd), "" if odd else "x" * len(completion)
"""


def config_of(folder: Path, name: str, out: str, *overrides: str) -> RunConfig:
    """Questions of different lengths, which a tiny model answers at random."""
    rows = [{"prompt": "Say yes or no. " * (1 + number), "id": f"q{number}"} for number in range(5)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(REWARD)
    (folder / "replay.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(4)))
    chosen = [text.replace("REPLAY", str(folder / "replay.jsonl")) for text in METHODS[name]]
    own = [f"model={folder / 'tiny-qwen3-0'}", f"env={folder / 'own.py'}:reward", f"data={folder / 'rows.jsonl'}"]
    return load_config(None, [*SMALL, *chosen, *own, f"out={folder / out}", *overrides])


def forked(folder: Path, size: int, work: Callable[[Ranks], Any]) -> str:
    """Calls `work` on all ranks, each a fork, and returns the error of rank 0. This process stays alone: torch keeps
    what it computed as one rank."""
    children, said, store = [], folder / "said", folder / f"store-{os.urandom(4).hex()}"
    said.write_text("")
    for rank in range(size):
        if child := os.fork():
            children.append(child)
            continue
        try:
            with joined(rank, size, FileStore(str(store), size), device="cpu", timeout_s=120) as ranks:
                work(ranks)
        except RankError as error:
            said.write_text(str(error))
        except SystemExit:
            pass
        except BaseException:  # noqa: BLE001 (a fork must not return)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return said.read_text()


def started(folder: Path) -> None:
    """A run whose other rank is started by `scale.learners`, in a fork that had another run before."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        next(RUNS)
        loop.train(config_of(folder, "sdpo", "started", "steps=1", "scale.learners=2"))
    except BaseException:  # noqa: BLE001 (a fork must not return)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def served(folder: Path, name: str) -> list[str]:
    """The setting that names a new server, for the method that wants one."""
    wants = name == "served"
    return [f'scale.sampler.addresses=["{FakeVllm(folder / "tiny-qwen3-0").url}"]'] if wants else []


def over_two(folder: Path) -> dict[str, str]:
    """All runs of two ranks: each method; one whose rank 1 is killed, and its resume; one whose rank 1 lacks the
    model."""

    def work(ranks: Ranks) -> None:
        for name in METHODS:
            own = server if name == "served" else []
            loop.train(config_of(folder, name, f"{name}-2", "steps=3", "scale.learners=2", *own), ranks=ranks)

    server = served(folder, "served")
    forked(folder, 2, work)

    def dies(ranks: Ranks) -> None:
        real = loop.one_step

        def step(session: Any, totals: Any, *rest: Any) -> Any:
            if ranks.rank == 1 and totals.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(session, totals, *rest)

        loop.one_step = step
        try:
            loop.train(config_of(folder, "many", "killed", "steps=3", "scale.learners=2"), ranks=ranks)
        finally:
            loop.one_step = real

    error = forked(folder, 2, dies)

    def resumed(ranks: Ranks) -> None:
        loop.train(config_of(folder, "many", "killed", "steps=3", "scale.learners=2"), ranks=ranks, resume=True)

    forked(folder, 2, resumed)

    def without_model(ranks: Ranks) -> None:
        if ranks.rank:
            raise ModelError("there is no such model", got="/models/of-another-node")
        ranks.most(1)

    forked(folder, 2, partial(shards_that_one_cannot_write_or_read, folder))
    said = {path.stem: path.read_text() for path in folder.glob("*.said")}
    return {"lost": error, "failed": forked(folder, 2, without_model), **said}


def shards_that_one_cannot_write_or_read(folder: Path, ranks: Ranks) -> None:
    """Writes what rank 0 says of each."""
    policy = divided(load_policy(str(folder / "tiny-qwen3-0"), device="cpu"), ranks)
    optimizer = torch.optim.AdamW(list(policy.trainable().values()))
    state = Resumable(policy, optimizer, Teacher(Ema(0.1), policy))
    save_checkpoint(folder / "one", 1, state, extra={})

    def said(name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except RunError as error:
            if ranks.rank == 0:
                (folder / f"{name}.said").write_text(str(error))

    def limited(own: Resumable, folder: Path, real: Any = Resumable.write) -> None:
        limit, none = resource.RLIMIT_FSIZE, resource.RLIM_INFINITY
        resource.setrlimit(limit, (64 if ranks.rank else none, none))
        real(own, folder)

    def unread(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resumable, "write", limited)
        said("unwritten", lambda: save_checkpoint(folder / "one", 2, state, extra={}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ranks.same(lambda: [path.name for path in (folder / "one").iterdir()]) == ["step-000001"]
    with pytest.MonkeyPatch.context() as patch:
        if ranks.rank:
            patch.setattr(FileSystemReader, "read_data", unread)
        said("unread", lambda: load_newest(folder / "one", print, state))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tiny_policy_dir(folder)
    started(folder)
    load_policy(str(folder / "tiny-qwen3-0"), device="cpu", lora=LoraOptions(4))  # imports what that needs
    found: dict[str, Any] = over_two(folder)
    for name in METHODS:
        loop.train(config_of(folder, name, f"{name}-1", "steps=3", *served(folder, name)))
    # A run of two ranks goes on in one process.
    loop.train(config_of(folder, "sdpo", "sdpo-2", "steps=4"), resume=True)
    loop.train(config_of(folder, "sdpo", "sdpo-1", "steps=4"), resume=True)
    found["steps"] = {
        path.name: [(step.loss, step.grad_norm, step.samples) for step in read_run(path).steps]
        for path in folder.iterdir()
        if (path / "metrics.jsonl").exists()
    }
    print(json.dumps(found))  # noqa: T201 (this is its result)


if __name__ == "__main__":
    assert selfdistill.scale.sharded
    main(Path(sys.argv[1]))
