"""The file of a journal: SQLite in WAL mode, its schema, its transactions, and what can be wrong with it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfdistill.errors import JournalError, JournalFullError

APPLICATION = 0x53444A4C  # "SDJL" in the header of the file
WAIT_S = 10.0  # for another process's transaction

# What each version of the schema adds to the one before; a server brings an older file up to date.
TABLES = (
    """
CREATE TABLE versions(
    id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER REFERENCES versions(id), created TEXT NOT NULL,
    model TEXT NOT NULL, path TEXT NOT NULL, state TEXT NOT NULL CHECK(state IN ('served', 'published', 'undone')),
    pinned INTEGER NOT NULL DEFAULT 0 CHECK(pinned = 0 OR state = 'served'));
CREATE UNIQUE INDEX one_served ON versions(state) WHERE state = 'served';
CREATE TABLE exchanges(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, receipt TEXT NOT NULL UNIQUE, conversation TEXT NOT NULL,
    found_by TEXT NOT NULL, created TEXT NOT NULL, version INTEGER NOT NULL REFERENCES versions(id),
    kind TEXT NOT NULL CHECK(kind IN ('main', 'side')), rule TEXT NOT NULL,
    status TEXT NOT NULL CHECK(status IN ('complete', 'cancelled')), stop TEXT NOT NULL,
    new_text TEXT NOT NULL, text TEXT NOT NULL, request TEXT NOT NULL, reply TEXT NOT NULL, sampling TEXT NOT NULL,
    headers TEXT NOT NULL, reply_hash TEXT NOT NULL, prompt_ids TEXT NOT NULL, sampled_ids TEXT NOT NULL,
    logprobs TEXT NOT NULL);
CREATE INDEX by_conversation ON exchanges(conversation, seq);
CREATE INDEX by_reply ON exchanges(reply_hash, conversation, seq);
CREATE TABLE follow_ups(
    id INTEGER PRIMARY KEY AUTOINCREMENT, exchange INTEGER NOT NULL REFERENCES exchanges(seq) ON DELETE CASCADE,
    came_with INTEGER NOT NULL REFERENCES exchanges(seq) ON DELETE CASCADE, messages TEXT NOT NULL,
    UNIQUE(exchange, messages));
CREATE INDEX by_came_with ON follow_ups(came_with);
CREATE TABLE feedback(
    id INTEGER PRIMARY KEY AUTOINCREMENT, exchange INTEGER NOT NULL REFERENCES exchanges(seq) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK(kind IN ('text', 'rating', 'solution')), value TEXT NOT NULL, created TEXT NOT NULL,
    UNIQUE(exchange, kind, value));
""",
    """
CREATE TABLE settings(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, value TEXT NOT NULL);
""",
    """
CREATE TABLE updates(
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, ended TEXT NOT NULL DEFAULT '',
    trigger TEXT NOT NULL, state TEXT NOT NULL
    CHECK(state IN ('queued', 'training', 'review', 'accepted', 'rejected', 'failed')),
    reason TEXT NOT NULL DEFAULT '', process TEXT NOT NULL DEFAULT '', parent INTEGER REFERENCES versions(id),
    version INTEGER REFERENCES versions(id), path TEXT NOT NULL DEFAULT '', lessons TEXT NOT NULL DEFAULT '[]',
    numbers TEXT NOT NULL DEFAULT '{}');
