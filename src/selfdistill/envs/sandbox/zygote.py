"""A worker process: small, warm, single-threaded; forks one locked-down child after another and watches them.

It is started by exec, so nothing of the trainer (memory, files, environment) is in it, and it imports only the
standard library. Jobs arrive on descriptor 0 and frames leave on descriptor 1:

    {"results": [...], "more": bool}          results as they arrive; the last frame of a job has no more
    {"trouble": text, "errno": number, "lost": bool}      the machine, not the program, kept the job from being run to
                                                          its end; lost: it may be this job that is too large for it
"""

from __future__ import annotations

import errno
import functools
import gc
import importlib
import os
import random
import secrets
import select
import shutil
import site
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from json import dumps
from typing import Any

from selfdistill.envs.sandbox.lockdown import IsolationLevel, die_with_parent, lock_down, restrict_worker
from selfdistill.envs.sandbox.program import Message
from selfdistill.envs.sandbox.runner import make_report, prepare, run_inputs
from selfdistill.envs.sandbox.supervise import Child, EndedByMachineError, oom_kills_at_start, require_room
from selfdistill.envs.sandbox.wire import frame, receive, write_all

_ROOM, _LOW, _HIGH = 1 << 32, 1 << 40, 1 << 47  # of addresses
# What programs usually import: already in memory, a fork gets it for nothing and needs no file to be readable.
WARM_MODULES = (
    "abc", "array", "ast", "atexit", "base64", "binascii", "bisect", "calendar", "cmath", "collections.abc",
    "contextlib", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "graphlib", "hashlib", "heapq", "html", "inspect", "io", "itertools", "json", "keyword", "locale", "logging",
    "math", "numbers", "operator", "pprint", "queue", "random", "re", "secrets", "socket", "statistics", "string",
    "struct", "subprocess", "tempfile", "textwrap", "threading", "time", "timeit", "traceback", "types", "typing",
    "unicodedata", "unittest", "urllib.parse", "uuid", "warnings", "zlib",
)  # fmt: skip
_FRAME_BYTES = 256 << 10  # results are sent on when they take so much
_SETUP_S = 30.0
_LOOK_EVERY_MS = 10


def main(level: str, work_directory: str) -> None:
    """Serve jobs until the trainer closes the pipe."""
    for name in WARM_MODULES:
        importlib.import_module(name)
    site.setquit()
    site.sethelper()
    tempfile.tempdir = work_directory
    oom_kills_at_start()
    memory = memory_spans()
    restrict_worker(IsolationLevel(level), os.path.dirname(work_directory))
    gc.collect()
    gc.freeze()
    outbox = Outbox(1)
    outbox.send(memory=memory)
    try:
        while True:
            job = receive(functools.partial(os.read, 0))
            try:
                run_job(IsolationLevel(level), job, outbox)
                outbox.send()
            except BrokenPipeError:
                raise
            except (OSError, MemoryError) as error:
                number = error.errno if isinstance(error, OSError) else errno.ENOMEM
                lost = isinstance(error, EndedByMachineError)
                outbox.send(trouble=getattr(error, "strerror", "") or repr(error), errno=number or 0, lost=lost)
    except (EOFError, BrokenPipeError):  # the trainer is gone, perhaps without a chance to clean up
        shutil.rmtree(os.path.dirname(work_directory), ignore_errors=True)


class Outbox:
    """Frames on their way to the trainer."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._results: list[bytes] = []

    def add(self, result: Message, child: Child) -> None:
        """Keep a result; send those there are once they are large."""
        self._results.append(dumps(result).encode())
        if sum(map(len, self._results)) >= _FRAME_BYTES:
            self.send(child, more=True)

    def send(self, child: Child | None = None, **message: Any) -> None:
        """A frame with the results there are. While the trainer reads, a child that runs on is still looked after."""
        results, self._results = b",".join(self._results), []
        left = memoryview(frame(b'{"results":[' + results + b"]," + dumps({"more": False, **message}).encode()[1:]))
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                poll.poll(_LOOK_EVERY_MS)
                if child is not None:
                    child.look()


def memory_spans() -> list[tuple[int, int]]:
    """Where objects of this process and of its forks lie, with room for what they will map. Low addresses are left out:
    they could be numbers of any kind."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            areas = [line.split(" ")[0].split("-") for line in maps]
    except OSError:
        return []
    spans: list[tuple[int, int]] = []
    for low, high in sorted((int(low, 16) - _ROOM, int(high, 16) + _ROOM) for low, high in areas):
        if spans and low < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(high, spans[-1][1]))
        elif _LOW < low < _HIGH:
            spans.append((low, high))
    return spans


