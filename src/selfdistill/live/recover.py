"""What can still be read of a damaged journal, in a new one."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path

from selfdistill.errors import JournalError
from selfdistill.live.database import Database
from selfdistill.live.journal import JSON_COLUMNS

TABLES = (
    "versions",
    "exchanges",
    "follow_ups",
    "feedback",
    "settings",
    "updates",
)  # in the order in which they refer to one another


def recover(source: Path, target: Path) -> tuple[Counter[str], Counter[str]]:
    """Copies every row that can be read, one by one, into a new journal: the rows of each table that were copied, and
    those that were lost. Raises `JournalError` for a target that exists and a source whose first pages are damaged."""
    if target.exists():
        raise JournalError("the file exists", got=target, do="name another one")
    copied, lost = Counter[str](), Counter[str]()
    old = Database(source, serving=False)
    try:
        last = dict(tuple(row) for row in old.rows("SELECT name, seq FROM sqlite_sequence"))
        new = Database(target, serving=True)
        try:
            with new.transaction() as connection:
                for table in TABLES:
                    for number in range(1, last.get(table, 0) + 1):
                        found = _copy(old, connection, table, number)
                        copied[table] += found is True
                        lost[table] += found is False
        finally:
            new.close()
    finally:
        old.close()
    return copied, lost


def _copy(old: Database, connection: sqlite3.Connection, table: str, number: int) -> bool | None:
    """Whether a row could be copied; None where there is none."""
    try:
        rows = old.rows(f"SELECT * FROM {table} WHERE rowid = ?", (number,))
        if not rows:
            return None
        row = dict(rows[0])
        for name in JSON_COLUMNS if table == "exchanges" else ():
            json.loads(row[name])
        columns = ", ".join(row)
        connection.execute(f"INSERT INTO {table}({columns}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    except (JournalError, sqlite3.IntegrityError, ValueError):  # unreadable, about a row that was, or overwritten
        return False
    return True
