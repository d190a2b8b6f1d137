"""Callbacks that log runs to W&B, trackio or TensorBoard; and several callbacks as one.

A tracker logs the settings of a run, the numbers of each step under their names in metrics.jsonl (those of a table as
`extra/divergence`), and evaluations as `eval/train/accuracy`, all by step: a resumed run continues its curves.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from selfdistill.errors import ConfigError, nearest
from selfdistill.plugins import import_extra
from selfdistill.runs import Callback, EvalEnd, Event, RunEnd, RunStart, StepEnd, saved_config
from selfdistill.runs.records import numbers_of
from selfdistill.runs.store import write_atomic

PROJECT = "selfdistill"
WANDB_ID = ".wandb-id"  # in the directory of a run


@contextmanager
def all_of(callbacks: Iterable[Callback], report: Callable[[str], None]) -> Iterator[Callback]:
    """One callback that passes events on to all. At the end those with a `close` are closed.

    One that raises is called no more, and `report` gets a line about it: an observer ends no run.
    """
    active = list(callbacks)

    def each(action: Callable[[Callback], object]) -> None:
        for callback in tuple(active):
            try:
                action(callback)
            except Exception as error:  # noqa: BLE001 (a user's own function)
                active.remove(callback)
                name = getattr(callback, "__name__", type(callback).__name__)
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{place.filename}, line {place.lineno}"
                report(f"the callback {name} failed and is called no more: {type(error).__name__}: {error} ({where})")

    try:
        yield lambda event: each(lambda callback: callback(event))
    finally:
        each(lambda callback: getattr(callback, "close", tuple)())


class Tracker:
    """Base of the trackers: one `begin` a run, and the values of each step."""

    def __init__(self, package: str) -> None:
        self.package = import_extra(package, package, f"the tracker {package}")
        self.runs: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Logs an event. Evaluations outside of a run are not logged."""
        if isinstance(event, RunStart):
            self.close(event.run)
            self.runs[event.run] = self.begin(event, saved_config(event.path)["settings"])
        elif isinstance(event, StepEnd | EvalEnd) and event.run in self.runs:
            self.log(self.runs[event.run], event.record.step, numbers_of(event.record))
        elif isinstance(event, RunEnd):
            self.close(event.run)

    def close(self, *names: str) -> None:
        """Ends the log of the named runs, or of all."""
        for name in names or tuple(self.runs):
            if name in self.runs:
                self.end(self.runs.pop(name))

    def begin(self, start: RunStart, settings: Mapping[str, Any]) -> Any:
        """Opens the log of a run."""
        raise NotImplementedError

    def log(self, run: Any, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of a step."""
        raise NotImplementedError

    def end(self, run: Any) -> None:
        """Closes the log of a run."""
        run.finish()


class WandbCallback(Tracker):
    """Logs to Weights & Biases. `init` are arguments of `wandb.init`; by default a run has the name of its directory,
    and the project is that of WANDB_PROJECT or "selfdistill". The id in W&B is kept in the run directory."""

    def __init__(self, project: str | None = None, name: str | None = None, **init: Any) -> None:
        super().__init__("wandb")
        project = project or os.environ.get("WANDB_PROJECT", PROJECT)
        self.init = {"project": project, "resume": "allow", "reinit": "create_new", **init}
        self.name = name

    def begin(self, start: RunStart, settings: Mapping[str, Any]) -> Any:
        """Opens or resumes the run in W&B."""
        file = start.path / WANDB_ID
        if not file.exists():
            write_atomic(file, uuid4().hex)
        own = {"id": file.read_text(encoding="utf-8"), "name": self.name or start.path.name, "config": settings}
        run = self.package.init(**{**own, **self.init})
        run.define_metric("*", step_metric="step")  # steps after a checkpoint come again when a killed run resumes
        return run

    def log(self, run: Any, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of a step."""
        run.log({"step": step, **values})


class TrackioCallback(Tracker):
    """Logs to trackio. `init` are arguments of `trackio.init`; by default a run has the name of its directory."""

    def __init__(self, project: str = PROJECT, name: str | None = None, **init: Any) -> None:
        super().__init__("trackio")
        self.init, self.name = {"project": project, **init}, name

    def begin(self, start: RunStart, settings: Mapping[str, Any]) -> Any:
        """Opens the run in trackio, or resumes the newest of its name."""
        resume = "allow" if start.first_step else "never"
        own = {"name": self.name or start.path.name, "config": settings, "resume": resume}
        # In a context of its own: trackio ends the current run of a context when another one begins.
        return copy_context().run(self.package.init, **{**own, **self.init})

    def log(self, run: Any, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of a step."""
        run.log(dict(values), step=step)


class TensorBoardCallback(Tracker):
    """Logs to TensorBoard, by default into `tensorboard/` in the run directory; several runs get a folder each."""

    def __init__(self, log_dir: str | Path | None = None) -> None:
        super().__init__("tensorboard")
        self.log_dir = log_dir

    def begin(self, start: RunStart, settings: Mapping[str, Any]) -> Any:
        """Opens the log; steps that a resume takes back are purged."""
        folder = start.path / "tensorboard" if self.log_dir is None else Path(self.log_dir) / start.run
        writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder), purge_step=start.first_step + 1)
        writer.add_text("settings", f"```json\n{json.dumps(settings, indent=1)}\n```", start.first_step)
        return writer

    def log(self, run: Any, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of a step."""
        for name, value in values.items():
            run.add_scalar(name, value, step)
        run.flush()

    def end(self, run: Any) -> None:
        """Closes the log of a run."""
        run.close()


TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "wandb": WandbCallback,
    "trackio": TrackioCallback,
    "tensorboard": TensorBoardCallback,
}


def tracker(name: str) -> Tracker:
    """The tracker of a name, with its defaults. Raises `ConfigError`."""
    if name not in TRACKERS:
        raise ConfigError("there is no such tracker", got=name, do=nearest(name, TRACKERS))
    return TRACKERS[name]()
