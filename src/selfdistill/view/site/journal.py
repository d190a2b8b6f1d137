"""The journal of a served model, read from its file as `docs/live.md` describes it, beside a server too."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selfdistill.errors import RunError

MOST = 500  # conversations or exchanges on one page


def journal_of(path: Path, text: str, page: int = 0) -> dict[str, Any]:
    """Counts, versions, updates where they are recorded, and a page of conversations, the newest first (with a text:
    that hold it); one more than a page where others follow."""
    with _opened(path) as read:
        tables = {row["name"] for row in read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        known = [name for name in ("exchanges", "follow_ups", "feedback", "updates") if name in tables]
        counts = {name: read(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in known}
        where = "WHERE instr(fold(new_text), ?1) OR instr(fold(text), ?1)" if text else "WHERE ?1 = ''"
        conversations = read(
            "SELECT f.conversation AS name, n, side, f.created AS first, l.created AS last, f.new_text AS begins FROM ("
            "SELECT count(*) AS n, sum(kind = 'side') AS side, min(seq) AS a, max(seq) AS b FROM exchanges "
            f"WHERE conversation IN (SELECT conversation FROM exchanges {where}) GROUP BY conversation) "
            f"JOIN exchanges AS f ON f.seq = a JOIN exchanges AS l ON l.seq = b ORDER BY b DESC LIMIT {MOST + 1} "
            "OFFSET ?2",
            text.casefold(),
            MOST * page,
        )
        updates = read("SELECT * FROM updates ORDER BY rowid DESC") if "updates" in tables else []
        versions = read("SELECT * FROM versions ORDER BY id DESC")
    for line in conversations:
        line["begins"] = line["begins"][:160]
    found = {"counts": counts, "versions": versions, "updates": updates, "first": MOST * page}
    return found | {"conversations": conversations[:MOST], "more": len(conversations) > MOST}


def conversation_of(path: Path, name: str, page: int = 0) -> dict[str, Any]:
    """A page of the exchanges of a conversation, what came back after each, and the feedback on it."""
    with _opened(path) as read:
        found = read(
            "SELECT seq, receipt, created, version, kind, rule, status, stop, new_text, text, sampling, logprobs "
            f"FROM exchanges WHERE conversation = ? ORDER BY seq LIMIT {MOST + 1} OFFSET ?",
            name,
            MOST * page,
        )
        if not found:
            raise RunError("the journal has no such conversation", got=name[:80], do="go back to the journal")
        for line in found:
            line |= {key: json.loads(line[key]) for key in ("sampling", "logprobs")}
            came = read("SELECT messages FROM follow_ups WHERE exchange = ? ORDER BY id", line["seq"])
            line["follow_ups"] = [message for row in came for message in json.loads(row["messages"])]
            line["feedback"] = read("SELECT kind, value FROM feedback WHERE exchange = ? ORDER BY id", line["seq"])
    return {"name": name, "exchanges": found[:MOST], "first": MOST * page, "more": len(found) > MOST}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A function that reads rows. Raises `RunError` for a file that cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5)) as connection:
            connection.row_factory = sqlite3.Row
            connection.create_function("fold", 1, lambda text: (text or "").casefold())
            yield lambda sql, *values: [dict(row) for row in connection.execute(sql, values)]
    except (sqlite3.Error, ValueError) as error:
        do = "selfdistill journal check says whether it is damaged"
        raise RunError("the journal cannot be read", got=f"{path}: {error}", do=do) from error
