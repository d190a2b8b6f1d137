"""Writes run directories. Nothing is changed in place: files grow by whole lines, or appear at once.

    <run>/config.json     settings, versions, seed, git commit, device, sandbox level
          metrics.jsonl   what was measured              rollouts.jsonl   what was sampled, scored and learned from
          checkpoints/    step-000040/ …                 summary.json     written when the run is done

Step n is the n-th generation batch and all updates made from it, an evaluation of step n follows them. After a kill, a
run is resumed from a checkpoint; a `resumed` line invalidates earlier lines about later steps. A step is complete when
its line is in metrics.jsonl, which is written after its rollouts.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from selfdistill.errors import RunError
from selfdistill.runs.old_names import SETTINGS as OLD_SETTINGS
from selfdistill.runs.old_names import renamed_settings
from selfdistill.runs.records import Record, ResumedRecord, RolloutRecord, Summary, adapter, to_json, value_from_json

CONFIG, SUMMARY, CHECKPOINTS = "config.json", "summary.json", "checkpoints"
METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl"
SEARCH = "solve"  # the table that the settings of a search have beside those of a run
MEBIBYTE = 2**20


class RunDir(AbstractContextManager["RunDir"]):
    """Writes one run. Use `create` or `resume`, and `close` it (or use it in a `with`) at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = lock_directory(path)
        try:
            self._files = {name: open(path / name, "ab+", buffering=0) for name in (METRICS, ROLLOUTS)}  # noqa: SIM115
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], *, expected_bytes: int = 64 * MEBIBYTE) -> RunDir:
        """A new run directory holding `config`. Raises `RunError` when `path` is in use, cannot be written to, or has
        fewer than `expected_bytes` free."""
        refuse_in_use(path)
        probe(path, expected_bytes)
        write_atomic(path / CONFIG, json.dumps(config, indent=2, default=str) + "\n")
        return cls(path)

    @classmethod
    def resume(cls, path: Path, step: int, changes: Mapping[str, Any] = {}) -> RunDir:
        """Opens a run to resume after `step`, with the `changes` to its settings that `allowed_changes` found."""
        saved_config(path)
        probe(path, 0)
        run = cls(path)
        # metrics.jsonl first: were it still to count steps whose rollouts are taken back, a kill would lose those
        for name in (METRICS, ROLLOUTS):
            file = run._files[name]
            _end_torn_line(file)
            _write(file, to_json(ResumedRecord(step, dict(changes))) + "\n", path)
        return run

    @property
    def checkpoints(self) -> Path:
        """The directory of step directories; made on first use."""
        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return folder

    def append(self, *records: Record) -> None:
        """Writes records, one a line, and returns once they are on the disk. Raises `RunError` when they cannot be.

        Rollouts come first: where metrics.jsonl counts a step, its rollouts are on the disk.
        """
        lines: dict[str, list[str]] = {ROLLOUTS: [], METRICS: []}
        for record in records:
            lines[ROLLOUTS if isinstance(record, RolloutRecord) else METRICS].append(to_json(record) + "\n")
        for name, texts in lines.items():
            if texts:
                _write(self._files[name], "".join(texts), self.path)

    def finish(self, summary: Summary) -> None:
        """Writes summary.json at once."""
        write_atomic(self.path / SUMMARY, to_json(summary, indent=2) + "\n")

    def close(self) -> None:
        """Closes the files and lets others write to this run."""
        for file in (*self._files.values(), self._lock):
            file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def probe(path: Path, expected_bytes: int) -> None:
    """Makes `path` and raises `RunError` unless it can be written to and has `expected_bytes` of free space."""
    trial = path / ".probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write_durably(trial, "\0" * 4096)
        trial.unlink()
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise _unwritable(path, error) from error
    if free < expected_bytes:
        got = f"{free / MEBIBYTE:,.0f} MiB free at {path}, about {expected_bytes / MEBIBYTE:,.0f} MiB needed"
        do = "make room, choose another --out, or save fewer checkpoints (checkpoint_every)"
        raise RunError("the disk is too full for this run", got=got, do=do)


