"""Reads run directories. Nothing is written, and the run may still be active."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from selfdistill.errors import ConfigError, RunError, nearest
from selfdistill.plugins import import_extra
from selfdistill.runs import records
from selfdistill.runs.records import (
    EvalRecord,
    EvalSplit,
    GuardRecord,
    PreflightRecord,
    Record,
    ResumedRecord,
    RolloutRecord,
    StepRecord,
    Summary,
)
from selfdistill.runs.store import CHECKPOINTS, METRICS, ROLLOUTS, SUMMARY, read_json_file, saved_config


@dataclass(frozen=True, slots=True)
class Run:
    """A run as read from the disk. `summary` is None while it is not finished, `preflight` where it was not measured;
    `guards` are the decisions of the guards."""

    path: Path
    config: Mapping[str, Any]
    steps: tuple[StepRecord, ...]
    evals: tuple[EvalRecord, ...]
    summary: Summary | None
    guards: tuple[GuardRecord, ...] = ()
    preflight: PreflightRecord | None = None

    def evals_of(self, split: EvalSplit) -> tuple[EvalRecord, ...]:
        """The evaluations of one split, by step."""
        return tuple(record for record in self.evals if record.split == split)

    def frame(
        self,
        table: Literal["steps", "evals", "guards", "rollouts"] = "steps",
        library: Literal["pandas", "polars"] = "pandas",
    ) -> Any:
        """Records as a `DataFrame`, one a row, by their names in the files; those of a table within a record are
        written as `extra/divergence`, `turns` and `findings` are JSON. Raises `ConfigError` for another name, and where
        the library is not installed."""
        for name, known in ((table, ("steps", "evals", "guards", "rollouts")), (library, ("pandas", "polars"))):
            if name not in known:
                raise ConfigError(f"a frame is of {', '.join(known)}", got=name, do=nearest(name, known))
        rows = self.rollouts() if table == "rollouts" else getattr(self, table)
        columns = [records.columns_of(row) for row in rows]
        names = dict.fromkeys(name for row in columns for name in row)
        frame = import_extra(library, library, "Run.frame").DataFrame
        found = {name: [row.get(name) for row in columns] for name in names}
        return frame({k: [json.dumps(one) for one in v] if k in ("turns", "findings") else v for k, v in found.items()})

    @property
    def model_dir(self) -> Path:
        """The newest checkpoint, which `from_pretrained` loads. Raises `RunError` where there is none yet."""
        saved = sorted((self.path / CHECKPOINTS).glob("step-*"))
        if not saved:
            raise RunError("this run has no checkpoint yet", got=self.path, do="wait for one (checkpoint_every)")
        return saved[-1]

    def rollouts(self, step: int | None = None) -> Iterator[RolloutRecord]:
        """Every rollout (of one step) that no resume took back, read from the disk one by one, in two passes."""
        path = self.path / ROLLOUTS
        if self.steps and not path.exists():
            raise _gone(path)
        for record in _valid(path):
            if isinstance(record, RolloutRecord) and step in (None, record.step):
                yield record


def read_run(path: str | PathLike[str]) -> Run:
    """Reads a run directory. Raises `RunError` naming the file and the line of what cannot be read."""
    path = Path(path)
    config = saved_config(path)
    if not (path / METRICS).exists() and any((path / name).exists() for name in (ROLLOUTS, CHECKPOINTS, SUMMARY)):
        raise _gone(path / METRICS)
    kept = list(_valid(path / METRICS))
    evals = {(record.step, record.split): record for record in kept if isinstance(record, EvalRecord)}
    return Run(
        path=path,
        config=config,
        steps=tuple(record for record in kept if isinstance(record, StepRecord)),
        evals=tuple(sorted(evals.values(), key=lambda record: record.step)),
        summary=read_json_file(Summary, path / SUMMARY, "the run's summary", "resume the run"),
        guards=tuple(record for record in kept if isinstance(record, GuardRecord)),
        preflight=next((record for record in reversed(kept) if isinstance(record, PreflightRecord)), None),
    )


def check_records(path: Path, step: int, *, measured: bool) -> None:
    """Raises `RunError` unless the records are complete up to `step`, where the run is resumed: every step, its
    rollouts, and with `measured` the evaluation before the first step."""
    if step == 0:
        return  # the resume takes all lines back
    run = read_run(path)
    steps = [record for record in run.steps if record.step <= step]
    if [record.step for record in steps] != list(range(1, step + 1)):
        lacking = sorted(set(range(1, step + 1)) - {record.step for record in steps})
        what = f"a line of step {lacking[0]}" if lacking else "one line for each step, in order"
        raise _incomplete(path / METRICS, f"the checkpoint is of step {step}, and {what} is missing")
    if measured and not any(record.step == 0 for record in run.evals_of("train")):
        raise _incomplete(path / METRICS, "there is no line of what was measured before the first step")
    found, before = Counter(record.step for record in run.rollouts() if record.logprobs), 0
    for record in steps:
        counted = record.completions_sampled - before
        if found[record.step] != counted:
            why = f"step {record.step} sampled {counted} rollouts, and {found[record.step]} are there"
            raise _incomplete(path / ROLLOUTS, why)
        before = record.completions_sampled


def _gone(path: Path) -> RunError:
    return _incomplete(path, f"{path.name} is missing, and other files of the run are there")


def _incomplete(path: Path, why: str) -> RunError:
    do = "restore it from a copy, or start a new run"
    return RunError("the run's records are not complete", got=path, why=why, do=do)


def _valid(path: Path) -> Iterator[Record]:
    """The records that no resume took back, in two passes."""
    resumes = [(number, record.step) for number, record in _records(path) if isinstance(record, ResumedRecord)]
    for number, record in _records(path):
        if not isinstance(record, ResumedRecord) and all(number > at or record.step <= step for at, step in resumes):
            yield record


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    """Line numbers and records. A line that a kill cut short is skipped at the end and before a `resumed` line;
    anywhere else it raises `RunError`."""
    torn: tuple[int, ValueError] | None = None
    if not path.exists():
        return
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{path.name} cannot be read", got=error, do="restore the file, or its permissions") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                record = records.record_from_json(line)
            except ValueError as error:
                torn = torn or (number, error)
                continue
            if torn and not isinstance(record, ResumedRecord):
                raise _damaged(path, *torn) from torn[1]
            torn = None
            yield number, record


def _damaged(path: Path, number: int, error: ValueError) -> RunError:
    got, do = f"{path}, line {number}: {str(error).splitlines()[0]}", "restore the file, or remove that line"
    why = "lines are written whole and never changed, so something else wrote to this file"
    return RunError("a line of the run's records cannot be read", got=got, why=why, do=do)
