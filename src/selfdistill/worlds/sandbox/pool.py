"""The trainer's side of the sandbox: a few warm workers, many programs in parallel."""

from __future__ import annotations

import atexit
import functools
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from selfdistill.errors import SandboxError
from selfdistill.worlds.sandbox.lockdown import IsolationLevel, isolation_level, isolation_warning
from selfdistill.worlds.sandbox.program import Ending, Limits, Program, Result
from selfdistill.worlds.sandbox.wire import decode, receive, send

T = TypeVar("T")
_START_S = 60.0
_GRACE_S = 15.0  # beyond all time limits of a job: only a worker that was stopped from outside is later
# The worker reaches these modules through empty parent packages, so that it never imports torch.
_BOOT = """
import json, sys, types
folder, level, work_directory, modules = json.loads(sys.argv[1])
for depth, name in enumerate(("selfdistill", "selfdistill.worlds", "selfdistill.worlds.sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder.rsplit("/", 2 - depth)[0]]
if modules:
    import site
    site.main()
from selfdistill.worlds.sandbox.zygote import main
main(level, work_directory, modules)
"""


class Sandbox:
    """Runs programs nobody has read; usable as a context manager, from several threads, and again after `close`.

    `workers` (default: the CPUs this process may use) programs run at a time. `modules` are imported into the workers
    besides the standard library, e.g. "numpy"; programs cannot read other packages. Raises SandboxError when the
    machine cannot isolate fully, unless `allow_weaker`; a weaker level is then warned about and named in `level`.

    Not protected: the standard library and /dev/null can be read; a program may use its time, memory and disk limits
    to the full; of tests that are statements it can lie about its own results; bugs of the kernel.
    """

    def __init__(self, workers: int | None = None, *, modules: Sequence[str] = (), allow_weaker: bool = False) -> None:
        self.level = isolation_level()
        self.workers = workers or _usable_cpus()
        warning = isolation_warning(self.level)
        if warning and not allow_weaker:
            raise SandboxError(
                "programs cannot be isolated on this machine", got=self.level, why=warning,
                do="use Linux 5.13 or later with Landlock and seccomp, or accept it with allow_weaker=True",
            )  # fmt: skip
        if warning:
            warnings.warn(warning, RuntimeWarning, stacklevel=2)
        self.modules = tuple(modules)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._all: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, limits: Limits | None = None) -> tuple[Result, ...]:
        """One result for each input, fewer when the program had to be stopped. Raises SandboxError."""
        return self.run_many([(program, limits or Limits())])[0]

    def run_many(self, jobs: Sequence[tuple[Program, Limits]]) -> list[tuple[Result, ...]]:
        """As `run`, in parallel and in order, every result kept. An interrupt ends all processes first."""
        return self.run_each(jobs, lambda _, results: tuple(results))

    def run_each(self, jobs: Sequence[tuple[Program, Limits]], use: Callable[[int, Iterator[Result]], T]) -> list[T]:
        """`use(index of the job, its results)` of each job, in order.

        `use` runs in the thread of the worker and reads the results as they arrive. Large ones are thus gone before the
        next are made: at any time there is one result a worker, besides what `use` keeps. Raises what `use` raises.
        """
        threads = self._start()
        futures = [
            threads.submit(self._run_one, program, limits, functools.partial(use, index))
            for index, (program, limits) in enumerate(jobs)
        ]
        try:
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
                self._all = [_Worker(self.level, self.modules) for _ in range(self.workers)]
                self._idle = queue.SimpleQueue()
                for worker in self._all:
                    self._idle.put(worker)
            return self._threads

    def _run_one(self, program: Program, limits: Limits, use: Callable[[Iterator[Result]], T]) -> T:
        idle = self._idle
        worker = idle.get()
        try:
            reply = worker.run(_job(program, limits))
        finally:
            idle.put(worker)
        if "broken" in reply:
            raise SandboxError(
                "a program could not be isolated, so it was not run", got=reply["broken"],
                do="report the kernel's version; allow_weaker=True accepts less where a wall is missing altogether",
            )  # fmt: skip
        try:
            results = tuple(_result(message) for message in reply["results"])
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError):  # only a forged one is malformed
            results = (Result(Ending.RAISED, error="ProcessExit: the program's results could not be read"),)
        return use(iter(results))


