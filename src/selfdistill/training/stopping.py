"""Ctrl-C in a loop that saves: the first one ends it after the step, a second one interrupts at once. And the ends of
parent and child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from selfdistill.runs.events import Callback, Note

PARENT = "SELFDISTILL_PARENT"  # environment variable of a child that ends with its parent: the parent's process id
PARENT_S = 0.2  # between two looks at the parent


@dataclass
class StopSign:
    """`requested` is true once the loop is to end."""

    callback: Callback
    requested: bool = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the first Ctrl-C only sets `requested`."""

        def request(*_: object) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            self.callback(Note("stopping after this step; press Ctrl-C again to stop at once"))

        with handled((signal.SIGINT,), request):
            yield


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[..., None]) -> Iterator[None]:
    """Inside, these signals call the handler, where this is the main thread; elsewhere its owner decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def end_process(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Asks a process to end, waits for it, and kills it after so many seconds."""
    child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def watch_parent(then: Callable[[], object]) -> bool:
    """Calls `then`, in a thread, once the parent that `PARENT` names has ended. Whether it names one."""
    parent = int(os.environ.pop(PARENT, "0"))

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        then()

    if parent:
        threading.Thread(target=wait, daemon=True).start()
    return bool(parent)
