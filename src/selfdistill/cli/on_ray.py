"""`train --ray ADDRESS`: learners and environment workers on the machines of a Ray cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfdistill.config import RunConfig, resolved
from selfdistill.envs.base import ConversationEnvironment
from selfdistill.envs.turns import RepeatedAttempts
from selfdistill.errors import INTERRUPTED, ConfigError
from selfdistill.runs import Callback, Note, read_run
from selfdistill.runs.events import Interrupted, RunStart
from selfdistill.runs.store import CONFIG, refuse_in_use
from selfdistill.scale.launch import COMMAND
from selfdistill.scale.placement import RAY, Group
from selfdistill.scale.workers import RemoteEnvironment, connected, workers
from selfdistill.training.loop import run_directory
from selfdistill.training.side_by_side import STOPS, Followed
from selfdistill.training.stopping import handled


def train_on_ray(config: RunConfig, address: str, callback: Callback, *, resume: bool) -> Path:
    """Trains on a cluster as `training.loop.train` does in this process, with the same records and errors."""
    if config.scale.sampler and config.scale.sampler.colocate:
        what, why = "servers on the learner's GPU are none that Ray places", "it gives each server GPUs of its own"
        do = "leave out scale.sampler.colocate, or --ray"
        raise ConfigError(what, got="scale.sampler.colocate with --ray", why=why, do=do)
    ray = connected(address)
    out = run_directory(config)
    if not resume:
        refuse_in_use(out)
    config = replace(config, out=str(out))
    gpus, learners = ray.cluster_resources().get("GPU", 0), config.scale.learners
    gpu = config.device.startswith("cuda") or (config.device == "auto" and gpus >= learners)
    device = "cuda" if gpu else config.device
    start = RunStart(out, config.method.name, config.model, config.env.name, device, config.steps, 0)
    records, stops = Followed(start, callback), list[int]()

    def arguments() -> list[str]:
        begun = ["--resume", str(out)] if (out / CONFIG).exists() else []
        return [*COMMAND, "train", "--quiet", "--config", "/dev/stdin", *begun]

    def step() -> int:
        return max((record.step for record in read_run(out).steps), default=0) if (out / CONFIG).exists() else 0

    def poll() -> int:
        records.report()
        return len(stops)

    text, note = json.dumps(resolved(config)), _noted(callback)
    group = Group(ray, learners, gpu, text, arguments, {RAY: address}, step, note)
    with handled(STOPS, lambda number, _: stops.append(number)):
        code = group.run(poll)
    poll()
    if code == INTERRUPTED:
        raise Interrupted(out, step())
    return out


@contextmanager
def scored_on_ray(config: RunConfig, callback: Callback) -> Iterator[RunConfig]:
    """Inside a learner that Ray placed, the settings with an environment whose answers are scored by workers, where
    the run has any; else the settings as they are. Raises `ConfigError` for workers without a cluster."""
    address, count = os.environ.get(RAY), config.scale.env_workers
    first = config.scale.sampler is not None  # and rank 0 alone scores answers
    if not count or (first and os.environ.get("RANK", "0") != "0"):
        yield config
        return
    if address is None:
        do = "give --ray ADDRESS, or set scale.env_workers=0"
        raise ConfigError("environment workers are processes of a Ray cluster", got=f"{count} without one", do=do)
    local: Any = config.make_env()
    scoring = local.env if isinstance(local, RepeatedAttempts) else local
    if isinstance(scoring, ConversationEnvironment) or getattr(local, "policy_weights", None):
        what = "conversations of an environment's own, and judges that read the run's weights,"
        callback(Note(f"{what} stay with the learner: scale.env_workers is not used"))
        yield config
        return
    own = count if first else max(1, count // config.scale.learners)
    with workers(connected(address), resolved(config), own, _noted(callback)) as pool:
        env: Any = RemoteEnvironment(scoring, pool)
        env = env if scoring is local else RepeatedAttempts(env, local.turns)
        yield replace(config, values=replace(config.values, env=env))


def _noted(callback: Callback) -> Callable[[str], None]:
    return lambda text: callback(Note(text))
