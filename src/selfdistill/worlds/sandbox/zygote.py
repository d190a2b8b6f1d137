"""A worker process: small, warm, single-threaded; forks one locked-down child after another and watches them.

It is started by exec, so nothing of the trainer (memory, files, environment) is in it, and it imports only the
standard library. Jobs arrive on descriptor 0 and results leave on descriptor 1, framed by `wire`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import secrets
import select
import shutil
import signal
import site
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from json import loads
from typing import Any

from selfdistill.worlds.sandbox.lockdown import IsolationLevel, die_with_parent, lock_down
from selfdistill.worlds.sandbox.runner import make_report, run_inputs
from selfdistill.worlds.sandbox.seccomp import libc
from selfdistill.worlds.sandbox.wire import receive, send

# What programs usually import: already in memory, a fork gets it for nothing and needs no file to be readable.
WARM_MODULES = (
    "abc", "array", "ast", "atexit", "base64", "binascii", "bisect", "calendar", "cmath", "collections.abc",
    "contextlib", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "graphlib", "hashlib", "heapq", "html", "inspect", "io", "itertools", "json", "keyword", "locale", "logging",
    "math", "numbers", "operator", "pprint", "queue", "random", "re", "secrets", "socket", "statistics", "string",
    "struct", "subprocess", "tempfile", "textwrap", "threading", "time", "timeit", "traceback", "types", "typing",
    "unicodedata", "unittest", "urllib.parse", "uuid", "warnings", "zlib",
)  # fmt: skip
_LOOK_EVERY_S = 0.05
_MEGABYTE, _BLOCK = 1 << 20, 4096


@dataclass(slots=True)
class Child:
    """A forked process as its worker sees it."""

    pid: int
    pipe: int
    nonce: bytes
    directory: str
    buffer: bytes = b""


def main(level: str, work_directory: str, modules: list[str]) -> None:
    """Serve jobs until the trainer closes the pipe."""
    for name in (*WARM_MODULES, *modules):
        importlib.import_module(name)
    site.setquit()
    site.sethelper()
    tempfile.tempdir = work_directory
    libc()
    gc.collect()
    gc.freeze()
    send(1, {"ready": True})
    try:
        while True:
            send(1, run_job(IsolationLevel(level), receive(0)))
    except (EOFError, BrokenPipeError):  # the trainer is gone, perhaps without a chance to clean up
        shutil.rmtree(os.path.dirname(work_directory), ignore_errors=True)


def run_job(level: IsolationLevel, job: Mapping[str, Any]) -> dict[str, Any]:
    """Results for the inputs of one program, in order; fewer than inputs when it had to be stopped."""
    if job["mode"] != "stdin":
        return run_child(level, job)
    results: list[Any] = []
    for text in job["inputs"]:
        reply = run_child(level, {**job, "inputs": [text]})
        if "broken" in reply:
            return reply
        results += reply["results"]
        if results[-1]["ending"] == "timed_out":
            break
    return {"results": results}


def run_child(level: IsolationLevel, job: Mapping[str, Any]) -> dict[str, Any]:
    """One process from its fork to its end, its directory removed."""
    directory = tempfile.mkdtemp()
    try:
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
            if job["mode"] == "stdin":
                stdin.write(job["inputs"][0].encode("utf-8", "surrogatepass"))
                stdin.seek(0)
            child = _fork(level, job, directory, stdin.fileno(), stdout.fileno())
            try:
                reply = _watch(child, job)
            finally:
                _end(child)
            if job["mode"] == "stdin" and "results" in reply:
                _attach_output(reply["results"][-1], stdout.fileno(), job["output_bytes"])
            return reply
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fork(level: IsolationLevel, job: Mapping[str, Any], directory: str, stdin: int, stdout: int) -> Child:
    nonce = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    worker = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.set_blocking(reading, False)
        return Child(pid, reading, nonce, directory)
    try:
        die_with_parent()
        if os.getppid() == worker:
            _become_child(level, job, directory, (stdin, stdout, writing), nonce)
            os._exit(0)
    finally:
        os._exit(70)  # our own fault, never a program's good end


def _become_child(
    level: IsolationLevel, job: Mapping[str, Any], directory: str, descriptors: tuple[int, int, int], nonce: bytes
) -> None:
    stdin, stdout, writing = descriptors
    silence = os.open(os.devnull, os.O_RDWR)
    for source, target in ((stdin, 0), (stdout, 1), (silence, 2)):
        os.dup2(source, target)
    channel = 20 + secrets.randbelow(40)
    os.dup2(writing, 63)
    os.closerange(3, 63)
    os.dup2(63, channel)
    os.close(63)
    os.chdir(directory)
    random.seed(0)  # a fork reseeds; every program starts from the same state, so that a judgement can be repeated
    report = make_report(channel, nonce, job["output_bytes"])
    cpu_s = int(job["time_s"] * len(job["inputs"])) + 3
    try:
        lock_down(level, directory, memory_bytes=job["memory_bytes"], output_bytes=job["output_bytes"], cpu_s=cpu_s)
    except (OSError, ValueError) as error:
        report({"broken": f"{type(error).__name__}: {error}"})
        return
    run_inputs(job, report)


def _watch(child: Child, job: Mapping[str, Any]) -> dict[str, Any]:
    """Collect results until all inputs are met, the code fails to load, the clock runs out or the process ends."""
    results: list[Any] = []
    while len(results) < len(job["inputs"]):
        result = _next_result(child, job)
        if "broken" in result:
            return result
        results.append(result)
        if result.get("loading") or result["ending"] == "timed_out" or result.get("gone"):
            break
    return {"results": results}


def _next_result(child: Child, job: Mapping[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + job["time_s"]
    poll = select.poll()
    poll.register(child.pipe, select.POLLIN)
    poll.register(0, 0)  # reports only that the trainer is gone
    while (result := _take_line(child)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return {"ending": "timed_out"}
        ready = dict(poll.poll(1000 * min(left, _LOOK_EVERY_S)))
        if ready.get(0, 0) & (select.POLLHUP | select.POLLERR):
            raise EOFError("the trainer is gone")
        if child.pipe in ready:
            part = os.read(child.pipe, _MEGABYTE)
            if not part:
                return _ended_by_itself(child, job)
            child.buffer += part
        elif _bytes_in(child.directory) > job["output_bytes"]:
            return _gone(f"OutputLimitExceeded: more than {job['output_bytes']} bytes were written to files")
        if len(child.buffer) > 2 * job["output_bytes"] + _MEGABYTE:
            return _gone("OutputLimitExceeded: too much was written to an unknown file descriptor")
    return result


def _take_line(child: Child) -> dict[str, Any] | None:
    """The next line with the nonce; all other bytes are the program's own noise."""
    while b"\n" in child.buffer:
        line, child.buffer = child.buffer.split(b"\n", 1)
        if line.startswith(child.nonce):
            result: dict[str, Any] = loads(line[len(child.nonce) :])
            return result
    return None


