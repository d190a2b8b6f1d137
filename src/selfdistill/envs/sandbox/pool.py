"""The trainer's side of the sandbox: a few warm workers, many programs in parallel."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.lockdown import isolation_level, isolation_warning
from selfdistill.envs.sandbox.program import Program, Result
from selfdistill.envs.sandbox.worker import Worker
from selfdistill.errors import SandboxError

T = TypeVar("T")


class Sandbox:
    """Runs untrusted programs; usable as a context manager, from several threads, and again after `close`.

    `workers` (default: the CPUs this process may use) programs run at a time; they can import the standard library
    alone. Raises `SandboxError` when the machine cannot isolate fully, unless `allow_weaker`; a weaker level then gives
    a warning and stands in `level`.

    What a program does costs that program alone: whatever it reports is checked here, and a malformed report is its
    failure. Trouble of the machine is not: a full disk, a refused fork or a missing folder is tried again twice, then
    raises SandboxError; a program whose process the machine ended each time raises ProgramLostError.

    Not protected: the standard library, time zones and /dev/null can be read; a program may use its time, memory and
    disk limits to the full, exceed those on bytes written and threads by what 10 ms allow, and create and remove empty
    files all its time; of tests that are statements it can lie about its own results; bugs of the kernel.
    """

    def __init__(self, workers: int | None = None, *, allow_weaker: bool = False) -> None:
        self.level = isolation_level()
        self.workers = workers or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
        warning = isolation_warning(self.level)
        if warning and not allow_weaker:
            raise SandboxError(
                "programs cannot be isolated on this machine", got=self.level, why=warning,
                do="use Linux 5.13 or later with Landlock and seccomp, or accept it with allow_weaker=True",
            )  # fmt: skip
        if warning:
            warnings.warn(warning, RuntimeWarning, stacklevel=2)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._all: list[Worker] = []
        self._idle: deque[Worker] = deque()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, limits: SandboxLimits | None = None) -> tuple[Result, ...]:
        """One result for each input, fewer when the program had to be stopped. Raises SandboxError."""
        return self.run_each([(program, limits or SandboxLimits())], lambda _, results: tuple(results))[0]

    def run_each(
        self, jobs: Sequence[tuple[Program, SandboxLimits]], use: Callable[[int, Iterator[Result]], T]
    ) -> list[T]:
        """`use(index of the job, its results)` of each job, in order; the jobs run in parallel.

        `use` runs in the thread of the worker and reads the results as they arrive. Large ones are thus gone before the
        next are made: at any time there is one result a worker, besides what `use` keeps. Raises what `use` raises;
        an interrupt ends all processes first.
        """
        threads = self._start()
        try:
            try:
                futures = [
                    threads.submit(self._run_one, program, limits, functools.partial(use, index))
                    for index, (program, limits) in enumerate(jobs)
                ]
            except RuntimeError as error:  # no more threads, or closed meanwhile
                raise SandboxError("programs cannot be run", got=error, do="allow more processes (ulimit -u)") from None
            return [future.result() for future in futures]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes; running programs are killed."""
        with self._lock:
            threads, self._threads = self._threads, None
            for worker in self._all:
                worker.stop()
            self._all = []
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)

    def worker_pids(self) -> list[int]:
        """The process ids of the workers that live now."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def _start(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
                self._all = [Worker(self.level) for _ in range(self.workers)]
                self._idle = deque(self._all)  # one for every thread
            return self._threads

    def _run_one(self, program: Program, limits: SandboxLimits, use: Callable[[Iterator[Result]], T]) -> T:
        job = {
            "code": program.code, "mode": program.mode, "inputs": program.inputs, "entry": program.entry,
            "prelude": program.prelude, "setup": program.setup, "time_s": limits.time_limit_s,
            "memory_bytes": limits.memory_mb << 20, "output_bytes": limits.output_kb << 10,
            "value_parts": limits.value_parts, "recursion_limit": limits.recursion_limit,
        }  # fmt: skip
        idle = self._idle
        worker = idle.pop()
        try:
            with closing(worker.run(job)) as results:
                used = use(results)
                deque(results, maxlen=0)  # those that `use` did not read
            return used
        finally:
            idle.append(worker)


@functools.cache
def shared_sandbox(*, allow_weaker: bool = False) -> Sandbox:
    """One sandbox for the whole process; its workers start with the first program and end with the process."""
    sandbox = Sandbox(allow_weaker=allow_weaker)
    atexit.register(sandbox.close)
    return sandbox
