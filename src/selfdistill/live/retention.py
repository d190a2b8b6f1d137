"""Deletes what is older than a journal is to keep, when its server starts and every hour while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from selfdistill.errors import JournalError
from selfdistill.live.journal import Journal

PERIOD_S = 3600.0


class Retention:
    """Keeps conversations for so many days after their last exchange. `say` gets a line about what was deleted, or why
    nothing was. Ends with the block that it is entered for."""

    def __init__(self, journal: Journal, days: float, say: Callable[[str], None]) -> None:
        self._journal, self._days, self._say = journal, days, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                gone = self._journal.expire(self._days).exchanges
                message = f"{gone} exchanges are older than {self._days:g} days: deleted" if gone else ""
            except JournalError as error:
                message = " ".join(str(error).split())
            if message:
                self._say(message)
            self._ended.wait(PERIOD_S)
