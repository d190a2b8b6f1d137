"""Learners on a Ray cluster: each is a process of our own command on a machine that Ray chose, all of them one group.

Ray places the processes and reports which are lost. A lost learner ends the group, which is placed again and resumes
from the newest checkpoint; so the run directory must be one that all machines see.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from selfdistill.errors import COLLAPSED, INTERRUPTED, CollapseError, RunError, SelfDistillError

RAY = "SELFDISTILL_RAY"  # environment variable of a learner: the address of the cluster that placed it
PLACE_S = 60.0  # for the cluster to find room for all learners
START_S = 300.0  # for a process of Ray to start on a busy machine
CALL_S = 60.0  # for a machine to say how its learner is
POLL_S = 0.5
RESTARTS = 3  # of a group that records nothing new in between
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL, -signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT)
TAIL = 20_000  # characters of what a learner printed


class Seat:
    """On a machine of the cluster: the process of one learner, which ends with this one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.out, self.err, self.read = _appended(TemporaryFile()), _appended(TemporaryFile()), 0  # noqa: SIM115

    def address(self, head: str) -> str:
        """host:port at which others may reach this machine, as it reaches the head; the port is free now."""
        host, _, port = head.rpartition(":")
        with socket.socket() as found, socket.socket(type=socket.SOCK_DGRAM) as way:
            found.bind(("", 0))
            way.connect((host, int(port)))  # sends nothing
            return f"{way.getsockname()[0]}:{found.getsockname()[1]}"

    def start(
        self, arguments: Sequence[str], text: str, variables: Mapping[str, str], folder: str, log: str = ""
    ) -> str:
        """Starts the learner in a folder, with `text` on its standard input; the machine's name. What it prints goes to
        `log`, where that is named. Raises `RunError` where this machine has not the folder, or not the program."""
        if not Path(folder).is_dir():
            do = "start the run in a directory that all machines share, under one path"
            raise RunError(
                "a machine of the cluster has no such directory", got=f"{socket.gethostname()}:{folder}", do=do
            )
        libc, inherited = ctypes.CDLL(None), {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

        def end_with_parent() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a process of Ray blocks it
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

        before = end_with_parent if sys.platform == "linux" else None
        try:
            if log:
                self.out = self.err = _appended(Path(log).open("w+b"))  # noqa: SIM115
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=self.out, stderr=self.err, start_new_session=True,
                cwd=folder, env={**inherited, **variables}, preexec_fn=before,
            )  # fmt: skip
        except OSError as error:
            what, do = "a machine of the cluster cannot start this", "install it on all machines, under one path"
            raise RunError(what, got=f"{socket.gethostname()}: {error}", do=do) from error
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(text.encode())
        return socket.gethostname()

    def state(self) -> tuple[int | None, list[str]]:
        """The exit code (None: it runs), and the lines that it printed since the last call."""
        assert self.process is not None
        code = self.process.poll()
        self.out.seek(self.read)
        data = self.out.read()
        end = len(data) if code is not None else data.rfind(b"\n") + 1
        self.read += end
        return code, data[:end].decode("utf-8", "replace").splitlines()

    def stop(self) -> None:
        """Sends it SIGINT: it ends after its step, saved."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def errors(self) -> str:
        """The end of what it printed as errors."""
        self.err.seek(0)
        return self.err.read().decode("utf-8", "replace")[-TAIL:]


@dataclass
class Group:
    """The learners of one run. `arguments` gives their command, with `--resume` once there is a run; `recorded` a
    number that grows with what was recorded; `note` is called with lines for the user."""

    ray: Any
    learners: int
    gpu: bool
    text: str
    arguments: Callable[[], Sequence[str]]
    variables: Mapping[str, str]
    recorded: Callable[[], int]
    note: Callable[[str], None]
    seats: list[Any] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    room: Any = None

    def run(self, poll: Callable[[], int]) -> int:
        """Runs the group to its end, and returns the exit code of rank 0. `poll` is called all the while; it returns
        how many stops were requested. Raises `RunError` where a learner fails, or is lost again and again."""
        lost, before = 0, -1
        while True:
            now = self.recorded()
            lost, before = (0 if now > before else lost), now
            try:
                self._place()
                code = self._attend(poll)
            except self.ray.exceptions.RayError as error:
                code, why = None, type(error).__name__
            else:
                why = "its process was killed"
            finally:
                self._clear()
            if code is not None:
                return code
            if poll():
                return INTERRUPTED
            lost += 1
            if lost > RESTARTS:
                what, do = f"learners were lost {lost} times without a new step", "see the memory of their machines"
                raise RunError(what, got=why, do=f"{do}; the run resumes from its newest checkpoint")
            self.note(f"a learner was lost ({why}): all start again from the newest checkpoint")

    @property
    def head(self) -> str:
        """host:port of the head of the cluster."""
        return str(self.ray.get_runtime_context().gcs_address)

    def _place(self) -> None:
        """Finds a machine for each learner, and starts them."""
        ray = self.ray
        bundle = {"CPU": 1, "GPU": 1} if self.gpu else {"CPU": 1}
        self.room = ray.util.placement_group([bundle] * self.learners, strategy="PACK")
        if not self.room.wait(PLACE_S):
            has = ray.cluster_resources()
            got = f"{has.get('CPU', 0):g} processors and {has.get('GPU', 0):g} GPUs, some of them in use"
            do = "set scale.learners to what the cluster has, or end what else runs on it"
            raise RunError(f"the cluster has no room for {self.learners} learners", got=got, do=do)
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        kind, needs = ray.remote(Seat), {"num_cpus": 1, "num_gpus": int(self.gpu), "max_restarts": 0}
        self.seats = [
            kind.options(scheduling_strategy=strategy(self.room, placement_group_bundle_index=rank), **needs).remote()
            for rank in range(self.learners)
        ]
        host, _, port = self._asked(self.seats[0].address.remote(self.head), START_S).rpartition(":")
        self.hosts = []
        for rank, seat in enumerate(self.seats):
            meeting = {"RANK": rank, "WORLD_SIZE": self.learners, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
            meeting |= {"MASTER_ADDR": host, "MASTER_PORT": port}
            own = {name: str(value) for name, value in meeting.items()} if self.learners > 1 else {}
            started = seat.start.remote(list(self.arguments()), self.text, {**self.variables, **own}, os.getcwd())
            self.hosts.append(self._asked(started, START_S))

    def _attend(self, poll: Callable[[], int]) -> int | None:
        """Waits for the end of all learners; None where one was lost, which ends the others."""
        codes: list[int | None] = [None] * self.learners
        stops = 0
        while None in codes:
            time.sleep(POLL_S)
            requested = poll()
            for seat in self.seats * (requested - stops):
                self._asked(seat.stop.remote())
            stops = max(stops, requested)
            for rank, seat in enumerate(self.seats):
                codes[rank], lines = self._asked(seat.state.remote())
                for line in lines if rank == 0 else ():
                    self.note(line)
            if any(code in KILLED for code in codes):
                return None
        failed = next((rank for rank, code in enumerate(codes) if code not in (0, INTERRUPTED, -signal.SIGINT)), None)
        if failed is not None:
            text = _error(self._asked(self.seats[failed].errors.remote()))
            kind = CollapseError if codes[failed] == COLLAPSED else RunError
            raise kind(f"the run failed on {self.hosts[failed]}", got=text)
        return INTERRUPTED if codes[0] == -signal.SIGINT else codes[0]

    def _asked(self, call: Any, limit_s: float = CALL_S) -> Any:
        try:
            return self.ray.get(call, timeout=limit_s)
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, SelfDistillError):
                raise cause from error
            got = f"{type(cause).__name__}: {cause}"
            raise RunError("a machine of the cluster cannot run a learner", got=got, do="report it") from error

    def _clear(self) -> None:
        """Ends what is left, and gives the room back."""
        gone = suppress(self.ray.exceptions.RayError)  # with the head of the cluster, which ends all that it placed
        for seat in self.seats:
            with gone:
                self.ray.kill(seat)
        self.seats = []
        if self.room is not None:
            with gone:
                self.ray.util.remove_placement_group(self.room)
            self.room = None


def _appended(file: IO[bytes]) -> IO[bytes]:
    """The file for a process that writes while this one reads: both share one place in it, unless what is written goes
    to its end."""
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return file


def _error(text: str) -> str:
    """The error that a learner printed last, without what libraries print before it."""
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.partition(":")[0].endswith("Error") and not line[:1].isspace()]
    return "\n".join(lines[starts[-1] :] if starts else lines[-5:]).strip()
