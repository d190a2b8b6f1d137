"""A function with a limit of seconds: it runs in a process of its own, which the system ends when the time is over.

The alarm of that process has no handler, so that it also ends code that holds the interpreter (a power of large
numbers, a regular expression), and a process whose parent is gone.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from selfdistill.errors import EnvError

START_S = 60.0
MEMORY_BYTES = 4 << 30
_BOOT = "import sys; sys.path[:] = {path!r}; from selfdistill.envs.limited import serve; serve({function!r}, {limit!r})"


class LimitedCall:
    """`MODULE:FUNCTION` of texts, which returns whether they match, as equal texts do. The process starts with the
    first call."""

    def __init__(self, function: str, limit_s: float) -> None:
        self.function, self.limit_s = function, limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, *texts: str) -> bool | None:
        """Whether the function finds that they match; None where it did not within the limit.

        Raises `EnvError` when its process does not work.
        """
        with self._lock:
            for _ in range(2):  # a process that died between two calls is no fault of the second
                process = self._started()
                if reply := _exchange(process, texts):
                    return reply == "true"
                process.kill()
                if process.wait() == -signal.SIGALRM:
                    break
        return None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            boot = _BOOT.format(path=sys.path, function=self.function, limit=self.limit_s)
            self._process = subprocess.Popen(
                [sys.executable, "-c", boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, start_new_session=True, text=True, encoding="utf-8",
            )  # fmt: skip
            if _exchange(self._process, ("1", "1")) != "true":  # which also imports what the function needs
                self._process.kill()
                got = f"exit code {self._process.wait()}"
                raise EnvError(f"a process that compares answers did not start: {self.function}", got=got)
        return self._process


def _exchange(process: subprocess.Popen[str], texts: Sequence[str]) -> str:
    """The reply of the other process; empty when it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):
        process.stdin.write(json.dumps(texts) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()
    return ""


def serve(function: str, limit_s: float) -> None:
    """The other process: one reply for each line of its standard input. The first may take `START_S`."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(ValueError, OSError):  # where less is allowed already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    module, _, name = function.partition(":")
    call, limit = getattr(import_module(module), name), START_S
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            found = bool(call(*json.loads(line)))
        except Exception:  # noqa: BLE001 (answers may hold anything)
            found = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()
        limit = limit_s


def found(pattern: str, text: str, flags: str = "") -> bool:
    """Whether a regular expression matches somewhere in a text; the flag `i` ignores case."""
    return re.search(pattern, text, re.IGNORECASE if flags == "i" else 0) is not None
