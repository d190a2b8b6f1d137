"""The versions of the weights that a server answers with. Exactly one is served, by the file of the journal itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from selfdistill.errors import JournalError
from selfdistill.live.database import Database, utc_now
from selfdistill.live.exchange import Version


class Versions:
    """Published versions. Each change is one transaction: whatever ends the process, one version is served, the old or
    the new one. Write the weights to the disk first, then publish them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def all(self) -> tuple[Version, ...]:
        """Every version, oldest first."""
        return tuple(map(_version, self._database.rows("SELECT * FROM versions ORDER BY id")))

    @property
    def served(self) -> Version | None:
        """The version that answers; None before the first is published."""
        return next((version for version in self.all if version.state == "served"), None)

    def publish(self, model: str, path: str = "", *, parent: int | None = None) -> Version:
        """Publishes weights, and serves them. `parent` is the version that they were trained from; None for a model as
        it is. Raises `JournalError` while a version is pinned, and where the parent is served no longer."""
        with self._change() as (connection, served):
            if served and served.pinned:
                raise _pinned(served)
            if parent is not None and parent != (served and served.id):
                why = "the weights were trained from a version that is served no longer"
                got = f"parent {parent}, served {served and served.id}"
                raise JournalError("the new version does not follow the served one", got=got, why=why)
            connection.execute("UPDATE versions SET state = 'published' WHERE state = 'served'")
            connection.execute(
                "INSERT INTO versions(parent, created, model, path, state) VALUES (?, ?, ?, ?, 'served')",
                (parent, utc_now(), model, path),
            )
        return self._the_served()

    def undo(self) -> Version:
        """Drops the served version, and serves the newest one before it that was not undone. Raises `JournalError` for
        one that has none before it, and for a pinned one."""
        with self._change() as (connection, served):
            before = self._before(served)
            if served is None or before is None:
                do = "publish a version first; a model as it came cannot be undone"
                raise JournalError("there is no version to go back to", got=f"served: {served and served.id}", do=do)
            if served.pinned:
                raise _pinned(served)
            connection.execute("UPDATE versions SET state = 'undone' WHERE id = ?", (served.id,))
            connection.execute("UPDATE versions SET state = 'served' WHERE id = ?", (before.id,))
        return self._the_served()

    def pin(self, version: int) -> Version:
        """Serves this version, an undone one too, and none other until it is unpinned. Raises `JournalError`."""
        with self._change() as (connection, _):
            if not connection.execute("SELECT 1 FROM versions WHERE id = ?", (version,)).fetchone():
                known = ", ".join(str(each.id) for each in self.all)
                raise JournalError("there is no such version", got=version, do=f"one of {known or '(none)'}")
            connection.execute("UPDATE versions SET state = 'published', pinned = 0 WHERE state = 'served'")
            connection.execute("UPDATE versions SET state = 'served', pinned = 1 WHERE id = ?", (version,))
        return self._the_served()

    def unpin(self) -> Version:
        """Lets newer versions follow the served one again. Raises `JournalError` without any version."""
        with self._change() as (connection, _):
            connection.execute("UPDATE versions SET pinned = 0")
        return self._the_served()

    def _before(self, version: Version | None) -> Version | None:
        """The nearest version that this one was trained from, over others, and that was not undone."""
        known = {each.id: each for each in self.all}
        while version and version.parent is not None:
            version = known[version.parent]
            if version.state != "undone":
                return version
        return None

    @contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, Version | None]]:
        with self._database.transaction() as connection:
            yield connection, self.served
            if not self.served:
                raise JournalError("no version is published", do="publish one first")

    def _the_served(self) -> Version:
        served = self.served
        assert served, "every change leaves one"
        return served


def _version(row: sqlite3.Row) -> Version:
    return Version(**{**dict(row), "pinned": bool(row["pinned"])})


def _pinned(served: Version) -> JournalError:
    return JournalError("the served version is pinned", got=f"version {served.id}", do="unpin it first")
