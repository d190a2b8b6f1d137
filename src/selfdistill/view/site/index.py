"""Where each row of a `rollouts.jsonl` stands, so that one is read without the others.

12 bytes a row. Lines are only ever added, so that a file that grew is read from where the last look ended. The index of
a long file is kept beside it, and made anew where the file is another one by then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from pydantic_core import from_json

from selfdistill.runs.records import ResumedRecord, RolloutRecord, record_from_json

NAME, VERSION = ".view-index", 1
KEPT_FROM = 8 * 2**20  # bytes of rows that were not indexed before, from which the index is written
VOID, UNREADABLE = -1, -2  # in place of a step: a resume took the row back; a kill cut the line short
_HEAD = re.compile(rb'\{"step":(\d+),"uid":"')
_UID = re.compile(rb'\{"step":\d+,"uid":("(?:[^"\\]|\\.)*")')


def _texts(line: bytes) -> str:
    """A line without its numbers by token, which stand between its texts and its turns."""
    head, _, numbers = line.partition(b'"token_ids":[')
    turns = numbers.find(b'"turns":[{')
    return (head + numbers[turns:] if turns >= 0 else head).decode(errors="replace")


def _brief(line: bytes) -> RolloutRecord | None:
    """The row of a line of today's form in a fraction of the time: its texts and its log-ratio, and zeros for ids."""
    head, _, rest = line.partition(b',"token_ids":[')
    ids, _, rest = rest.partition(b"]")
    _, known, numbers = rest.partition(b',"log_ratio":[')
    if not (known and _HEAD.match(line)) or b'"turns":[{' in numbers:
        return None
    try:
        fields, ratios = from_json(head + b"}"), from_json(b"[" + numbers.partition(b"]")[0] + b"]")
        if isinstance(fields["reward"], str) or not fields.keys() <= set(RolloutRecord.__slots__):
            return None
        count = ids.count(b",") + bool(ids)
        return RolloutRecord(**fields, token_ids=(0,) * count, log_ratio=tuple(map(float, ratios)))
    except (ValueError, TypeError, KeyError):
        return None


class RowIndex:
    """The rows of one file, by step. `refresh` before reading; safe between threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.cleared, self._lock = path, 0, Lock()
        self._clear()
        self._load()

    def _clear(self) -> None:
        self.size, self.torn, self._saved = 0, False, 0
        self._starts, self._steps, self._seen = array("Q"), array("i"), ""
        self.cleared += 1

    def refresh(self) -> None:
        """Reads what was added since the last time; everything where the file was replaced."""
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size < self.size or (size > self.size and self.size and self._print(self.size) != self._seen):
                self._clear()
            if size > self.size:
                self._scan()

    @property
    def behind(self) -> int:
        """Bytes that were not read yet."""
        return self.path.stat().st_size - self.size if self.path.exists() else 0

    @property
    def busy(self) -> bool:
        """Whether it is being refreshed."""
        return self._lock.locked()

    def _scan(self) -> None:
        before = self.size
        with self.path.open("rb", buffering=2**20) as file:
            file.seek(self.size)
            self.torn = False
            for line in file:
                if not line.endswith(b"\n"):
                    self.torn = True
                    break
                self._add(line)
                self.size += len(line)
        if self.size > before:
            self._seen = self._print(self.size)
        if self.size - self._saved >= KEPT_FROM:
            self._save()

    def _add(self, line: bytes) -> None:
        head = _HEAD.match(line)
        step = int(head[1]) if head and line.endswith(b"}\n") else self._step_of(line)
        if step is not None:
            self._starts.append(self.size)
            self._steps.append(step)

    def _step_of(self, line: bytes) -> int | None:
        """The step of a line that is not as today's are; None for one that holds no rollout."""
        try:
            record = record_from_json(line.decode(errors="replace"))
        except ValueError:
            return UNREADABLE if line.strip() else None
        if isinstance(record, ResumedRecord):  # earlier rows about later steps are void
            for place, step in enumerate(self._steps):
                if step > record.step:
                    self._steps[place] = VOID
        return record.step if isinstance(record, RolloutRecord) else None

    @property
    def counts(self) -> dict[str, int | bool]:
        """How many rows count, were taken back by a resume, and cannot be read; whether the last line is torn."""
        void, unreadable = self._steps.count(VOID), self._steps.count(UNREADABLE)
        rows = len(self._steps) - void - unreadable
        return {"rows": rows, "void": void, "unreadable": unreadable, "torn": self.torn, "bytes": self.size}

    @property
    def steps(self) -> list[int]:
        """The steps that have rows."""
        return sorted(step for step in set(self._steps) if step >= 0)

    def by_step(self) -> dict[int, list[int]]:
        """The places of the rows that count, by step."""
        found: dict[int, list[int]] = {}
        for place, step in enumerate(self._steps):
            if step >= 0:
                found.setdefault(step, []).append(place)
        return found

    def read(
        self, places: Sequence[int], text: str = "", *, brief: bool = False
    ) -> Iterator[tuple[int, RolloutRecord]]:
        """Rows with their places, one after the other; with a text those whose line may hold it, in upper or lower
        case. One that is damaged within is left out. `brief` rows may lack all but the texts and numbers of a table."""
        needle = json.dumps(text.casefold(), ensure_ascii=False)[1:-1]
        with self.path.open("rb") as file:
            for place in places:
                file.seek(self._starts[place])
                end = self._starts[place + 1] if place + 1 < len(self._starts) else self.size
                line = file.read(end - self._starts[place]).partition(b"\n")[0]
                if needle and needle not in _texts(line).casefold():
                    continue
                with suppress(ValueError):
                    record = (brief and _brief(line)) or record_from_json(line.decode(errors="replace"))
                    if isinstance(record, RolloutRecord):
                        yield place, record

    def heads(self, step: int) -> list[tuple[int, str]]:
        """The rows of a step that count, each with its uid: of a row only the head is read, where it is as today's."""
        found = list[tuple[int, str]]()
        with self.path.open("rb", buffering=512) as file:
            for place in [place for place, found in enumerate(self._steps) if found == step]:
                file.seek(self._starts[place])
                head = _UID.match(file.read(512))
                found += [(place, json.loads(head[1]))] if head else [(place, row.uid) for _, row in self.read([place])]
        return found

    def _print(self, size: int) -> str:
        """A mark of the first `size` bytes: lines are added and never changed, so that both ends are enough."""
        with self.path.open("rb") as file:
            head = file.read(min(size, 4096))
            file.seek(max(0, size - 4096))
            return hashlib.sha256(head + file.read(min(size, 4096))).hexdigest()

    def _save(self) -> None:
        """Keeps the index, where the directory can be written to."""
        head = {"version": VERSION, "size": self.size, "seen": self._seen, "rows": len(self._starts)}
        temporary = self.path.with_name(f"{NAME}.{os.getpid()}")
        with suppress(OSError):
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + self._starts.tobytes() + self._steps.tobytes())
            temporary.replace(self.path.with_name(NAME))
        self._saved = self.size

    def _load(self) -> None:
        """Takes up a kept index that fits the file."""
        try:
            head, _, data = self.path.with_name(NAME).read_bytes().partition(b"\n")
            found = json.loads(head)
            rows, size = int(found["rows"]), int(found["size"])
            fits = found["version"] == VERSION and len(data) == 12 * rows and size <= self.path.stat().st_size
            if not fits or self._print(size) != found["seen"]:
                return
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._starts.frombytes(data[: 8 * rows])
        self._steps.frombytes(data[8 * rows :])
        self.size = self._saved = size
        self._seen = str(found["seen"])
