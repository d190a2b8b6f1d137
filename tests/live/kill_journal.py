"""Kills a process that records exchanges, again and again, and compares what it acknowledged with what is there.

python -m tests.live.kill_journal [KILLS]       in a directory of its own; 100 unless given
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from selfdistill.live.exchange import Exchange, Feedback, FollowUp
from selfdistill.live.journal import Journal
from selfdistill.types import Message

WRITERS, PER_VERSION = 4, 5
LONGEST_LIFE_S = 0.4


def exchanges(writer: int, version: int) -> Iterator[Exchange]:
    """Exchanges of all sizes, each a reply to the one before; what they hold follows from their receipt."""
    receipt = ""
    while True:
        before, receipt = receipt, os.urandom(8).hex()
        ids = tuple(random.Random(receipt).choices(range(50_000), k=1 + int(receipt[:2], 16) * 8))
        reply, follow_up = {"role": "assistant", "content": receipt}, FollowUp(before, (Message("user", receipt),))
        yield Exchange(
            receipt, f"c-{writer}", version, {"messages": [reply] * 3}, reply, ids, ids, tuple(-i / 7 for i in ids),
            "end", text=receipt, follow_up=follow_up if before else None,
        )  # fmt: skip


def write(path: Path) -> None:
    """Records from several threads, gives feedback and publishes versions; a line for each that is durable."""
    assert not {"torch", "transformers", "numpy"} & sys.modules.keys(), "a journal needs no model"
    journal = Journal.serve(path)

    def acknowledge(kind: str, what: object) -> None:
        os.write(1, f"{kind} {what}\n".encode())  # one call: whole lines

    def record(writer: int) -> None:
        served = journal.versions.served
        for place, exchange in enumerate(exchanges(writer, served.id if served else journal.versions.publish("m").id)):
            journal.record(exchange)
            acknowledge("exchange", exchange.receipt)
            journal.add_feedback(Feedback(exchange.receipt, text=exchange.receipt))
            acknowledge("feedback", exchange.receipt)
            if writer == 0 and place % PER_VERSION == 0:
                parent = journal.versions.served
                acknowledge(
                    "version", journal.versions.publish("m", f"adapter-{place}", parent=parent and parent.id).id
                )
            if writer == 0 and place % (3 * PER_VERSION) == 0:
                acknowledge("undone", journal.versions.undo().id)

    record_first = threading.Thread(target=record, args=(0,))
    record_first.start()
    while not journal.versions.served:
        pass
    for writer in range(1, WRITERS):
        threading.Thread(target=record, args=(writer,)).start()


def kill(path: Path) -> list[str]:
    """The lines that a writer acknowledged before it was killed, some time after its first."""
    command = [sys.executable, __file__, "--write", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        timer = threading.Timer(random.uniform(0, LONGEST_LIFE_S), process.kill)
        timer.start()
        text = first + process.stdout.read()  # on, so that the pipe never holds the writer up
    return text[: text.rfind("\n")].splitlines()


def compare(path: Path, lines: list[str]) -> int:
    """How many exchanges are there that were not acknowledged. Raises `AssertionError` for anything lost or halved."""
    said = {kind: [line.split()[1] for line in lines if line.split()[0] == kind] for kind in ("exchange", "feedback")}
    with Journal.serve(path) as journal:  # checks every page, and nobody holds it
        found = {exchange.receipt: exchange for exchange in journal.exchanges()}
        assert not set(said["exchange"]) - set(found), "an acknowledged exchange is lost"
        for receipt, exchange in found.items():
            ids = tuple(random.Random(receipt).choices(range(50_000), k=1 + int(receipt[:2], 16) * 8))
            assert (exchange.prompt_ids, exchange.sampled_ids, exchange.text) == (ids, ids, receipt)
            assert exchange.logprobs == tuple(-i / 7 for i in ids)
            assert not exchange.follow_up or exchange.follow_up.messages == (Message("user", receipt),)
        given = {receipt for receipt, each in found.items() if ("text", receipt) in journal.feedback(each.seq)}
        assert not set(said["feedback"]) - given, "acknowledged feedback is lost"
        versions = {version.id: version for version in journal.versions.all}
        assert [version.state for version in versions.values()].count("served") == 1
        last = next((int(line.split()[1]) for line in reversed(lines) if line.split()[0] in ("version", "undone")), 1)
        line_of = [served.id] if (served := journal.versions.served) else []
        while parent := versions[line_of[-1]].parent:
            line_of.append(parent)
        assert last in line_of or versions[last].state == "undone", "an acknowledged version is lost"
        assert {exchange.version for exchange in found.values()} <= versions.keys()
        return len(found) - len(set(said["exchange"]))


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
        return
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as directory:
        path, lines, unacknowledged = Path(directory, "journal.db"), list[str](), 0
        for number in range(kills):
            lines += kill(path)
            unacknowledged = compare(path, lines)
            sys.stdout.write(f"{number + 1} kills, {len(lines)} acknowledged, {unacknowledged} exchanges in flight\n")


if __name__ == "__main__":
    main()
