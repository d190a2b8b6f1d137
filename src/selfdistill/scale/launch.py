"""How ranks start: by `torchrun`, by `scale.learners`, or by the caller, who passes its ranks on.

torchrun --nproc-per-node 2 -m selfdistill train …        # also of several machines
selfdistill train scale.learners=2 …                      # this process is rank 0 and starts the others
with joined(rank, size, store) as ranks: train(config, ranks=ranks)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from selfdistill.config import RunConfig, resolved
from selfdistill.envs.base import Environment
from selfdistill.errors import ConfigError, RankError
from selfdistill.models.policy import ALONE, Ranks
from selfdistill.models.precision import pick_device
from selfdistill.runs import RunDir, Summary
from selfdistill.runs.records import Record
from selfdistill.runs.store import CONFIG
from selfdistill.scale.processes import how_it_ended
from selfdistill.scale.ranks import JOIN_S, Ended, joined

COMMAND = (sys.executable, "-P", "-m", "selfdistill")  # -P: modules of the current directory shadow none of ours
HERE = "127.0.0.1"
RUNS = count()  # of this process; every rank makes them in the same order
FIRST = "run-0"  # of a process that `scale.learners` starts, which makes no other
END_S = 10.0  # for the other ranks to end by themselves


@contextmanager
def learners(config: RunConfig, ranks: Ranks | None, *, resume: bool) -> Iterator[tuple[Ranks, RunConfig]]:
    """Inside, this process is one of the ranks of a run: one of the caller's, of torchrun's, of those that
    `scale.learners` starts here, or the only one. With the settings as all of them have them. Raises `ConfigError`."""
    rank, size, local = map(_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    wanted, join = config.scale.learners, partial(joined, device=config.device, timeout_s=config.scale.timeout_s)
    size = ranks.size if ranks else size if size > 1 else wanted
    if wanted not in (1, size):
        do = "leave scale.learners out, or give both the same number"
        raise ConfigError("torchrun decides how many learners there are", got=f"{size}, scale.learners={wanted}", do=do)
    config = replace(config, scale=replace(config.scale, learners=size))
    _refuse_settings(config)
    with ExitStack() as stack:
        if ranks is None and size > 1:
            started = _number("WORLD_SIZE") <= 1
            here = size if started else _number("LOCAL_WORLD_SIZE", 1)
            _take_device(config.device, 0 if started else local, here)
            if started:
                store, ended = stack.enter_context(_started(config, resume=resume))
                ranks = stack.enter_context(join(0, size, PrefixStore(FIRST, store), ended=ended))
            else:
                store, rank, size = _met()
                apart = PrefixStore(f"run-{next(RUNS)}", store)  # the store of torchrun outlives a run of the program
                ranks = stack.enter_context(join(rank, size, apart))
        if ranks is None or ranks.size == 1:
            yield ALONE, config
            return
        out = ranks.same(lambda: config.out)
        config = replace(config, out=out)
        ranks.agree("settings", resolved(config))
        yield ranks, config


def _number(name: str, default: int = 0) -> int:
    """A variable of torchrun. Raises `ConfigError`."""
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        do = "leave it out, or start the learners with torchrun"
        raise ConfigError(f"the environment variable {name} is no number", got=text, do=do)
    return int(text or default)


def _met() -> tuple[Store, int, int]:
    """The store of the ranks that torchrun's variables describe, with rank and size. Raises `ConfigError`."""
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))
    except (RuntimeError, ValueError) as error:  # a port in use, nobody at the address, a variable that is missing
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        got, why = ", ".join(f"{name}={os.environ.get(name)}" for name in names), str(error).splitlines()[0][:300]
        do = "start all learners with torchrun, at an address of rank 0 that all reach and a port that is free"
        raise ConfigError("the learners cannot meet", got=got, why=why, do=do) from error
    return store, rank, size


def _refuse_settings(config: RunConfig) -> None:
    """Raises `ConfigError` for settings that only one learner can have."""
    transfer = config.scale.sampler.transfer if config.scale.sampler else ""
    for key, value, refused, do in (
        ("optimiser.states", config.optimiser.states, ("8bit",), "float32: each learner keeps its share of them alone"),
        ("offload", config.offload, ("optimiser", "both"), "offload=teacher, or more learners"),
        ("scale.sampler.transfer", transfer, ("nccl",), "directory: nobody has all weights on one GPU"),
        ("device", pick_device(config.device).type, ("mps",), "device=cpu"),
    ):
        if config.scale.learners > 1 and value in refused:
            what = f"{key} = {value} works in one process alone"
            raise ConfigError(what, got=f"{config.scale.learners} learners", do=f"use {do}")