@functools.cache
def shared_sandbox(*, allow_weaker: bool = False) -> Sandbox:
    """One sandbox for the whole process; its workers start with the first program and end with the process."""
    sandbox = Sandbox(allow_weaker=allow_weaker)
    atexit.register(sandbox.close)
    return sandbox


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Worker:
    """One zygote: started when first needed, and again when it died."""

    def __init__(self, level: IsolationLevel, modules: tuple[str, ...]) -> None:
        self.level, self.modules = level, modules
        self.process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._stopped = False

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's reply; a program that brings a worker down is reported, and the next one gets a new worker."""
        for attempt in (1, 2):
            process = self.process if self.process is not None and self.process.poll() is None else self._begin()
            try:
                return self._ask(process, job)
            except (EOFError, OSError, ValueError):  # it died, before this job or because of it, or was closed
                self._end()
                if self._stopped:
                    raise SandboxError("the sandbox was closed while a program ran") from None
                if attempt == 2:
                    break
        return {"results": [{"ending": "raised", "error": "ProcessExit: the sandbox's worker died with this program"}]}

    def stop(self) -> None:
        """End the process for good; a thread waiting for its reply is woken."""
        self._stopped = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._end()

    def _begin(self) -> subprocess.Popen[bytes]:
        if self._stopped:
            raise SandboxError("the sandbox was closed while a program ran")
        self._folder = folder = tempfile.TemporaryDirectory(prefix="selfdistill-", ignore_cleanup_errors=True)
        (work_directory := Path(folder.name, "work")).mkdir()
        errors = Path(folder.name, "stderr")
        boot = json.dumps([str(Path(__file__).parent), self.level, str(work_directory), self.modules])
        with errors.open("wb") as stderr:
            self.process = process = subprocess.Popen(
                # Isolated like -I, which however would ignore the fixed hash seed that makes judgements repeatable.
                [sys.executable, "-P", "-s", "-S", "-c", _BOOT, boot],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd="/", start_new_session=True,
                env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            self._receive(process, _START_S)
        except (EOFError, OSError, ValueError) as error:
            said = errors.read_text(errors="replace")[-1000:] if errors.exists() else ""
            self._end()
            raise SandboxError("a sandbox worker did not start", got=said or error) from None
        return process

    def _ask(self, process: subprocess.Popen[bytes], job: Mapping[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        send(process.stdin.fileno(), job)
        return self._receive(process, job["time_s"] * len(job["inputs"]) + _GRACE_S)

    def _receive(self, process: subprocess.Popen[bytes], patience_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        deadline = time.monotonic() + patience_s
        while not select.select([process.stdout], [], [], 0.5)[0]:
            if self._stopped or time.monotonic() > deadline:
                raise EOFError("no reply")
        reply: dict[str, Any] = receive(process.stdout.fileno())
        return reply

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if self._folder is not None:
            self._folder.cleanup()


def _job(program: Program, limits: Limits) -> dict[str, Any]:
    return {
        "code": program.code, "mode": program.mode, "inputs": program.inputs, "entry": program.entry,
        "prelude": program.prelude, "setup": program.setup, "time_s": limits.time_s,
        "memory_bytes": limits.memory_mb << 20, "output_bytes": limits.output_kb << 10,
    }  # fmt: skip


def _result(message: Mapping[str, Any]) -> Result:
    value = message.get("value")
    return Result(
        ending=Ending(message["ending"]), value=decode(value) if isinstance(value, list) else value,
        error=message.get("error", ""), note=message.get("note", ""), loading=message.get("loading", False),
    )  # fmt: skip
