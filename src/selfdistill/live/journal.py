"""The journal of a served model: every exchange is on the disk before its last byte leaves.

journal = Journal.serve(path)                held against a second server; Journal.open(path) reads beside one
journal.versions.publish(model)              exchanges name the version that answered
place = locate(journal, request, headers)    of `conversations`: which conversation, which of our turns it replies to
journal.record(place.exchange(…))            returns when it is durable
journal.add_feedback(Feedback(receipt, text="Shorter, please."))
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfdistill.errors import JournalError, UnknownReceiptError
from selfdistill.live.database import Database, utc_now
from selfdistill.live.exchange import (
    RECEIPT_PREFIX,
    Conversation,
    Deletion,
    Exchange,
    Feedback,
    FeedbackResult,
    FollowUp,
    Lesson,
    Origin,
)
from selfdistill.live.versions import Versions
from selfdistill.types import Message

JUMP_S = 3600.0  # of the clock, while a server runs, after which ages are not trusted
JSON_COLUMNS = ("request", "reply", "sampling", "headers", "prompt_ids", "sampled_ids", "logprobs")
_TEXT = (
    "receipt", "conversation", "found_by", "version", "kind", "rule", "status", "stop", "new_text", "text",
    "reply_hash",
)  # fmt: skip
_COLUMNS = ("created", *_TEXT, *JSON_COLUMNS)
_UNLEARNABLE = (
    "CASE WHEN kind = 'side' THEN 'a side call' WHEN status = 'cancelled' THEN 'cancelled' "
    "WHEN version IN (SELECT id FROM versions WHERE state = 'undone') THEN 'of an undone version'"
)
_INSERT = f"INSERT INTO exchanges({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


class Journal:
    """Exchanges, what followed them, feedback and versions, in one file. Safe between threads; every method may raise
    `JournalError`."""

    def __init__(self, database: Database) -> None:
        self.database, self.versions, self._clock = database, Versions(database), _clock()

    @classmethod
    def serve(cls, path: str | Path) -> Journal:
        """The journal of a server, made where there is none. Raises `JournalError` while another server has it, for a
        file that is no journal, that a newer version wrote, or that is damaged."""
        return cls(Database(Path(path), serving=True))

    @classmethod
    def open(cls, path: str | Path) -> Journal:
        """A journal that is there, to look, export or delete, beside a server too."""
        return cls(Database(Path(path), serving=False))

    def close(self) -> None:
        """Closes the file."""
        self.database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def paused(self) -> bool:
        """Whether learning is stopped, which outlives the server."""
        return bool(self.database.rows("SELECT 1 FROM settings WHERE name = 'paused' AND value = '1'"))

    def pause(self, paused: bool) -> None:
        """Stops or resumes learning; durable when it returns."""
        with self.database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings(name, value) VALUES ('paused', ?)", (str(int(paused)),))

    def record(self, *exchanges: Exchange) -> None:
        """Records exchanges, all or none; they are durable when it returns. Raises `JournalError`, `JournalFullError`:
        then nothing was recorded, and nothing should be answered."""
        try:
            with self.database.transaction() as connection:
                for exchange in exchanges:
                    fields = (getattr(exchange, name) for name in _TEXT)
                    texts = (_dumped(getattr(exchange, name)) for name in JSON_COLUMNS)
                    seq = connection.execute(_INSERT, (utc_now(), *fields, *texts)).lastrowid
                    if exchange.follow_up:
                        connection.execute(
                            "INSERT OR IGNORE INTO follow_ups(exchange, came_with, messages) "
                            "SELECT seq, ?, ? FROM exchanges WHERE receipt = ?",
                            (seq, _written(exchange.follow_up.messages), exchange.follow_up.receipt),
                        )
        except sqlite3.IntegrityError as error:
            do = "publish the version first; give every exchange a receipt of its own"
            raise JournalError("the exchange cannot be recorded", got=str(error), do=do) from error

    def add_feedback(self, feedback: Feedback) -> FeedbackResult:
        """Records feedback, durably; the same content twice counts once. Raises `UnknownReceiptError`."""
        with self.database.transaction() as connection:
            seq = self._seq(feedback.receipt)
            new = sum(
                connection.execute(
                    "INSERT OR IGNORE INTO feedback(exchange, kind, value, created) VALUES (?, ?, ?, ?)",
                    (seq, kind, value, utc_now()),
                ).rowcount
                for kind, value in feedback.parts
            )
            total = connection.execute("SELECT count(*) FROM feedback WHERE exchange = ?", (seq,)).fetchone()[0]
        return FeedbackResult(new, total)

    def exchange(self, receipt: str) -> Exchange:
        """One exchange. Raises `UnknownReceiptError`."""
        return self._read(self._seq(receipt))

    def exchanges(self, conversation: str | None = None, *, after: int = 0) -> Iterator[Exchange]:
        """Exchanges in order, of a conversation or all, from `seq` `after` on."""
        where, values = ("AND conversation = ?", (conversation,)) if conversation is not None else ("", ())
        found = self.database.rows(f"SELECT seq FROM exchanges WHERE seq > ? {where} ORDER BY seq", (after, *values))
        return self._all(row["seq"] for row in found)

    def search(self, text: str, *, limit: int = 50) -> Iterator[Exchange]:
        """The newest exchanges whose request, since the assistant's turn before, or answer has this text; upper and
        lower case are one."""
        self.database.function("folded", str.casefold)
        found = self.database.rows(
            "SELECT seq FROM exchanges WHERE instr(folded(new_text), ?1) OR instr(folded(text), ?1) "
            "ORDER BY seq DESC LIMIT ?2",
            (text.casefold(), limit),
        )
        return self._all(row["seq"] for row in found)

    def conversations(self, *, limit: int = -1) -> list[Conversation]:
        """The conversations, newest first."""
        return [
            Conversation(*row)
            for row in self.database.rows(
                "SELECT f.conversation, f.found_by, n, main, f.created, l.created, f.new_text FROM ("
                "SELECT count(*) AS n, count(nullif(kind, 'side')) AS main, min(seq) AS first, max(seq) AS last "
                "FROM exchanges GROUP BY conversation) JOIN exchanges AS f ON f.seq = first "
                "JOIN exchanges AS l ON l.seq = last ORDER BY last DESC LIMIT ?",
                (limit,),
            )
        ]

    def lessons(self, conversations: Collection[str] = ()) -> Iterator[Lesson]:
        """What came back after our main, complete answers (of these conversations, or of all), in their order: later
        messages first, then feedback."""
        for exchange in self._all(seq for seq, reason in self._learned(conversations) if not reason):
            for origin, messages in self.came_back(exchange.seq):
                yield Lesson(exchange, origin, messages)

    def numbered(self, seq: int) -> Exchange | None:
        """The exchange with this `seq`; None where it was deleted."""
        return next(self._all([seq]), None)

    def recent(self, count: int) -> list[int]:
        """The `seq` of the newest main, complete exchanges."""
        sql = "SELECT seq FROM exchanges WHERE kind = 'main' AND status = 'complete' ORDER BY seq DESC LIMIT ?"
        return [row[0] for row in self.database.rows(sql, (count,))]

    def learnable(self) -> list[int]:
        """The `seq` of every exchange that gives a lesson, in their order."""
        return [seq for seq, reason in self._learned(()) if not reason]

    def came_back(self, seq: int) -> list[tuple[Origin, tuple[Message, ...]]]:
        """What came back after an answer: later messages first, then feedback."""
        given = self.database.rows("SELECT messages FROM follow_ups WHERE exchange = ? ORDER BY id", (seq,))
        found: list[tuple[Origin, tuple[Message, ...]]] = []
        for messages in (_messages(row["messages"]) for row in given):
            found.append(("tool" if any(m.role == "tool" for m in messages) else "user", messages))
        return [*found, *((kind, (Message("user", value),)) for kind, value in self.feedback(seq))]

    def unlearnable(self, receipt: str) -> str:
        """Why nothing is learned from an answer, whatever comes back for it; empty where something is. Raises
        `UnknownReceiptError`."""
        (found,) = self.database.rows(f"SELECT {_UNLEARNABLE} END FROM exchanges WHERE seq = ?", (self._seq(receipt),))
        return found[0] or ""

    def unlearned(self, conversations: Collection[str] = ()) -> Counter[str]:
        """How many exchanges give no lesson, by the reason."""
        return Counter(reason for _, reason in self._learned(conversations) if reason)

    def _learned(self, conversations: Collection[str]) -> list[tuple[int, str]]:
        """Each exchange, and why it gives no lesson, or nothing."""
        found = self.database.rows(
            f"SELECT seq, conversation, {_UNLEARNABLE} "
            "WHEN seq IN (SELECT exchange FROM follow_ups) OR seq IN (SELECT exchange FROM feedback) THEN '' "
            "ELSE 'nothing came back' END AS reason FROM exchanges ORDER BY seq"
        )
        wanted = set(conversations)
        return [(row["seq"], row["reason"]) for row in found if not wanted or row["conversation"] in wanted]

    def feedback(self, seq: int) -> list[tuple[Origin, str]]:
        """The feedback on an exchange, as it came."""
        found = self.database.rows("SELECT kind, value FROM feedback WHERE exchange = ? ORDER BY id", (seq,))
        return [(row["kind"], row["value"]) for row in found]

    def replied(self, reply_hash: str, conversation: str) -> list[sqlite3.Row]:
        """The newest exchanges with this reply, those of the conversation first: `conversation`, `kind`, `status`,
        `receipt`, `new_text`, `seq`, and whether something `followed`."""
        return self.database.rows(
            "SELECT conversation, kind, status, receipt, new_text, seq, "
            "EXISTS(SELECT 1 FROM follow_ups WHERE exchange = seq) AS followed FROM exchanges WHERE seq IN ("
            "SELECT seq FROM exchanges WHERE reply_hash = ? ORDER BY conversation = ? DESC, seq DESC LIMIT 8)",
            (reply_hash, conversation),
        )

    def counts(self) -> Mapping[str, int]:
        """How much there is of everything."""
        tables = ("exchanges", "follow_ups", "feedback", "versions")
        found = {name: self.database.rows(f"SELECT count(*) FROM {name}")[0][0] for name in tables}
        rest = "count(DISTINCT conversation) AS conversations, count(nullif(kind, 'side')) AS main"
        return {**found, **dict(self.database.rows(f"SELECT {rest} FROM exchanges")[0]), "bytes": self._bytes()}

    def delete(self, *names: str) -> Deletion:
        """Deletes conversations, and exchanges by their receipts, with everything that was given for them: the pages
        are overwritten, the write-ahead log is emptied. Raises `UnknownReceiptError` before it deletes anything."""
        with self.database.transaction() as connection:
            deleted = 0
            for name in names:
                given = (name, name.removeprefix(RECEIPT_PREFIX))
                gone = connection.execute("DELETE FROM exchanges WHERE conversation = ? OR receipt = ?", given)
                if not gone.rowcount:
                    do = "`selfdistill journal look` lists the conversations"
                    raise UnknownReceiptError("no such conversation or receipt", got=name, do=do)
                deleted += gone.rowcount
        return Deletion(deleted, self.database.flush())

    def expire(self, days: float) -> Deletion:
        """Deletes conversations without an exchange for this many days. Raises `JournalError` where the clock has
        jumped since the journal was opened: every age would be wrong."""
        if abs(jump := _clock() - self._clock) > JUMP_S:
            do = "set the clock, and start the server again"
            raise JournalError("the clock jumped: nothing is deleted by age", got=f"{jump:+.0f} s", do=do)
        old = self.older_than(days)
        return self.delete(*old) if old else Deletion(0, True)

    def older_than(self, days: float) -> list[str]:
        """The conversations whose newest exchange is older than this."""
        oldest = datetime.fromtimestamp(max(time.time() - days * 86400, 0), UTC).isoformat(timespec="milliseconds")
        sql = "SELECT conversation FROM exchanges GROUP BY conversation HAVING max(created) < ?"
        return [row[0] for row in self.database.rows(sql, (oldest,))]

    def _seq(self, receipt: str) -> int:
        named = receipt.removeprefix(RECEIPT_PREFIX)
        found = self.database.rows("SELECT seq FROM exchanges WHERE receipt = ?", (named,))
        if not found:
            why = "it was never given, or its exchange was deleted"
            raise UnknownReceiptError("no exchange has this receipt", got=receipt[:200], why=why)
        return int(found[0]["seq"])

    def _all(self, seqs: Iterable[int]) -> Iterator[Exchange]:
        """The exchanges that are still there, one at a time."""
        for seq in seqs:
            try:
                yield self._read(seq)
            except UnknownReceiptError:
                continue

    def _read(self, seq: int) -> Exchange:
        found = self.database.rows("SELECT * FROM exchanges WHERE seq = ?", (seq,))
        if not found:
            raise UnknownReceiptError("the exchange was deleted", got=seq)
        fields: dict[str, Any] = dict(found[0]) | {name: json.loads(found[0][name]) for name in JSON_COLUMNS}
        fields |= {name: tuple(fields[name]) for name in ("prompt_ids", "sampled_ids", "logprobs")}
        came = self.database.rows(
            "SELECT receipt, messages FROM follow_ups JOIN exchanges ON exchange = seq WHERE came_with = ?", (seq,)
        )
        follow_up = FollowUp(came[0]["receipt"], _messages(came[0]["messages"])) if came else None
        return Exchange(**fields, follow_up=follow_up)

    def _bytes(self) -> int:
        files = (self.database.path, Path(f"{self.database.path}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _written(messages: Iterable[Message]) -> str:
    return _dumped([{"role": message.role, "content": message.content} for message in messages])


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(**message) for message in json.loads(text))


def _clock() -> float:
    """How far the clock of the day is from one that only runs, also while the machine sleeps."""
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