def write_atomic(path: Path, text: str) -> None:
    """Writes a file that is either whole or not there. Raises `RunError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_durably(temporary, text)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path.name} cannot be written", got=error, do=_when_there_is_room(path.parent)) from error


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class _Optimiser:
    lr: float = 0.0


@dataclass(frozen=True, slots=True)
class _Settings:
    """The saved settings that readers use; the others are checked on resume."""

    method: str | dict[str, Any] = ""
    env: str | dict[str, Any] = ""
    optimiser: _Optimiser = _Optimiser()
    solve: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Config:
    settings: _Settings


def saved_config(path: Path) -> dict[str, Any]:
    """The config.json of a run, with its `settings` under today's names. Raises `RunError` when there is none, or when
    it is not what a run writes."""
    config = _config_as_written(path)
    return config | {"settings": renamed_settings(config["settings"])}


def _config_as_written(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        adapter(_Config).validate_json(text)
    except OSError as error:
        do = f"name a directory that a run made: it holds {CONFIG}"
        raise RunError("this is not a run directory", got=f"{path} ({error})", do=do) from error
    except ValidationError as error:
        first = error.errors()[0]
        why, do = " ".join([".".join(map(str, first["loc"])), first["msg"]]), "restore it, or start a new run"
        raise RunError(f"{CONFIG} is not what a run writes", got=file, why=why, do=do) from error
    config: dict[str, Any] = json.loads(text)
    return config


def allowed_changes(
    path: Path,
    settings: Mapping[str, Any],
    may_change: Collection[str],
    completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> dict[str, Any]:
    """The dotted keys of `settings` that differ from those of a run, with their values. `completed` adds the defaults
    of keys that settings lack: a run that is older than a setting had its default. Raises `RunError` for a change
    outside `may_change`, and for a directory without a run."""
    saved = _config_as_written(path)["settings"]
    if OLD_SETTINGS.keys() & saved.keys():
        why, do = "settings and records have other names since", "start a new run"
        raise RunError("a run of an earlier version is read, but not resumed", got=path / CONFIG, why=why, do=do)
    changes = changed_settings(completed(saved), completed(settings))
    refused = sorted(set(changes) - set(may_change))
    if refused:
        why, do = "its records would mix two experiments", f"leave them as in {path / CONFIG}, or start a new run"
        got = ", ".join(f"{key} = {changes[key]!r}"[:80] for key in refused)
        raise RunError("a resumed run cannot change its settings", got=got, why=why, do=do)
    return changes


def read_json_file(kind: Any, file: Path, what: str, do: str) -> Any:
    """The value of `kind` in a file of JSON, None where there is no file. Raises `RunError`."""
    try:
        return value_from_json(kind, file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise RunError(f"{what} cannot be read", got=f"{file} ({error})", do=do) from error


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The dotted keys whose values differ, with their new values (None where a key is gone)."""
    changes: dict[str, Any] = {}
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes |= changed_settings(before, after, f"{prefix}{key}.")
        elif before != after:
            changes[prefix + key] = after
    return changes


def fresh_path(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `name-2`, `name-3` … that does not exist."""
    taken = (parent / (name if n == 1 else f"{name}-{n}") for n in range(1, 10**6))
    return next(path for path in taken if not path.exists())


def _when_there_is_room(path: Path) -> str:
    """Advice after a failed write into `path`."""
    command = resuming(path)
    return f"make room, then resume with: {command}" if command else "make room, then start again"


def refuse_in_use(path: Path) -> None:
    """Raises `RunError` for a file, and for a directory that is not empty."""
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
        command, why = resuming(path), "nothing overwrites another run's records"
        resumed = f", or pass it as resume=…, or resume its run: {command}" if command else ""
        do = f"choose another with out (--out){resumed}"
        raise RunError("the directory is already in use", got=path, why=why, do=do)


def resuming(path: Path) -> str:
    """The command that resumes the run in `path`; empty where there is none."""
    # The runs of a search's tasks are resumed with the directory of the search, which has settings of its own.
    for folder in (path.parent, path):
        with suppress(RunError):
            if SEARCH in saved_config(folder)["settings"]:
                return f"selfdistill solve --resume {folder}"
    return f"selfdistill train --resume {path}" if (path / CONFIG).exists() else ""


def lock_directory(path: Path) -> IO[bytes]:
    """Holds the run for this process. The lock ends with the process, however it ends, and children do not inherit it
    (so a sandbox worker that outlives a kill does not block the resume)."""
    try:
        file = open(path / ".lock", "ab")  # noqa: SIM115 (open as long as the run)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        do = "wait until it ends, or stop it, then resume"
        raise RunError("another process is writing to this run", got=path, do=do) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    return file


def _write(file: IO[bytes], text: str, path: Path) -> None:
    data = memoryview(text.encode())
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise RunError("the run's records cannot be written", got=error, do=_when_there_is_room(path)) from error


def _end_torn_line(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        "the run directory cannot be written to", got=f"{path} ({error})", do="choose another with out (--out)"
    )
