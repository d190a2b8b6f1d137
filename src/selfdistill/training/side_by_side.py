"""Runs side by side: each a subprocess of our own command, watched by polling its records and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from selfdistill.config import RunConfig, from_settings, resolved
from selfdistill.errors import INTERRUPTED, ConfigError, RunError
from selfdistill.models.precision import pick_device
from selfdistill.runs import EvalRecord, StepRecord, Summary, fresh_path, no_callback
from selfdistill.runs.events import Callback, EvalEnd, Interrupted, Note, Phase, RunEnd, RunStart, StepEnd, named
from selfdistill.runs.records import ResumedRecord, record_from_json, value_from_json
from selfdistill.runs.store import CONFIG, METRICS, SUMMARY
from selfdistill.scale.launch import COMMAND
from selfdistill.training.stopping import PARENT, handled, watch_parent

STOPS = (signal.SIGINT, signal.SIGTERM)
STOPPED = (INTERRUPTED, *(-number for number in STOPS))  # exit codes
POLL_S = 0.2
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


def compare(
    configs: Sequence[RunConfig], callback: Callback = no_callback, *, at_once: int | None = None
) -> list[Path]:
    """Trains all configs, as many at a time as `places` allows, and returns their directories. Events carry the name of
    the directory as their `run`; a run that was begun is resumed.

    A failed run does not stop the others; its error is raised at the end. Ctrl-C as in `side_by_side`.
    """
    at_once = places([config.device for config in configs], at_once)
    side_by_side([_training(config) for config in configs], callback, at_once=at_once)
    return [Path(config.out) for config in configs]


def _training(config: RunConfig) -> Job:
    path, settings = Path(config.out), json.dumps(resolved(config))
    resume = ("--resume", config.out) if (path / CONFIG).exists() else ()
    device = str(pick_device(config.device))
    start = RunStart(path, config.method.name, config.model, config.env.name, device, config.steps, 0)
    return Job(path, (*COMMAND, "train", "--quiet", "--config", "/dev/stdin", *resume), start, settings)


@dataclass(frozen=True, slots=True)
class Job:
    """A subprocess that writes a run, or a folder of runs, to `path`.

    `arguments` start it, `text` is its standard input, lines on its standard output become notes, and `start` is the
    event of each run that begins in it. `selfdistill COMMAND --resume PATH` resumes it.
    """

    path: Path
    arguments: tuple[str, ...]
    start: RunStart
    text: str = ""
    command: str = "train"


def places(devices: Iterable[str], at_once: int | None = None) -> int:
    """The number of jobs on these devices that run at a time: `at_once`, else 1 where any computes on a GPU, whose
    memory they would share, else the cores of this process. Raises `ConfigError`."""
    if at_once is not None:
        if at_once < 1:
            raise ConfigError("no job would ever run", got=f"{at_once} at a time", do="give --jobs 1 or more")
        return at_once
    if any(pick_device(device).type != "cpu" for device in set(devices)):
        return 1
    # A container or a batch queue may leave a process a few of many cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(jobs: Sequence[Job], callback: Callback, *, at_once: int) -> None:
    """Runs all jobs, so many at a time.

    A failed job does not stop the others; its error is raised at the end. After Ctrl-C or SIGTERM no job is started,
    and those that run get one SIGINT, as when this process dies: they save and end (at a second one at once). Then
    raises `Interrupted` with a job that can be resumed, or `KeyboardInterrupt` where no unfinished job had begun.
    """
    waiting, running, stops = list(jobs), list[_Process](), list[int]()
    failed: dict[Path, str] = {}
    stopped: list[Job] = []
    with TemporaryDirectory() as folder, handled(STOPS, lambda number, _: stops.append(number)):
        while running or (waiting and not stops):
            while waiting and not stops and len(running) < at_once:
                running.append(_Process(waiting.pop(0), callback, Path(folder) / str(len(waiting))))
            time.sleep(POLL_S)
            for process in list(running):
                code = process.poll(len(stops))
                if code is not None:
                    running.remove(process)
                    if stops and code in STOPPED:
                        stopped.append(process.job)
                    elif code:
                        failed[process.job.path] = process.error(code)
    for path, text in failed.items():
        raise RunError(f"the run {path} failed", got=text)
    unfinished = [*stopped, *(waiting if stops else ())]
    for job in unfinished:
        if (job.path / CONFIG).exists():
            raise Interrupted(job.path, None, job.command)
    if unfinished:
        raise KeyboardInterrupt


class Followed:
    """The records of a run, or of the runs of a folder, as events while other processes write them. What was written
    before is no news."""

    def __init__(self, start: RunStart, callback: Callback) -> None:
        self.start, self.callback = start, callback
        self.read = {file: file.stat().st_size for file in self._metrics()}
        self.ended = {file: _written(file) for file in self._metrics()}

    def report(self) -> None:
        """Reports what is new."""
        for file in self._metrics():
            self._report(file)

    def _metrics(self) -> list[Path]:
        """Those of a run, or of the runs of a folder."""
        return [*self.start.path.glob(METRICS), *sorted(self.start.path.glob(f"*/{METRICS}"))]

    def _report(self, file: Path) -> None:
        if file not in self.read:
            self.callback(replace(self.start, path=file.parent))
        for line in self.new_lines(file):
            try:
                record = record_from_json(line)
            except ValueError:  # the rest of a line that a kill had cut short
                continue
            match record:
                case ResumedRecord():
                    self.callback(replace(self.start, path=file.parent, first_step=record.step))
                case StepRecord():
                    self.callback(StepEnd(record))
                case EvalRecord():
                    self.callback(EvalEnd(record))
        written = _written(file)
        if written != self.ended.get(file, 0):
            self.ended[file] = written
            self.callback(RunEnd(value_from_json(Summary, file.with_name(SUMMARY).read_text("utf-8"))))

    def new_lines(self, file: Path) -> list[str]:
        """The whole lines of a file that were written since the last call."""
        start = self.read.get(file, 0)
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read()
        end = data.rfind(b"\n") + 1
        self.read[file] = start + end
        return data[:end].decode("utf-8", "replace").splitlines()


class _Process(Followed):
    """A job that runs. What it prints goes to files, so that no full pipe holds it up."""

    def __init__(self, job: Job, callback: Callback, files: Path) -> None:
        super().__init__(job.start, named(callback, job.path.name))
        self.job, self.stops = job, 0
        self.out, self.err = files.with_suffix(".out"), files.with_suffix(".err")
        self.callback(Phase("starting"))
        # SIGINT waits until the child calls `attend`, so that it interrupts no import. In a session of its own the
        # child gets it from here alone: of a terminal it would get it twice, and the second one ends a step half done.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with self.out.open("wb") as out, self.err.open("wb") as err:
                self.process = subprocess.Popen(
                    job.arguments, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True,
                    env={**os.environ, PARENT: str(os.getpid())},
                )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(job.text.encode())

    def poll(self, stops: int) -> int | None:
        """Reports what is new, passes on stops that the process did not get yet, and returns its exit code."""
        code = self.process.poll()
        for line in self.new_lines(self.out):
            self.callback(Note(line))
        self.report()
        for _ in range(self.stops, stops if code is None else self.stops):
            self.process.send_signal(signal.SIGINT)
        self.stops = stops
        return code

    def error(self, code: int) -> str:
        """The error that the process printed, without what other libraries print before it."""
        text = self.err.read_text("utf-8", "replace")
        errors = [match.start() for match in re.finditer(r"^\w+Error: ", text, re.MULTILINE)]
        place = text.find("Traceback (") if "Traceback (" in text else max(errors, default=0)
        return text[place:].strip() or f"the process ended with code {code}"


def _written(metrics: Path) -> int:
    """When the summary beside these records was written; 0: there is none."""
    summary = metrics.with_name(SUMMARY)
    return summary.stat().st_mtime_ns if summary.exists() else 0


def attend() -> None:
    """Called by a child of `side_by_side` once its imports are done: from here on SIGINT is let through, and it comes
    when the parent has died as well."""
    if watch_parent(lambda: os.kill(os.getpid(), signal.SIGINT)):
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
