"""Kills an update at every line of its progress, and checks the journal after each; then one ends and is served.

python -m tests.live.kill_update          # minutes: every update is a process of its own
"""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from selfdistill.live.journal import Journal
from selfdistill.live.lessons import waiting
from selfdistill.live.update import finish
from selfdistill.live.updates import Updates
from selfdistill.options import plain
from tests.live.test_learner import OPTIONS, journal_of


def started(path: Path, number: int) -> "subprocess.Popen[str]":
    settings = json.dumps({"learning": plain(OPTIONS), "device": "cpu", "dtype": "auto", "thinking": "off"})
    command = [sys.executable, "-m", "selfdistill.live.update", str(path), str(number), settings]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def lines(child: "subprocess.Popen[str]", count: int) -> int:
    """Reads up to so many lines of progress; how many there were."""
    assert child.stderr
    read = 0
    for line in child.stderr:
        read += line.startswith("update ")
        if read >= count:
            break
    return read


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    path = Path(tempfile.mkdtemp()) / "journal.db"
    journal_of(path).close()
    point = 1
    while True:
        with Journal.serve(path) as journal:
            updates = Updates(journal.database)
            before = {key for _, key in waiting(journal, updates.history())}
            number = updates.queue("now").id
            child = started(path, number)
            if lines(child, point) < point:
                break
            child.send_signal(signal.SIGKILL)
            child.wait()
        with Journal.serve(path) as journal:  # the next server
            updates = Updates(journal.database)
            journal.database.check()
            (repaired,) = updates.repaired()
            assert repaired.state == "failed", repaired
            assert {key for _, key in waiting(journal, updates.history())} == before
            served = journal.versions.served
            assert served is not None
            assert served.id == 1
            say(f"killed at line {point}: update {number} failed, {len(before)} lessons wait")
        point += 1
    child.wait()
    with Journal.open(path) as journal:
        updates = Updates(journal.database)
        record = updates.get(number)
        assert record.path, record
        done = finish(journal, record, lambda where, parent: journal.versions.publish("toy", where, parent=parent))
        say(f"update {number} {done.state}, version {done.version}: {done.reason}")
        assert not waiting(journal, updates.history())


if __name__ == "__main__":
    main()
