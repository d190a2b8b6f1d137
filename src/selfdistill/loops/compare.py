"""Runs side by side, one process each: the same verbs, the same budget, the same seed, different methods."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from selfdistill.config import RunConfig, from_settings, resolved
from selfdistill.errors import RunError, SelfDistillError
from selfdistill.loops.train import train
from selfdistill.runs import fresh_path
from selfdistill.runs.progress import Event, Interrupted, Relay, Reporter, deliver
from selfdistill.runs.store import CONFIG

# Each method at the rate that did best for it on the embedded model (EXPERIMENTS.md); all else is the same for both.
DEMO_RATES: Mapping[str, float] = {"sdpo": 5e-4, "grpo": 2.5e-4}
DEMO: Mapping[str, Any] = {"rehearsal": {"per_step": 64, "weight": 0.5}, "evaluation": {"every": 4}}


def demo_configs(out: Path, *, seed: int, generations: int, allow_weaker: bool = False) -> list[RunConfig]:
    """SDPO and GRPO on sixteen fresh verbs. Raises `ConfigError` for a budget below one step."""
    folder = fresh_path(out, f"demo-seed{seed}")
    configs = []
    for name, rate in DEMO_RATES.items():
        base: dict[str, Any] = {**DEMO, "method": name, "optimiser": {"lr": rate}, "steps": 1}
        base |= {"seed": seed, "out": str(folder / name), "world": {"name": "verbs", "allow_weaker": allow_weaker}}
        per_step = from_settings(base).generations
        configs.append(from_settings(base | {"steps": generations // per_step}))
    return configs


def compare(configs: Sequence[RunConfig], reporter_for: Callable[[str], Reporter]) -> list[Path]:
    """Runs all configs, as many at a time as there are cores, and returns their directories.

    A failed run does not stop the others; its error is raised when all are done. Ctrl-C reaches every run, each saves.
    """
    jobs = [Job(Path(config.out), resolved(config), _train) for config in configs]
    side_by_side(jobs, reporter_for)
    return [job.path for job in jobs]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does: `work(path, settings, reporter)`, a function of a module, so that another process finds
    it. It goes on where it was if `path` was begun, by what `command` does with --resume."""

    path: Path
    settings: Mapping[str, Any]
    work: Callable[[Path, Mapping[str, Any], Reporter], object]
    command: str = "train"


def side_by_side(jobs: Sequence[Job], reporter_for: Callable[[str], Reporter]) -> None:
    """Does all jobs, as many at a time as there are cores, each in a process of its own.

    A failed job does not stop the others; its error is raised when all are done. Ctrl-C reaches every job.
    """
    context = multiprocessing.get_context("spawn")
    events: Queue[tuple[int, Event]] = context.Queue()
    waiting = list(range(len(jobs)))
    reporters: dict[int, Reporter] = {}
    running: dict[int, Any] = {}
    failures: dict[int, str] = {}
    while waiting or running:
        while waiting and len(running) < max(1, os.cpu_count() or 1):
            index = waiting.pop(0)
            reporters[index] = reporter_for(jobs[index].path.name)
            running[index] = context.Process(target=_run, args=(index, jobs[index], events))
            running[index].start()
        try:
            _drain(events, reporters, failures, running)
        except KeyboardInterrupt:  # the jobs got it too: they finish their step, save, and say so
            waiting.clear()
    for index, text in failures.items():
        if text == "interrupted":
            raise Interrupted(jobs[index].path, None, jobs[index].command)
        raise RunError(f"the run {jobs[index].path} failed", got=text)


def _drain(
    events: Queue[tuple[int, Event]],
    reporters: Mapping[int, Reporter],
    failures: dict[int, str],
    running: dict[int, Any],
) -> None:
    """Delivers what has come in for half a second, then looks who has ended."""
    try:
        index, event = events.get(timeout=0.5)
        if event[0] == "failed":
            failures[index] = event[1][0]
        else:
            deliver(event, reporters[index])
    except queue.Empty:
        pass
    if events.empty():
        for index in [index for index, process in running.items() if not process.is_alive()]:
            code = running.pop(index).exitcode
            if code:
                failures.setdefault(index, f"the process ended with code {code}")


def _run(index: int, job: Job, events: Queue[tuple[int, Event]]) -> None:
    """One job in a process of its own."""
    torch.set_num_threads(1)
    try:
        job.work(job.path, job.settings, Relay(lambda event: events.put((index, event))))
    except KeyboardInterrupt:
        events.put((index, ("failed", ("interrupted",))))
    except SelfDistillError as error:
        events.put((index, ("failed", (str(error),))))


def _train(path: Path, settings: Mapping[str, Any], reporter: Reporter) -> None:
    train(from_settings(settings), reporter, resume=(path / CONFIG).exists())
