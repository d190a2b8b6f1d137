"""A function with a limit of seconds: it runs in a process of its own, which the system ends when the time is over.

The alarm of that process has no handler, so that it also ends code that holds the interpreter (a power of large
numbers, a regular expression), and a process whose parent is gone.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import Any

from selfdistill.errors import EnvError

START_S = 60.0
MEMORY_BYTES = 4 << 30
_BOOT = "import sys; sys.path[:] = {path!r}; from selfdistill.envs.limited import serve; serve({function!r}, {limit!r})"


class LimitedCall:
    """`MODULE:FUNCTION` of texts, which returns whether they match. The process starts with the first call."""

    def __init__(self, function: str, limit_s: float) -> None:
        self.function, self.limit_s = function, limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, *texts: str) -> bool | None:
        """Whether the function finds that they match; None where it did not within the limit, or needs too much memory.

        Raises `EnvError` when its process cannot be started.
        """
        with self._lock:
            for _ in range(2):  # a process that died between two calls is no fault of the second
                process = self._started()
                try:
                    _stream(process.stdin).write(json.dumps(texts) + "\n")
                    _stream(process.stdin).flush()
                    reply = _stream(process.stdout).readline()
                except OSError:
                    reply = ""
                if reply:
                    return bool(json.loads(reply))
                process.kill()
                if process.wait() == -signal.SIGALRM:
                    return None
            return None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        boot = _BOOT.format(path=sys.path, function=self.function, limit=self.limit_s)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=environment, start_new_session=True, text=True, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            raise EnvError("a process that compares answers cannot be started", got=error) from error
        ready = _stream(process.stdout).readline().strip()
        if ready != "ready":
            process.kill()
            got = f"{ready or 'nothing'}, exit code {process.wait()}"
            raise EnvError(f"a process that compares answers did not start: {self.function}", got=got)
        return process


def serve(function: str, limit_s: float) -> None:
    """The other process: one reply for each line of its standard input."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(ValueError, OSError):  # where less is allowed already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.setitimer(signal.ITIMER_REAL, START_S)
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    call("1", "1")  # imports what it needs
    signal.setitimer(signal.ITIMER_REAL, 0)
    _reply("ready")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            found = bool(call(*json.loads(line)))
        except Exception:  # noqa: BLE001 (answers may hold anything)
            found = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(json.dumps(found))


def _reply(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _stream(stream: Any) -> Any:
    assert stream is not None, "opened as a pipe"
    return stream


def found(pattern: str, text: str, flags: str = "") -> bool:
    """Whether a regular expression matches somewhere in a text; the flag `i` ignores case."""
    return re.search(pattern, text, re.IGNORECASE if flags == "i" else 0) is not None
