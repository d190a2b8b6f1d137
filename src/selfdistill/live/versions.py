"""The versions of the weights that a server answers with. Exactly one is served, by the file of the journal itself.

A new version comes in three steps, and a process that ends between two of them leaves the old version or the new one:

1. write the adapter under a temporary name in its final place's directory, fsync its files, and rename the directory
2. `service.publish(path, parent=served.id)` loads it and raises `ModelError` for one that cannot be loaded; or, without
   a server, `versions.publish(model, path, parent=served.id)`: one transaction
3. `service.publish` then answers new requests with it (`service.serve(version)` does that for one published already);
   a server that starts serves what the journal says is served, its adapter included

A version that was undone marks its records: exchanges whose `version` it is are no lessons (`Journal.lessons`), as long
as nobody pins it again. Rows of other tables that name a version are marked in the same way, by its `state`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from selfdistill.errors import VersionError
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

    def get(self, version: int) -> Version:
        """A version by its number. Raises `VersionError`."""
        known = {each.id: each for each in self.all}
        if version not in known:
            raise VersionError("there is no such version", got=version, do=f"one of {[*known] or '(none)'}")
        return known[version]

    def line(self, version: Version) -> list[Version]:
        """A version, the one that it was trained from, and so on back to a model as it came."""
        known, found = {each.id: each for each in self.all}, [version]
        while (parent := found[-1].parent) is not None:
            found.append(known[parent])
        return found

    def before(self, count: int = 1) -> Version:
        """The version that is served once `count` are undone. Raises `VersionError` where there are not so many, and
        while one is pinned."""
        served = self.served
        earlier = [each for each in self.line(served)[1:] if each.state != "undone"] if served else []
        if served is None or len(earlier) < count:
            do = "publish a version first; a model as it came cannot be undone"
            got = f"served: {served and served.id}, before it: {len(earlier)}, to undo: {count}"
            raise VersionError("there is no version to go back to", got=got, do=do)
        if served.pinned:
            raise _pinned(served)
        return earlier[count - 1]

    def publish(self, model: str, path: str = "", *, parent: int | None = None) -> Version:
        """Publishes weights, and serves them. `parent` is the version that they were trained from; None for a model as
        it is. Raises `VersionError` while a version is pinned, and where the parent is served no longer."""
        with self._change() as (connection, served):
            if served and served.pinned:
                raise _pinned(served)
            if parent is not None and parent != (served and served.id):
                why = "the weights were trained from a version that is served no longer"
                got = f"parent {parent}, served {served and served.id}"
                raise VersionError("the new version does not follow the served one", got=got, why=why)
            connection.execute("UPDATE versions SET state = 'published' WHERE state = 'served'")
            connection.execute(
                "INSERT INTO versions(parent, created, model, path, state) VALUES (?, ?, ?, ?, 'served')",
                (parent, utc_now(), model, path),
            )
        return self._the_served()

    def undo(self, count: int = 1) -> Version:
        """Drops the served version and those that it was trained from, `count` in all, and serves the newest one before
        them that was not undone. Raises `VersionError` as `before`."""
        with self._change() as (connection, served):
            before = self.before(count)
            dropped = [each for each in self.line(served) if each.state != "undone"][:count] if served else []
            connection.executemany(
                "UPDATE versions SET state = 'undone' WHERE id = ?", [(each.id,) for each in dropped]
            )
            connection.execute("UPDATE versions SET state = 'served' WHERE id = ?", (before.id,))
        return self._the_served()

    def pin(self, version: int) -> Version:
        """Serves this version, an undone one too, and none other until it is unpinned. Raises `VersionError`."""
        with self._change() as (connection, _):
            self.get(version)
            connection.execute("UPDATE versions SET state = 'published', pinned = 0 WHERE state = 'served'")
            connection.execute("UPDATE versions SET state = 'served', pinned = 1 WHERE id = ?", (version,))
        return self._the_served()

    def unpin(self) -> Version:
        """Lets newer versions follow the served one again. Raises `VersionError` without any version."""
        with self._change() as (connection, _):
            connection.execute("UPDATE versions SET pinned = 0")
        return self._the_served()

    @contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, Version | None]]:
        with self._database.transaction() as connection:
            yield connection, self.served
            if not self.served:
                raise VersionError("no version is published", do="publish one first")

    def _the_served(self) -> Version:
        served = self.served
        assert served, "every change leaves one"
        return served


def _version(row: sqlite3.Row) -> Version:
    return Version(**{**dict(row), "pinned": bool(row["pinned"])})


def _pinned(served: Version) -> VersionError:
    return VersionError("the served version is pinned", got=f"version {served.id}", do="unpin it first")
