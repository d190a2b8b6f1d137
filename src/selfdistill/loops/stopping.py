"""Ctrl-C in a loop that saves: the first one asks it to end after the step, a second one interrupts at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from selfdistill.runs.progress import Reporter


@dataclass
class StopSign:
    """`asked` is true once somebody wants the loop to end."""

    reporter: Reporter
    asked: bool = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, Ctrl-C asks first."""

        def ask(*_: object) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            self.reporter.note("stopping after this step; press Ctrl-C again to stop at once")

        try:
            previous = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not in the main thread: whoever owns it decides
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
