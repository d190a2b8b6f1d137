"""Runs side by side, one process each: the same verbs, the same budget, the same seed, different methods."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from selfdistill.config import RunConfig, from_settings, resolved
from selfdistill.errors import ConfigError, RunError, SelfDistillError
from selfdistill.models.precision import pick_device
from selfdistill.runs import fresh_path
from selfdistill.runs.events import Callback, Event, Interrupted, Phase, named
from selfdistill.runs.store import CONFIG
from selfdistill.training.loop import train
from selfdistill.training.stopping import handled

STOPS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted"
# Each method at the rate that did best for it on the embedded model (EXPERIMENTS.md); all else is the same for both.
DEMO_RATES: Mapping[str, float] = {"sdpo": 5e-4, "grpo": 2.5e-4}
DEMO: Mapping[str, Any] = {"replay": {"per_step": 64, "weight": 0.5}, "evaluation": {"every": 4}}


def demo_configs(out: Path, *, seed: int, completions: int, allow_weaker: bool = False) -> list[RunConfig]:
    """SDPO and GRPO on sixteen fresh verbs. Raises `ConfigError` for a budget below one step."""
    folder = fresh_path(out, f"demo-seed{seed}")
    configs = []
    for name, rate in DEMO_RATES.items():
        base: dict[str, Any] = {**DEMO, "method": name, "optimiser": {"lr": rate}, "steps": 1}
        base |= {"seed": seed, "out": str(folder / name), "env": {"name": "verbs", "allow_weaker": allow_weaker}}
        per_step = from_settings(base).completions_sampled
        if completions < per_step:
            raise ConfigError(
                f"the budget must be at least the {per_step} completions of one step",
                got=f"--completions {completions}",
                why=f"{name} would never learn",
                do="give for example --completions 2560",
            )
        configs.append(from_settings(base | {"steps": completions // per_step}))
    return configs


def compare(configs: Sequence[RunConfig], callback: Callback, *, at_once: int | None = None) -> list[Path]:
    """Runs all configs, as many at a time as `places` says, and returns their directories.

    A failed run does not stop the others; its error is raised when all are done. After Ctrl-C each saves, as
    `side_by_side` has it.
    """
    jobs = [Job(Path(config.out), resolved(config), _train) for config in configs]
    side_by_side(jobs, callback, at_once=places([config.device for config in configs], at_once))
    return [job.path for job in jobs]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does: `work(path, settings, callback)`, a function of a module, so that another process finds
    it. It goes on where it was if `path` was begun, by what `command` does with --resume."""

    path: Path
    settings: Mapping[str, Any]
    work: Callable[[Path, Mapping[str, Any], Callback], object]
    command: str = "train"


def places(devices: Iterable[str], at_once: int | None = None) -> int:
    """How many jobs on these devices run at a time: as many as asked for, else one where any computes on a GPU, whose
    memory they would share, else as many as there are cores for this process. Raises `ConfigError`."""
    if at_once is not None:
        if at_once < 1:
            raise ConfigError("no job would ever run", got=f"{at_once} at a time", do="give --jobs 1 or more")
        return at_once
    if any(pick_device(device).type != "cpu" for device in set(devices)):
        return 1
    # Asked of the system and not counted: a container or a batch queue may leave a process a few of many cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(jobs: Sequence[Job], callback: Callback, *, at_once: int) -> None:
    """Does all jobs, so many at a time, each in a process of its own.

    A failed job does not stop the others; its error is raised when all are done. After Ctrl-C or SIGTERM no job begins
    any more, and those that run are told once, as when this process dies: they save and end (at a second one at once).
    Then raises `Interrupted` with a job that can go on, or `KeyboardInterrupt` where none of the unfinished had begun.
    """
    crew = _Crew(jobs, callback, at_once)
    # Ctrl-C and SIGTERM are counted and do nothing else.
    with handled(STOPS, lambda number, _: crew.stops.append(number)):
        while crew.running or (crew.waiting and not crew.stops):
            crew.start_more()
            crew.drain()
            crew.pass_on()
    crew.raise_failures()


