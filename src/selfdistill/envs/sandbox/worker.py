"""One worker as the trainer sees it: started when needed, given programs to run, replaced when it died."""

from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import IO, Any

from selfdistill.envs.sandbox.lockdown import IsolationLevel
from selfdistill.envs.sandbox.program import UNREADABLE, Ending, Result, result_of
from selfdistill.envs.sandbox.supervise import EndedByMachineError
from selfdistill.envs.sandbox.wire import MalformedError, frame, receive, write_all
from selfdistill.errors import ProgramLostError, SandboxError

_START_S = 60.0
_GRACE_S = 15.0  # beyond all time limits of a job: only a worker that was stopped from outside is later
_PAUSES_S = (0.2, 1.0)  # before a second and a third try, when the machine refused the one before
# The worker reaches these modules through empty parent packages, so that it never imports torch.
_BOOT = """
import json, sys, types
folder, level, work_directory = json.loads(sys.argv[1])
for depth, name in enumerate(("selfdistill", "selfdistill.envs", "selfdistill.envs.sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder.rsplit("/", 2 - depth)[0]]
from selfdistill.envs.sandbox.zygote import main
main(level, work_directory)
"""
_DISK = "free space and inodes on the disk of the temporary folder, or set TMPDIR to a folder on another one"
_FOLDER = "set TMPDIR to a folder that exists and that you may write to"
_FILES = "allow more open files (ulimit -n), or use fewer workers"
_ADVICE = {
    errno.ENOSPC: _DISK, errno.EDQUOT: _DISK, errno.EROFS: _FOLDER, errno.ENOENT: _FOLDER, errno.EACCES: _FOLDER,
    errno.EAGAIN: "allow more processes (ulimit -u, or the container's limit), or use fewer workers",
    errno.ENOMEM: "free memory, lower the memory limit of programs, or use fewer workers",
    errno.EMFILE: _FILES, errno.ENFILE: _FILES,
}  # fmt: skip


class Worker:
    """One zygote: started when first needed, and again when it died."""

    def __init__(self, level: IsolationLevel) -> None:
        self.level = level
        self.process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._memory: tuple[range, ...] = ()
        self._stopped = False

    def run(self, job: Mapping[str, Any]) -> Generator[Result]:
        """The results of a job as they arrive. Trouble of the machine is tried again twice, then a SandboxError.

        A worker is left in order only when all results were read; closing the generator before ends it.
        """
        given, over = 0, False
        try:
            for pause_s in (*_PAUSES_S, None):
                try:
                    for result in islice(self._results(job), given, None):
                        given += 1
                        yield result
                    over = True
                    return
                except MalformedError:  # the program's doing: what it reports passes through here
                    yield result_of(UNREADABLE)
                    return
                except (EOFError, OSError) as error:
                    self._end()
                    if self._stopped:
                        raise SandboxError("the sandbox was closed while a program ran") from None
                    # A program can end its worker only where seccomp does not forbid it to send signals.
                    exposed = "seccomp" not in self.level and isinstance(error, EOFError)
                    if pause_s is None and not exposed:
                        raise _not_run(error) from None
                time.sleep(pause_s or 0)
            yield Result(Ending.RAISED, error="ProcessExit: the sandbox's worker died with this program")
        finally:
            if not over:
                self._end()

    def stop(self) -> None:
        """End the process for good; a thread waiting for its reply is woken."""
        self._stopped = True
        self._end()

    def _begin(self) -> subprocess.Popen[bytes]:
        """A fresh worker that is ready. Raises OSError, and SandboxError for one that cannot work at all."""
        self._end()
        self._folder = folder = tempfile.TemporaryDirectory(prefix="selfdistill-", ignore_cleanup_errors=True)
        work_directory = os.path.join(folder.name, "work")
        os.mkdir(work_directory)
        boot = json.dumps([os.path.dirname(__file__), self.level, work_directory])
        with tempfile.TemporaryFile() as errors:
            self.process = process = subprocess.Popen(
                # Isolated like -I, which however would ignore the fixed hash seed that makes scoring repeatable.
                [sys.executable, "-P", "-s", "-S", "-c", _BOOT, boot],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd="/", start_new_session=True,
                env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
            try:
                ready = self._receive(process, _START_S, 1 << 20)
            except (EOFError, MalformedError):
                errors.seek(0)
                text = errors.read().decode("utf-8", "replace").strip()[-1000:]
                if not text:
                    raise OSError(errno.ENOMEM, "a sandbox worker was ended before it was ready") from None
                do = "see its last line for what it lacks"
                raise SandboxError("a sandbox worker did not start", got=text, do=do) from None
        self._memory = tuple(range(*span) for span in ready["memory"])
        return process

    def _results(self, job: Mapping[str, Any]) -> Iterator[Result]:
        """Results as they arrive. Raises OSError for the machine's trouble, EOFError when the worker died."""
        process = self.process
        if process is None or process.poll() is not None:
            process = self._begin()
        try:
            write_all(_descriptor(process.stdin), frame(json.dumps(job).encode()))
        except BrokenPipeError:
            raise EOFError("the worker died") from None
        left, more = len(job["inputs"]), True
        while more:
            # JSON writes a character in up to six bytes.
            message = self._receive(process, job["time_s"] * left + _GRACE_S, 16 * job["output_bytes"] + (16 << 20))
            results, more = message.get("results"), bool(message.get("more"))
            if not isinstance(results, list) or len(results) > left:
                raise MalformedError("not results")
            left -= len(results)
            yield from (result_of(result, self._memory) for result in results)
            if "trouble" in message:
                kind = EndedByMachineError if message.get("lost") else OSError
                raise kind(message.get("errno"), message["trouble"])

    def _receive(self, process: subprocess.Popen[bytes], patience_s: float, limit: int) -> dict[str, Any]:
        """One frame. Raises EOFError when none comes, MalformedError for one that no worker of ours sends."""
        deadline = time.monotonic() + patience_s
        poll = select.poll()
        poll.register(_descriptor(process.stdout), select.POLLIN)

        def read(size: int) -> bytes:
            while not self._stopped and time.monotonic() < deadline:
                if poll.poll(500):
                    if part := os.read(_descriptor(process.stdout), size):
                        return part
                    raise EOFError("the worker died")
            raise EOFError("no reply")

        return receive(read, limit)

    def _end(self) -> None:
        """End the process and remove its folder; two threads may be here at once, and each has its own share."""
        process, self.process = self.process, None
        folder, self._folder = self._folder, None
        if process is not None:
            with process:  # which closes its pipes and waits for it
                process.kill()
        if folder is not None:
            folder.cleanup()
            for path in (os.path.join(folder.name, "work"), folder.name):
                with suppress(OSError):  # removed already, but for a process that cannot open it to look inside
                    os.rmdir(path)


def _descriptor(stream: IO[bytes] | None) -> int:
    try:
        return stream.fileno() if stream is not None else -1
    except ValueError:  # closed by another thread's `stop`
        raise EOFError("the worker was stopped") from None


def _not_run(error: Exception) -> SandboxError:
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    kind = ProgramLostError if isinstance(error, (EOFError, EndedByMachineError)) else SandboxError
    return kind(
        "a program could not be run on this machine", got=str(error),
        why="that is no fault of the program, so it gets no reward of 0",
        do=_ADVICE.get(number or 0, "see to the cause named above; then the run can be resumed"),
    )  # fmt: skip
