"""The updates of a journal: what was tried, on which lessons, and what became of it.

A row is `queued`, then `training` in one process, then `accepted`, `rejected` or `failed`; `review` is a candidate
that waits for a person. An update whose version was undone reads as `undone`. Lessons count as learned only once their
update is accepted: whatever ends a process before leaves them as they were.

The candidate's weights are on the disk before its row names them, and its version is published before its row says
`accepted`: `repaired` finishes a row whose version was published, and fails one whose process is gone.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfdistill.errors import JournalError
from selfdistill.live.database import Database, utc_now

MOST_TRIES = 2  # updates with a lesson that were rejected, after which it is not tried again
State = Literal["queued", "training", "review", "accepted", "rejected", "failed", "undone"]


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """An update. `lessons` are keys, `parent` is the version that it was trained from, `version` the one that it
    became, `path` the directory of its weights, `numbers` what was measured."""

    id: int
    created: str
    trigger: str
    state: State
    reason: str = ""
    ended: str = ""
    parent: int | None = None
    version: int | None = None
    path: str = ""
    lessons: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    process: str = ""

    def public(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "id": self.id, "state": self.state, "reason": self.reason, "version": self.version,
            "lessons": len(self.lessons), "numbers": dict(self.numbers), "parent": self.parent,
            "trigger": self.trigger, "created": self.created, "ended": self.ended,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class History:
    """What earlier updates made of lessons, by their keys: `learned` by versions that were not undone, the newest
    last; `barred` by those that were undone, or rejected too often."""

    learned: Sequence[str] = ()
    barred: Collection[str] = ()


class Updates:
    """The updates of one journal, in its file. Each change is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def all(self) -> list[UpdateRecord]:
        """Every update, oldest first."""
        if not self._database.rows("SELECT 1 FROM sqlite_master WHERE name = 'updates'"):
            return []  # a journal that never learned
        undone = {row[0] for row in self._database.rows("SELECT id FROM versions WHERE state = 'undone'")}
        return [_record(row, undone) for row in self._database.rows("SELECT * FROM updates ORDER BY id")]

    def get(self, number: int) -> UpdateRecord:
        """One update. Raises `JournalError`."""
        found = next((each for each in self.all if each.id == number), None)
        if found is None:
            raise JournalError("there is no such update", got=number, do="`selfdistill journal updates` lists them")
        return found

    def queue(self, trigger: str) -> UpdateRecord:
        """A new update that waits; the one that waits already, where there is one."""
        with self._database.transaction() as connection:
            waits = connection.execute("SELECT id FROM updates WHERE state = 'queued'").fetchone()
            number = waits and waits[0]
            if number is None:
                insert = "INSERT INTO updates(created, trigger, state) VALUES (?, ?, 'queued')"
                number = connection.execute(insert, (utc_now(), trigger)).lastrowid
        return self.get(number)

    def change(self, number: int, state: State, *, only_from: Iterable[State], **columns: Any) -> UpdateRecord:
        """Sets the state of an update and other columns. Raises `JournalError` where it is in another state: somebody
        else changed it."""
        values = {name: _stored(value) for name, value in columns.items()}
        with self._database.transaction() as connection:
            row = connection.execute("SELECT state FROM updates WHERE id = ?", (number,)).fetchone()
            if row is None or row[0] not in only_from:
                got = f"update {number} is {row[0] if row else 'not there'}"
                raise JournalError(f"this update cannot become {state}", got=got, do="look at the updates")
            ended = utc_now() if state in ("accepted", "rejected", "failed") else ""
            assigned = ", ".join(f"{name} = ?" for name in ("state", "ended", *values))
            connection.execute(f"UPDATE updates SET {assigned} WHERE id = ?", (state, ended, *values.values(), number))
        return self.get(number)

    def history(self) -> History:
        """What earlier updates made of lessons."""
        done = self.all
        learned = dict.fromkeys(key for each in done if each.state == "accepted" for key in each.lessons)
        decided = [each for each in done if each.state == "rejected" and not each.numbers.get("undecided")]
        tries = Counter(key for each in decided for key in each.lessons)
        known = [each for each in done if not each.numbers.get("undecided")]
        tries += Counter(key for each in known for key in each.numbers.get("without_gain", ()))
        barred = {key for key, count in tries.items() if count >= MOST_TRIES}
        barred |= {key for each in done if each.state == "review" for key in each.lessons}
        barred |= {key for each in done if each.state == "undone" for key in each.lessons if key not in learned}
        barred |= {key for each in done for key in each.numbers.get("passed_over", ())}
        return History([key for key in learned if key not in barred], barred)

    def repaired(self) -> list[UpdateRecord]:
        """Finishes what a process that is gone left behind; what was changed. Call it where no other process learns,
        at the start of a server."""
        published = {row["path"]: row["id"] for row in self._database.rows("SELECT path, id FROM versions")}
        changed = []
        for each in self.all:
            if each.state in ("training", "review") and each.path and each.path in published:
                version = published[each.path]
                changed.append(self.change(each.id, "accepted", only_from=[each.state], version=version))
            elif each.state == "training" and not alive(each.process):
                why = "its process ended before it was done; its lessons wait for the next update"
                changed.append(self.change(each.id, "failed", only_from=["training"], reason=why))
        return changed


def this_process() -> str:
    """Names this process: a number may be given again once it has ended."""
    return f"{os.getpid()} {_started(os.getpid())}"


def alive(process: str) -> bool:
    """Whether the process of that name still runs."""
    number, _, started = process.partition(" ")
    return number.isdigit() and _started(int(number)) not in ("", "gone") and _started(int(number)) == started


def _started(number: int) -> str:
    """When a process began, in the words of its system."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = text.rpartition(")")[2].split()
        return "gone" if state in "ZX" else rest[18]
    except FileNotFoundError:
        pass
    try:
        os.kill(number, 0)
    except OSError:
        return ""
    return "?"  # a system without /proc


def _record(row: sqlite3.Row, undone: set[int]) -> UpdateRecord:
    fields: dict[str, Any] = dict(row)
    state = "undone" if fields["version"] in undone and fields["state"] == "accepted" else fields["state"]
    read = {"lessons": tuple(json.loads(fields["lessons"])), "numbers": json.loads(fields["numbers"])}
    return UpdateRecord(**{**fields, **read, "state": state})


def _stored(value: Any) -> Any:
    """A value of a column: lists and objects as JSON."""
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str)
        else value
    )