class _Crew:
    """The processes of some jobs, by number: which wait, which run, how others failed, what stops were asked for."""

    def __init__(self, jobs: Sequence[Job], callback: Callback, at_once: int) -> None:
        self.jobs, self.callback, self.at_once = jobs, callback, at_once
        self.context = multiprocessing.get_context("spawn")
        self.events: Queue[tuple[int, Event | str]] = self.context.Queue()
        self.waiting = list(range(len(jobs)))
        self.running: dict[int, Any] = {}
        self.failures: dict[int, str] = {}
        self.stops: list[int] = []
        self.told: Counter[int] = Counter()

    def start_more(self) -> None:
        """Fills the free places, unless a stop was asked for."""
        while self.waiting and not self.stops and len(self.running) < self.at_once:
            index = self.waiting.pop(0)
            self.callback(Phase("starting", run=self.jobs[index].path.name))
            process = self.context.Process(target=_run, args=(index, self.jobs[index], self.events))
            with _deaf():
                process.start()
            self.running[index] = process

    def drain(self) -> None:
        """Delivers what has come in for half a second, then looks who has ended."""
        ended = [index for index, process in self.running.items() if not process.is_alive()]
        try:
            index, event = self.events.get(timeout=0 if ended else 0.5)
        except queue.Empty:  # all that the ended ones said is delivered
            for index in ended:
                self._ended(index, self.running.pop(index).exitcode)
            return
        if isinstance(event, str):
            self.failures[index] = event
        else:
            named(self.callback, self.jobs[index].path.name)(event)

    def pass_on(self) -> None:
        """Tells every process of a stop that it has not heard of; one that is still starting hears of it later."""
        for index, process in self.running.items():
            if self.told[index] < len(self.stops) and process.exitcode is None:
                self.told[index] += 1
                os.kill(process.pid, signal.SIGINT)

    def raise_failures(self) -> None:
        """Raises what went wrong, else that jobs were stopped, if any were."""
        for index, text in self.failures.items():
            if text != INTERRUPTED:
                raise RunError(f"the run {self.jobs[index].path} failed", got=text)
        stopped = [self.jobs[index] for index in (*self.failures, *self.waiting)]
        for job in stopped:
            if (job.path / CONFIG).exists():
                raise Interrupted(job.path, None, job.command)
        if stopped:
            raise KeyboardInterrupt

    def _ended(self, index: int, code: int) -> None:
        if code:
            asked = self.stops and -code in STOPS
            self.failures.setdefault(index, INTERRUPTED if asked else f"the process ended with code {code}")


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits. A process that is started here inherits that, so that none interrupts its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(index: int, job: Job, events: Queue[tuple[int, Event | str]]) -> None:
    """One job in a process of its own."""
    torch.set_num_threads(1)
    # A handler of Ctrl-C reports too, and may interrupt a report: the queue between processes would then wait for its
    # own lock for ever. A `SimpleQueue` may be interrupted so; one thread alone passes its events on.
    reported: queue.SimpleQueue[Event | str | None] = queue.SimpleQueue()
    passing_on = Thread(target=_pass_on, args=(index, reported, events), daemon=True)
    passing_on.start()
    try:
        _listen()
        Thread(target=_outlived, args=(events,), daemon=True).start()
        job.work(job.path, job.settings, reported.put)
    except KeyboardInterrupt:
        reported.put(INTERRUPTED)
    except SelfDistillError as error:
        reported.put(str(error))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left but to hand over the last events
        reported.put(None)
        passing_on.join()


def _pass_on(
    index: int, reported: queue.SimpleQueue[Event | str | None], events: Queue[tuple[int, Event | str]]
) -> None:
    """Hands the events of one job to the parent, up to None."""
    while (event := reported.get()) is not None:
        events.put((index, event))


def _listen() -> None:
    """From here on a stop is heard of. It comes from the parent alone: a terminal would tell this process as well, and
    the second of two stops ends a step half done."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _outlived(events: Queue[tuple[int, Event | str]]) -> None:
    """When the parent is dead, however it died, this process is stopped; nobody reads its last events."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    events.cancel_join_thread()
    os.kill(os.getpid(), signal.SIGINT)


def _train(path: Path, settings: Mapping[str, Any], callback: Callback) -> None:
    train(from_settings(settings), callback, resume=(path / CONFIG).exists())
