"""A running program as its worker sees it: its results, its end, and the amounts that no limit of the kernel bounds.

The kernel counts processor time, memory and the size of each file by itself. What it only reports is looked at every
10 ms: bytes written (also those written over), threads, and all files together. Between two looks a program can exceed
them by what the machine does in that time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any

from selfdistill.envs.sandbox.lockdown import read_proc
from selfdistill.envs.sandbox.program import Message, message_of

MAX_THREADS = 128
WRITTEN_LIMITS = 8  # output limits' worth of bytes that one process may write, wherever it writes them
_LOOK_EVERY_S, _COUNT_FILES_EVERY_S = 0.01, 0.05
_MEGABYTE, _PIPE_BYTES, _BLOCK = 1 << 20, 1 << 16, 4096


class EndedByMachineError(OSError):
    """The machine, not the program, ended a process; a program as large may meet the same end again."""


class Child:
    """A forked process and the pipe of its results."""

    def __init__(self, pid: int, pipe: int, nonce: bytes, directory: str, job: Mapping[str, Any]) -> None:
        self.pid, self.pipe, self.directory = pid, pipe, directory
        self.time_s, self.output_bytes, self.mode = job["time_s"], job["output_bytes"], job["mode"]
        self.excess = ""  # the limit that it exceeded, if any
        self._marker = b"\n" + nonce
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which its line's end is not
        self._reported = 0  # bytes of its results, which do not count as written
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        self._count_at = self._look_at + _COUNT_FILES_EVERY_S

    def next_result(self) -> Message:
        """The result for the next input, or what ended the process. Raises OSError, EOFError without a trainer."""
        deadline = time.monotonic() + self.time_s
        poll = select.poll()
        poll.register(self.pipe, select.POLLIN)
        poll.register(0, 0)  # reports only that the trainer is gone
        while (line := self._take_line()) is None:
            if self.excess:
                return _gone(self.excess)
            left = deadline - time.monotonic()
            if left <= 0:
                return {"ending": "timed_out"}
            ready = dict(poll.poll(1000 * min(left, _LOOK_EVERY_S)))
            if ready.get(0, 0) & (select.POLLHUP | select.POLLERR):
                raise EOFError("the trainer is gone")
            if self.pipe in ready:
                part = os.read(self.pipe, _MEGABYTE)
                if not part:
                    return self._ended_by_itself()
                self._buffer += part
            self.look()
        return message_of(line)

    def look(self) -> None:
        """Kill the process when it uses too much. To be called as often as convenient."""
        now = time.monotonic()
        if self.excess or not self.pid or now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        written, threads = _bytes_written(self.pid) - self._reported, _threads(self.pid)
        if written > WRITTEN_LIMITS * self.output_bytes + len(self._buffer) + _PIPE_BYTES:
            self.excess = f"OutputLimitExceeded: more than {WRITTEN_LIMITS * self.output_bytes} bytes were written"
        elif threads > MAX_THREADS:
            self.excess = f"ThreadLimitExceeded: more than {MAX_THREADS} threads were started"
        elif now >= self._count_at:
            self._count_at = now + _COUNT_FILES_EVERY_S
            if _more_in(self.directory, self.output_bytes):
                self.excess = f"OutputLimitExceeded: more than {self.output_bytes} bytes were written to files"
        if self.excess:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process, whatever it does, and forget it."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
            self.pid = 0

    def _take_line(self) -> bytes | None:
        """The next line that starts with the nonce; all other bytes are the program's own noise."""
        buffer, marker = self._buffer, self._marker
        if not buffer.startswith(marker):
            start = buffer.find(marker)
            del buffer[: start if start >= 0 else max(0, len(buffer) - len(marker))]
            self._searched = len(marker)
            if start < 0:
                return None
        end = buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(buffer)
            if len(buffer) > 2 * self.output_bytes + _MEGABYTE:
                self.excess = "OutputLimitExceeded: too much was written to an unknown file descriptor"
            return None
        line = bytes(buffer[len(marker) : end])
        del buffer[: end + 1]
        self._reported += len(marker) + len(line) + 1
        return line

    def _ended_by_itself(self) -> Message:
        status = _wait(self.pid)
        if status is None:
            return _gone("ProcessExit: the program closed the descriptors of its process")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                return {"ending": "timed_out"}
            if number == signal.SIGKILL and self.excess:
                return _gone(self.excess)
            if number == signal.SIGKILL and _oom_kills() > oom_kills_at_start():
                why = "the kernel ended a program, for the memory of the machine ran out"
                raise EndedByMachineError(errno.ENOMEM, why)
            name = next((s.name for s in signal.Signals if s == number), f"signal {number}")  # others are real-time
            return _gone(f"ProcessExit: the process was ended by {name}")
        code = os.WEXITSTATUS(status)
        if self.mode == "stdin" and code == 0:
            return {"ending": "done"}  # os._exit(0) after the output is written ends a whole program properly
        return _gone(f"ProcessExit: the program ended its process with exit code {code} before the test was done")


def require_room(directory: str, output_bytes: int) -> None:
    """Raises OSError when the disk is too full for a program to write what it may."""
    disk = os.statvfs(directory)
    if disk.f_bavail * disk.f_frsize < 4 * output_bytes + _MEGABYTE:
        raise OSError(errno.ENOSPC, "the disk of the temporary folder is full")
    if disk.f_files and disk.f_favail < 4 * output_bytes // _BLOCK:
        raise OSError(errno.ENOSPC, "the disk of the temporary folder has no inodes left")


@functools.cache
def oom_kills_at_start() -> int:
    """Processes that the kernel had ended for lack of memory at the first call."""
    return _oom_kills()


def _oom_kills() -> int:
    return _number_after(read_proc("/proc/vmstat"), b"\noom_kill ")


def _bytes_written(pid: int) -> int:
    """By system calls, or to pages of mapped files; 0 where the kernel does not count them."""
    counts = read_proc(f"/proc/{pid}/io")
    return max(_number_after(counts, b"\nwchar: "), _number_after(counts, b"\nwrite_bytes: "))


def _threads(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2  # a folder a thread
    except OSError:  # the process is gone
        return 0


def _number_after(text: bytes, key: bytes) -> int:
    found = text.partition(key)[2].split(b"\n", 1)[0]
    return int(found) if found else 0


def _more_in(directory: str, limit: int) -> bool:
    """Whether the files of a directory take more than `limit` bytes together, a block each at least."""
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed since
                total += max(_BLOCK, entry.stat(follow_symlinks=False).st_size)
            if total > limit:
                return True
    return False


def _wait(pid: int, patience_s: float = 0.5) -> int | None:
    """The exit status of a process that seems to be ending; None while it runs."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        done = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if done is not None:
            return done.si_status << 8 if done.si_code == os.CLD_EXITED else done.si_status
        time.sleep(0.001)
    return None


def _gone(error: str) -> Message:
    return {"ending": "raised", "error": error, "gone": True}