""",
)
SCHEMA = len(TABLES)


def utc_now() -> str:
    """The time for people; the order of things is that of their ids."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Database:
    """One connection for all threads of a process. `serving` creates the file where there is none, holds it against a
    second server, and looks for damage; without, it must be a journal already."""

    def __init__(self, path: Path, *, serving: bool) -> None:
        self.path, self._mutex, self._held, self._made = path, threading.RLock(), None, False
        if serving:
            self._held = _hold(path)
        try:
            with self._errors():
                self._connection = self._opened(serving)
        except BaseException:
            if self._made:
                path.unlink(missing_ok=True)
            self._release()
            raise

    def close(self) -> None:
        """Closes the file, and lets another server have it. One that was made here, and in which no version was ever
        published, is removed: a server that could not start leaves nothing behind."""
        try:
            with self._mutex, self._errors():
                unused = self._made and not self.rows("SELECT 1 FROM sqlite_sequence WHERE name = 'versions'")
                self._made = False
                self._connection.close()
            if unused:
                self.path.unlink(missing_ok=True)
        finally:
            self._release()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query. Raises `JournalError`."""
        with self._mutex, self._errors():
            return self._connection.execute(sql, values).fetchall()

    def function(self, name: str, function: Callable[[str], str]) -> None:
        """A function of Python for queries."""
        with self._mutex:
            self._connection.create_function(name, 1, function, deterministic=True)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the statements or none; durable once the block is left. Raises `JournalError`, `JournalFullError`."""
        with self._mutex, self._errors():
            if not self.path.exists() or self.path.stat().st_ino != self._inode:
                do = "start again; what was recorded before is in the file that was removed"
                raise JournalError("the journal was removed or replaced", got=self.path, do=do)
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def flush(self) -> bool:
        """Gives deleted pages back and empties the write-ahead log; False while another process reads it."""
        with self._mutex, self._errors():
            self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` stops after a page
        return not self.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]

    def check(self) -> None:
        """Reads every page. Raises `JournalError` for damage."""
        found = [str(row[0]) for row in self.rows("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            raise _damaged(self.path, "; ".join(found))

    def _opened(self, serving: bool) -> sqlite3.Connection:
        if serving:
            with suppress(FileExistsError):  # people's words: for its owner alone
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
                self._made = True
        elif not self.path.is_file():
            raise JournalError("there is no journal", got=self.path, do="check the name; `serve` makes one")
        connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        try:
            connection.row_factory = sqlite3.Row
            for setting in ("foreign_keys = ON", "secure_delete = ON", "synchronous = FULL", "fullfsync = ON"):
                connection.execute(f"PRAGMA {setting}")
            if serving and not self.rows("SELECT 1 FROM sqlite_master") and not self._number("application_id"):
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                head = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA};"
                connection.executescript(f"BEGIN IMMEDIATE; {''.join(TABLES)} {head} COMMIT;")
            older = self._check_schema()
            if serving and older < SCHEMA:
                added = "".join(TABLES[older:])
                connection.executescript(f"BEGIN IMMEDIATE; {added} PRAGMA user_version = {SCHEMA}; COMMIT;")
            if serving:
                if self.rows("PRAGMA journal_mode = WAL")[0][0] != "wal":
                    why = "it is on a network, or in memory"
                    raise JournalError("this file system cannot hold a journal", got=self.path, why=why)
                self.check()
        except BaseException:
            connection.close()
            raise
        self._inode = self.path.stat().st_ino
        return connection

    def _number(self, name: str) -> int:
        return int(self.rows(f"PRAGMA {name}")[0][0])

    def _check_schema(self) -> int:
        """The version of its tables."""
        if self._number("application_id") != APPLICATION:
            raise _no_journal(self.path, "a database of another program")
        if (version := self._number("user_version")) > SCHEMA:
            got, why = f"{self.path}: schema {version}", f"this version of selfdistill knows schema {SCHEMA}"
            raise JournalError("the journal is of another version", got=got, why=why, do="upgrade selfdistill")
        return version

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of SQLite in words."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                do = "free space, or move the journal; nothing of this was recorded"
                raise JournalFullError("the disk of the journal is full", got=self.path, do=do) from error
            if code == sqlite3.SQLITE_CORRUPT:
                raise _damaged(self.path, str(error)) from error
            if code == sqlite3.SQLITE_NOTADB:
                raise _no_journal(self.path, "no SQLite database") from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                why = f"another process has been writing for {WAIT_S:g} s"
                raise JournalError("the journal is in use", got=self.path, why=why, do="try again") from error
            if isinstance(error, sqlite3.OperationalError):
                do = "check the directory, its permissions and its disk"
                raise JournalError("the journal cannot be used", got=f"{self.path}: {error}", do=do) from error
            raise


def _hold(path: Path) -> sqlite3.Connection:
    """Holds the journal until it is closed or the process ends, however it ends. Raises `JournalError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = sqlite3.connect(f"{path}.lock", timeout=0, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise JournalError("the journal cannot be made", got=f"{path}: {error}", do="check the directory") from None
    try:
        held.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        held.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
            raise JournalError("the journal cannot be held", got=f"{path}.lock: {error}") from None
        why, do = "two servers would write one history", "stop the other one, or give this one a journal of its own"
        raise JournalError("another server has this journal", got=path, why=why, do=do) from None
    return held


def _no_journal(path: Path, got: str) -> JournalError:
    return JournalError("the file is no journal", got=f"{path}: {got}", do="name another file")


def _damaged(path: Path, got: str) -> JournalError:
    why = "a page of the file was overwritten or lost; what is recorded from here on could be lost with it"
    do = f"save what can be read: selfdistill journal recover {path} NEW; then use NEW"
    return JournalError("the journal is damaged", got=f"{path}: {got}", why=why, do=do)