def _ended_by_itself(child: Child, job: Mapping[str, Any]) -> dict[str, Any]:
    status = _wait(child.pid)
    if status is None:
        return _gone("ProcessExit: the program closed the descriptors of its process")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return {"ending": "timed_out"}
        return _gone(f"ProcessExit: the process was ended by {signal.Signals(number).name}")
    code = os.WEXITSTATUS(status)
    if job["mode"] == "stdin" and code == 0:
        return {"ending": "done"}  # os._exit(0) after the output is written ends a whole program properly
    return _gone(f"ProcessExit: the program ended its process with exit code {code} before the test was done")


def _gone(error: str) -> dict[str, Any]:
    return {"ending": "raised", "error": error, "gone": True}


def _wait(pid: int, patience_s: float = 0.5) -> int | None:
    """The exit status of a process that seems to be ending; None when it goes on."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        done = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if done is not None:
            return done.si_status << 8 if done.si_code == os.CLD_EXITED else done.si_status
        time.sleep(0.001)
    return None


def _end(child: Child) -> None:
    if child.pid:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        os.close(child.pipe)
        child.pid = 0


def _bytes_in(directory: str) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed since
                total += max(_BLOCK, entry.stat(follow_symlinks=False).st_size)
    return total


def _attach_output(result: dict[str, Any], stdout: int, output_bytes: int) -> None:
    if result["ending"] == "done":
        result["value"] = os.pread(stdout, output_bytes, 0).decode("utf-8", "replace")
