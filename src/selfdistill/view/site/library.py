"""What there is to see under the directories that were named: runs, searches, comparisons, journals.

Names are paths relative to those directories, and nothing is opened but what was found there.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from selfdistill.errors import RunError, SelfDistillError, nearest
from selfdistill.runs import Run, read_run
from selfdistill.runs.solving import RESULT
from selfdistill.runs.store import CHECKPOINTS, CONFIG, METRICS, ROLLOUTS, SEARCH, SUMMARY, saved_config
from selfdistill.view.site.index import RowIndex
from selfdistill.view.site.table import Columns

COMPARISON = "comparison.json"
DEEPEST, MOST = 5, 5000  # levels of directories below one that was named, and entries
LONG = 64 * 2**20  # bytes of rows without an index for which no page waits
ACTIVE_S = 120.0  # a run without a summary whose files changed this lately is taken for one that is being written
_SQLITE = b"SQLite format 3\0"
_JOURNAL = 0x53444A4C.to_bytes(4, "big")  # the application id in the header of a journal, at byte 68

Kind = Literal["run", "search", "comparison", "journal"]


@dataclass(slots=True)
class Entry:
    """One thing to look at. `run` and its state are read again when its files have changed."""

    id: str
    kind: Kind
    path: Path
    index: RowIndex | None = None
    columns: Columns = field(default_factory=Columns)
    _run: Run | None = None
    _mark: tuple[object, ...] = ()
    _lock: Lock = field(default_factory=Lock)

    @property
    def mark(self) -> tuple[object, ...]:
        """What changes when the records of the run change."""
        return tuple(_stat(self.path / name) for name in (CONFIG, METRICS, SUMMARY, ROLLOUTS))

    @property
    def run(self) -> Run:
        """The run as it is now. Raises `RunError`."""
        with self._lock:
            mark = self.mark[:-1]
            if self._run is None or mark != self._mark:
                self._run, self._mark = read_run(self.path), mark
            return self._run

    @property
    def rows(self) -> RowIndex:
        """The index of its rollouts, up to date."""
        with self._lock:
            self.index = index = self.index or RowIndex(self.path / ROLLOUTS)
        index.refresh()
        return index

    @property
    def counts(self) -> dict[str, int | bool] | None:
        """How many rollouts there are; None while a long file is indexed, which this begins."""
        with self._lock:
            self.index = index = self.index or RowIndex(self.path / ROLLOUTS)
        if index.behind > LONG and not index.busy:
            Thread(target=index.refresh, daemon=True).start()
            return None
        return None if index.busy else self.rows.counts

    @property
    def status(self) -> str:
        """finished, writing or stopped."""
        if (self.path / SUMMARY).exists():
            return "finished"
        newest = max((found[1] for n in (CONFIG, METRICS, ROLLOUTS) if (found := _stat(self.path / n))), default=0)
        return "writing" if time.time() - newest / 1e9 < ACTIVE_S else "stopped"


class Library:
    """The entries under some directories. Raises `RunError` for a path where there is nothing."""

    def __init__(self, roots: list[Path]) -> None:
        self.roots, self._entries = [root.absolute() for root in roots], dict[str, Entry]()
        for root in self.roots:
            if not root.exists():
                raise RunError("there is no such file or directory", got=root, do="name a directory of runs, or a run")
        self.look()
        if not self._entries:
            why = f"a run holds {CONFIG}; a journal is the file of `selfdistill serve`"
            got = ", ".join(map(str, self.roots))
            raise RunError("there is nothing to view", got=got, why=why, do="name a directory of runs, or a run")

    def look(self) -> list[Entry]:
        """All entries, new ones included."""
        found: dict[str, Entry] = {}
        for root in self.roots:
            for path, kind in _found(root):
                name = path.relative_to(root).as_posix()
                name = root.name if name == "." else name if len(self.roots) == 1 else f"{root.name}/{name}"
                unique = next(n for k in range(1, MOST) if (n := name if k == 1 else f"{name} ({k})") not in found)
                found[unique] = self._entries.get(unique) or Entry(unique, kind, path)
        self._entries = found
        return list(found.values())

    def get(self, name: str, *kinds: Kind) -> Entry:
        """The entry of this name. Raises `RunError`."""
        entry = self._entries.get(name) or {entry.id: entry for entry in self.look()}.get(name)
        if entry is None or (kinds and entry.kind not in kinds):
            raise RunError(f"there is no {' or '.join(kinds) or 'entry'} {name!r}", do=nearest(name, self._entries))
        return entry

    def inside(self, entry: Entry) -> list[Entry]:
        """The entries in the directory of another one."""
        return [other for other in self._entries.values() if entry.path in other.path.parents]


def _found(root: Path) -> list[tuple[Path, Kind]]:
    """Entries under a directory, by name; links are not followed."""
    if root.is_file():
        return [(root, "journal")] if _is_journal(root) else []
    found = list[tuple[Path, Kind]]()
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        deep = len(here.relative_to(root).parts) >= DEEPEST
        folders[:] = [] if deep else sorted(n for n in folders if n[0] != "." and n not in (CHECKPOINTS, "tensorboard"))
        if COMPARISON in files:
            found.append((here, "comparison"))
        elif CONFIG in files and (kind := _kind(here)):
            found.append((here, kind))
        found += [(here / n, "journal") for n in sorted(files) if n.endswith(".db") and _is_journal(here / n)]
        if len(found) >= MOST:
            break
    return found


def _kind(path: Path) -> Kind | None:
    """What a directory with a config holds; None: a model, or something else with a file of this name."""
    try:
        settings = saved_config(path)["settings"]
    except SelfDistillError:
        return "run" if (path / METRICS).exists() else None
    return "search" if SEARCH in settings and not (path / METRICS).exists() and not (path / RESULT).exists() else "run"


def _is_journal(path: Path) -> bool:
    """Whether a file has the application id of a journal; of one that is written it may stand in the log alone."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
        if head.startswith(_SQLITE) and head[68:72] != _JOURNAL and path.with_name(f"{path.name}-wal").exists():
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
                return bool(
                    connection.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(_JOURNAL, "big")
                )
    except (OSError, sqlite3.Error):
        return False
    return head.startswith(_SQLITE) and head[68:72] == _JOURNAL


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def is_here(host: str) -> bool:
    """Whether a host, with or without a port, is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def name_of(value: Any) -> str:
    """The name of a method or an environment in settings of any version."""
    return str(value.get("name", "")) if isinstance(value, Mapping) else str(value or "")


def summary_of(entry: Entry) -> dict[str, Any]:
    """A line of the table of runs: what was run, how far it came, accuracies before and after."""
    line: dict[str, Any] = {"id": entry.id, "kind": entry.kind, "path": str(entry.path)}
    if entry.kind != "run":
        return line
    line["status"] = entry.status
    try:
        run = entry.run
    except SelfDistillError as error:
        return line | {"error": str(error)}
    settings, last = run.config["settings"], run.steps[-1] if run.steps else None
    line |= {name: name_of(settings.get(name)) for name in ("model", "method", "env")}
    line |= {"seed": settings.get("seed"), "steps": settings.get("steps"), "step": last.step if last else 0}
    line |= {"completions": last.completions_sampled if last else 0, "wall_s": last.wall_s if last else 0.0}
    line |= {"reward": last.reward if last else None, "guard": run.guards[-1].action if run.guards else ""}
    line |= {"preflight": run.preflight.decision if run.preflight else ""}
    line["result"] = (entry.path / RESULT).exists()
    pairs: dict[str, list[Any]] = {}
    for record in run.evals:
        pairs.setdefault(record.split, [record.accuracy, None])
        if record is not run.evals_of(record.split)[0]:
            pairs[record.split][1] = record.accuracy
    return line | {"accuracy": pairs}


def result_of(entry: Entry) -> Mapping[str, Any] | None:
    """The `result.json` of the search for one task."""
    try:
        found: Mapping[str, Any] = json.loads((entry.path / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
