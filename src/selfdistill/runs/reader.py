"""The run directory, as it is read: by views, by tables, by tests. Reading never changes it, and may happen while the
run is still going on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import RunError
from selfdistill.runs.records import (
    EvalRecord,
    Record,
    ResumedRecord,
    RolloutRecord,
    Split,
    StepRecord,
    Summary,
    record_from_json,
    value_from_json,
)
from selfdistill.runs.store import METRICS, ROLLOUTS, SUMMARY, saved_config


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands on the disk. `summary` is None while it is not finished."""

    path: Path
    config: Mapping[str, Any]
    steps: tuple[StepRecord, ...]
    evals: tuple[EvalRecord, ...]
    summary: Summary | None

    def evals_of(self, split: Split) -> tuple[EvalRecord, ...]:
        """The evaluations of one split, by step."""
        return tuple(record for record in self.evals if record.split == split)

    def rollouts(self) -> Iterator[RolloutRecord]:
        """Every rollout that is part of the run, read from the disk one by one (a first pass finds what a resume took
        back)."""
        path = self.path / ROLLOUTS
        horizon = _horizons(path)
        for number, record in _records(path):
            if isinstance(record, RolloutRecord) and record.step <= horizon.get(number, record.step):
                yield record


def read_run(path: Path) -> Run:
    """Reads a run directory. Raises `RunError` naming the file and the line of what cannot be read."""
    config = saved_config(path)
    kept = _without_taken_back(record for _, record in _records(path / METRICS))
    evals = {(record.step, record.split): record for record in kept if isinstance(record, EvalRecord)}
    return Run(
        path=path,
        config=config,
        steps=tuple(record for record in kept if isinstance(record, StepRecord)),
        evals=tuple(sorted(evals.values(), key=lambda record: record.step)),
        summary=_summary(path / SUMMARY),
    )


def _without_taken_back(records: Iterable[Record]) -> list[Record]:
    kept: list[Record] = []
    for record in records:
        if isinstance(record, ResumedRecord):
            kept = [earlier for earlier in kept if earlier.step <= record.step]
        else:
            kept.append(record)
    return kept


def _horizons(path: Path) -> dict[int, int]:
    """For each line that some later resume bears on, the last step that still counts."""
    numbers: list[int] = []
    horizon: dict[int, int] = {}
    for number, record in _records(path):
        numbers.append(number)
        if isinstance(record, ResumedRecord):
            for earlier in numbers:
                horizon[earlier] = min(horizon.get(earlier, record.step), record.step)
    return horizon


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    """Line numbers and records. Lines that a kill cut short are passed over: they can only be the last ones, or stand
    before a `resumed` line; anywhere else the file was damaged."""
    torn: tuple[int, ValueError] | None = None
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = record_from_json(line)
            except ValueError as error:
                torn = torn or (number, error)
                continue
            if torn and not isinstance(record, ResumedRecord):
                raise _damaged(path, *torn) from torn[1]
            torn = None
            yield number, record


def _damaged(path: Path, number: int, error: ValueError) -> RunError:
    return RunError(
        "a line of the run's records cannot be read",
        got=f"{path}, line {number}: {str(error).splitlines()[0]}",
        why="lines are written whole and never changed, so something else wrote to this file",
        do="restore the file, or remove that line",
    )


def _summary(path: Path) -> Summary | None:
    if not path.exists():
        return None
    try:
        return value_from_json(Summary, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError("the run's summary cannot be read", got=f"{path} ({error})", do="resume the run") from error