def run_job(level: IsolationLevel, job: Mapping[str, Any], outbox: Outbox) -> None:
    """Send results for the inputs of one program, in order; fewer than inputs when it had to be stopped.

    Raises OSError and MemoryError for the machine's trouble.
    """
    jobs = [{**job, "inputs": [text]} for text in job["inputs"]] if job["mode"] == "stdin" else [job]
    for one in jobs:
        if run_child(level, one, outbox) == "timed_out":
            break


def run_child(level: IsolationLevel, job: Mapping[str, Any], outbox: Outbox) -> str:
    """One process from its fork to its end, its directory removed; how its last input ended."""
    directory = tempfile.mkdtemp()
    try:
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
            if job["mode"] == "stdin":
                stdin.write(job["inputs"][0].encode("utf-8", "surrogatepass"))
                stdin.seek(0)
            require_room(directory, job["output_bytes"])
            child = _fork(level, job, directory, stdin.fileno(), stdout.fileno())
            try:
                return _watch(child, job, stdout.fileno(), outbox)
            finally:
                child.end()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _watch(child: Child, job: Mapping[str, Any], stdout: int, outbox: Outbox) -> str:
    """Pass on results until all inputs are met, the code fails to load, the clock runs out or the process ends."""
    _await_start(child.pipe)
    for _ in job["inputs"]:
        result = child.next_result()
        if job["mode"] == "stdin":
            child.end()  # what it prints after it is done does not count
            if result["ending"] == "done":
                result["value"] = os.pread(stdout, job["output_bytes"], 0).decode("utf-8", "replace")
        require_room(child.directory, job["output_bytes"])  # a program that met a full disk is not to blame
        is_last = result.pop("gone", False) or result.get("loading", False) or result["ending"] == "timed_out"
        outbox.add(result, child)
        if is_last:
            break
    return str(result["ending"])


def _fork(level: IsolationLevel, job: Mapping[str, Any], directory: str, stdin: int, stdout: int) -> Child:
    """A process that shuts itself in, reports that (see `_await_start`) and runs the program."""
    nonce = secrets.token_hex(16).encode()
    pipe, channel = os.pipe()
    worker = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(pipe)
        os.close(channel)
        raise
    if pid:
        os.close(channel)
        return Child(pid, pipe, nonce, directory, job)
    try:
        die_with_parent()
        if os.getppid() == worker:
            _become_child(level, job, directory, (stdin, stdout, channel), nonce)
            os._exit(0)
    finally:
        os._exit(70)  # our own fault, never a program's good end


def _become_child(
    level: IsolationLevel, job: Mapping[str, Any], directory: str, descriptors: tuple[int, ...], nonce: bytes
) -> None:
    stdin, stdout, channel = descriptors
    with suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
        score.write(b"1000")  # where memory runs out, this process is ended and not the trainer
    trouble = None
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in ((stdin, 0), (stdout, 1), (null, 2), (channel, 63)):
            os.dup2(source, target)
        channel = 63
        os.closerange(3, channel)
        channel = os.dup2(channel, 20 + secrets.randbelow(40))
        os.close(63)
        os.chdir(directory)
        random.seed(0)  # a fork reseeds; every program starts from the same state, so that a scoring can be repeated
        report = make_report(channel, nonce, job["output_bytes"])
        cpu_s = int(job["time_s"] * len(job["inputs"])) + 3
        lock_down(level, directory, memory_bytes=job["memory_bytes"], output_bytes=job["output_bytes"], cpu_s=cpu_s)
        reserve = prepare()
    except (OSError, ValueError, MemoryError) as error:
        trouble = [getattr(error, "errno", 0), f"{type(error).__name__}: {error}"]
    # Before the program starts: it cannot report its own isolation.
    write_all(channel, frame(dumps({"trouble": trouble}).encode()))
    if trouble is None:
        run_inputs(job, report, reserve)


def _await_start(pipe: int) -> None:
    """Wait until the child is shut in. Raises OSError with what it reports, or when it was ended."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(1000 * _SETUP_S):
        raise OSError(errno.EAGAIN, f"a process was not ready after {_SETUP_S:g} seconds")
    try:
        trouble = receive(functools.partial(os.read, pipe))["trouble"]
    except EOFError:
        raise EndedByMachineError(errno.ENOMEM, "a process was ended before its program began") from None
    if trouble is not None:
        raise OSError(*trouble)