def check_ranks(config: RunConfig, env: Environment, ranks: Ranks) -> None:
    """Raises `ConfigError` for what cannot run over ranks."""
    if config.scale.learners > 1 and ranks.size == 1:
        do = "set scale.learners for `selfdistill train` only"
        raise ConfigError("this command works in one process", got=f"scale.learners={config.scale.learners}", do=do)
    if ranks.size > 1 and getattr(env, "policy_weights", None):
        what, do = "the run's own model cannot be its judge over ranks", "serve the judge, and name its endpoint"
        raise ConfigError(what, got=f"the environment {env.name!r}", why="each rank holds a share of it", do=do)


def _take_device(device: str, local: int, here: int) -> None:
    """Makes the GPU of this rank the current one. Raises `ConfigError` where some rank would have none."""
    if pick_device(device).type != "cuda":
        return
    if (found := torch.cuda.device_count()) < here:
        do = "start as many learners as there are GPUs, or give device=cpu"
        raise ConfigError("every learner needs a GPU of its own", got=f"{here} learners, {found} GPUs", do=do)
    torch.cuda.set_device(local)


@contextmanager
def _started(config: RunConfig, *, resume: bool) -> Iterator[tuple[Store, Ended]]:
    """Starts the other ranks, which meet this one at a free port of the loopback; inside they run."""
    if any(getattr(config.values, item.name) is not None for item in fields(config.values)):
        raise ConfigError(
            "functions and objects of this program cannot be given to other processes",
            got=f"scale.learners={config.scale.learners}",
            do=f"start the program itself with: torchrun --nproc-per-node {config.scale.learners} PROGRAM.py",
        )
    size = config.scale.learners
    store = TCPStore(HERE, 0, size, True, timedelta(seconds=JOIN_S), wait_for_workers=False)
    threads = str(max(1, torch.get_num_threads() // size))
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": HERE, "MASTER_PORT": store.port}
    shared |= {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", "TORCHELASTIC_USE_AGENT_STORE": "0"}
    command = (*COMMAND, "train", "--quiet", "--config", "/dev/stdin", *(("--resume", config.out) if resume else ()))
    processes: dict[int, subprocess.Popen[bytes]] = {}
    with TemporaryDirectory() as folder:

        def ended() -> dict[int, str]:
            codes = {rank: process.poll() for rank, process in processes.items()}
            return {
                rank: how_it_ended(code, Path(folder, str(rank)).read_text("utf-8", "replace"))
                for rank, code in codes.items()
                if code
            }

        try:
            for rank in range(1, size):
                own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": threads}
                environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
                with Path(folder, str(rank)).open("wb") as printed:
                    process = processes[rank] = subprocess.Popen(  # a session of its own: Ctrl-C comes through rank 0
                        command, stdin=subprocess.PIPE, stdout=printed, stderr=printed, env=environment,
                        start_new_session=True,
                    )  # fmt: skip
                assert process.stdin is not None
                with suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(json.dumps(resolved(config)).encode())
            os.environ.setdefault("GLOO_SOCKET_IFNAME", str(shared["GLOO_SOCKET_IFNAME"]))
            torch.set_num_threads(int(threads))
            yield store, ended
        finally:
            until = time.monotonic() + END_S
            for process in processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
                process.kill()
                process.wait()


class _OtherRank(RunDir):
    """The run directory as ranks use it that do not write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *records: Record) -> None:
        """Nothing: rank 0 writes them."""

    def finish(self, summary: Summary) -> None:
        """Nothing, likewise."""

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def opened_by_first(ranks: Ranks, path: Path, opened: Callable[[], AbstractContextManager[RunDir]]) -> Iterator[RunDir]:
    """The run directory, which rank 0 alone writes to. Raises what `opened` raises, on all ranks, and `RankError` on a
    machine that does not see it: all ranks write their shards of a checkpoint there."""
    with ExitStack() as stack:
        run: list[RunDir] = []
        ranks.same(lambda: run.append(stack.enter_context(opened())))
        if not run and not (path / CONFIG).exists():
            do = "give a directory that all machines share (--out)"
            raise RankError(f"rank {ranks.rank} does not see the run directory", got=path, do=do)
        yield run[0] if run else _OtherRank(path)
