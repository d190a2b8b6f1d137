"""A job for a process of its own that is stopped: the files it leaves show which signals it got."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from selfdistill.runs import RunDir, StepRecord
from selfdistill.runs.events import no_callback
from selfdistill.training.side_by_side import attend
from selfdistill.training.stopping import StopSign


def last_round(path: Path) -> None:
    """Begins, waits for a stop, and is done all the same: it was in its last round. A second stop would end it."""
    stop = StopSign(no_callback)
    with RunDir.create(path, {}) as run, stop.watched():
        run.append(StepRecord(1, 8, 80, 1.0, 0.5, 0.5, 0.1, 1.0, 1e-5))
        for _ in range(200):
            time.sleep(0.05)
            if stop.requested:
                time.sleep(0.5)
                break
    (path / "asked" if stop.requested else path / "unasked").touch()


if __name__ == "__main__":
    attend()
    last_round(Path(sys.argv[1]))
