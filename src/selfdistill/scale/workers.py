"""Environment workers: answers are scored on other machines of a Ray cluster, where the processors are.

    ray = connected("10.0.0.1:6379")
    with workers(ray, settings, 8, print) as pool:
        env = RemoteEnvironment(config.make_env(), pool)      # scores as the environment of these settings does

A worker is a process that holds the environment, made from the settings of the run. Answers go to workers in chunks;
one that is lost is replaced and its chunk sent again, and every chunk counts once.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from selfdistill.config import from_settings
from selfdistill.envs.base import Fault, Pair, Scored, score_all, spent_by
from selfdistill.envs.turns import single_turn
from selfdistill.errors import ConfigError, EnvError, SelfDistillError
from selfdistill.plugins import import_extra
from selfdistill.types import DropReason

CHUNKS = 2  # for each worker of a batch: the faster ones take more of them
TRIES = 3  # workers that one chunk may take with it
ANSWERS_S = 5.0  # for the head of a cluster to accept a connection
START_S = 300.0  # for a worker to import everything from a cold disk

Chunk: TypeAlias = tuple[int, Sequence[Pair]]


def connected(address: str) -> Any:
    """The ray module, connected to the cluster whose head has this address (host:port, or auto). Raises `ConfigError`:
    Ray is not installed, or nobody answers."""
    ray = import_extra("ray", "ray", "--ray")
    if ray.is_initialized():
        return ray
    do = "start one with `ray start --head --port=6379`, and give its host and port"
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError("a Ray cluster is named by host:port, or auto", got=address, do=do)
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), ANSWERS_S).close()
        except OSError as error:
            raise ConfigError("no Ray cluster answers", got=f"{address}: {error}", do=do) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", namespace="selfdistill")
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0][:200]
        raise ConfigError("this Ray cluster cannot be joined", got=address, why=why, do=do) from error
    return ray


class Worker:
    """The process of a worker. Its methods raise our own errors, which Ray passes on."""

    def __init__(self, settings: Mapping[str, Any], folder: str) -> None:
        self.settings, self.folder = settings, folder
        self.env: Any = None

    def opened(self) -> tuple[str, int]:
        """Makes the environment; the machine's name and this process's id. Raises as `make_env`."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)  # files of the settings are named from there
        config = from_settings(self.settings)
        made = config.make_env()
        self.env = single_turn(made, "a worker")  # of several attempts the one that scores each, which has no seed
        self.seed = config.seed if self.env is made else 0
        return socket.gethostname(), os.getpid()

    def scored(self, pairs: Sequence[Pair], evaluates: bool) -> tuple[list[Scored], Counter[str]]:
        """One result a pair, and what scoring them cost."""
        before = spent_by(self.env)
        private = getattr(self.env, "for_evaluation", None) if evaluates else None
        found = score_all(private() if private else self.env, pairs, seed=self.seed)
        return found, spent_by(self.env) - before


@dataclass
class Pool:
    """Workers of one run. `note` is called with a line about each one that was lost."""

    ray: Any
    settings: Mapping[str, Any]
    count: int
    note: Callable[[str], None]
    handles: list[Any] = field(default_factory=list)
    spent: Counter[str] = field(default_factory=Counter)
    starting: dict[Any, int] = field(default_factory=dict)  # calls of workers that take the place of lost ones
    tries: Counter[int] = field(default_factory=Counter)  # of them, one after the other
    turn: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Starts the workers. Raises what their environment raises, with the name of the machine."""
        self.handles = [self._new() for _ in range(self.count)]
        for number, handle in enumerate(self.handles):
            self.handles[number] = self._ready(handle)

    def close(self) -> None:
        """Ends them."""
        for handle in self.handles:
            self.ray.kill(handle)
        self.handles, self.starting = [], {}

    def scored(self, pairs: Sequence[Pair], *, evaluates: bool) -> list[Scored]:
        """One result a pair, in order, one batch at a time. Answers that took `TRIES` workers with them are dropped."""
        with self.turn:  # a batch may be sampled ahead in another thread, and an evaluation scored meanwhile
            return self._scored(pairs, evaluates)

    def _scored(self, pairs: Sequence[Pair], evaluates: bool) -> list[Scored]:
        size = max(1, -(-len(pairs) // (CHUNKS * self.count)))
        waiting: deque[Chunk] = deque((start, pairs[start : start + size]) for start in range(0, len(pairs), size))
        results, losses = dict[int, list[Scored]](), Counter[int]()
        busy: dict[Any, tuple[int, Chunk]] = {}
        idle = [number for number in range(self.count) if number not in self.starting.values()]
        while waiting or busy:
            while waiting and idle:
                number, chunk = idle.pop(0), waiting.popleft()
                busy[self.handles[number].scored.remote(chunk[1], evaluates)] = number, chunk
            calls = [*busy, *self.starting]
            ready, _ = self.ray.wait(calls, num_returns=1, timeout=None if busy else START_S)
            if not ready:
                raise self._no_room()
            for call in ready:
                if call in self.starting:
                    idle += self._started(call)
                    continue
                number, chunk = busy.pop(call)
                start, own = chunk
                try:
                    results[start], spent = self.ray.get(call)
                    self.spent += spent
                except self.ray.exceptions.RayTaskError as error:
                    raise self._own(error) from error
                except self.ray.exceptions.RayError:  # of the worker, or of its machine, which had the results
                    losses[start] += 1
                    self.note(f"environment worker {number + 1} was lost: {len(own)} answers are scored again")
                    self._replace(number)
                    if losses[start] < TRIES:
                        waiting.appendleft(chunk)
                    else:
                        text = f"{TRIES} environment workers ended while they scored {len(own)} answers, this one too"
                        results[start] = [Fault(DropReason.SCORING_FAILED, text)] * len(own)
                else:
                    idle.append(number)
        return [result for start in sorted(results) for result in results[start]]

    def _replace(self, number: int) -> None:
        """Starts another worker in the place of one, which takes chunks once it is there: the cluster may have no room
        for it as long as the machine of the lost one is gone."""
        self.ray.kill(self.handles[number])  # one that only seems to be lost
        self.handles[number] = self._new()
        self.starting[self.handles[number].opened.remote()] = number

    def _started(self, call: Any) -> list[int]:
        """The worker that has made its environment, if it has; else another is started, `TRIES` in all."""
        number = self.starting.pop(call)
        try:
            self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise self._own(error) from error
        except self.ray.exceptions.RayError as error:
            self.tries[number] += 1
            if self.tries[number] >= TRIES:
                raise self._all_ended(error) from error
            self._replace(number)
            return []
        self.tries[number] = 0
        return [number]

    def _new(self) -> Any:
        kind = self.ray.remote(Worker).options(num_cpus=1, scheduling_strategy="SPREAD", max_restarts=0)
        return kind.remote(dict(self.settings), os.getcwd())

    def _ready(self, handle: Any) -> Any:
        """A worker that has made its environment; another in its place where that one was lost. Raises `EnvError`."""
        why: object = None
        for _ in range(TRIES):
            try:
                self.ray.get(handle.opened.remote(), timeout=START_S)
                return handle
            except self.ray.exceptions.RayTaskError as error:
                raise self._own(error) from error
            except self.ray.exceptions.GetTimeoutError as error:
                self.ray.kill(handle)
                raise self._no_room() from error
            except self.ray.exceptions.RayError as error:
                why, handle = error, self._new()
        raise self._all_ended(why)

    def _no_room(self) -> EnvError:
        do = "add machines, ask for fewer scale.env_workers, or end what else runs on the cluster"
        got = f"none free within {START_S:g} s, of {self.ray.cluster_resources().get('CPU', 0):g} processors"
        return EnvError("an environment worker cannot be placed", got=got, do=do)

    def _all_ended(self, why: object) -> EnvError:
        do = "see that this package is installed on every machine, in the same version"
        text = re.sub(r"\x1b\[\d+m", "", str(why))[-300:]
        return EnvError(f"{TRIES} environment workers ended before they scored anything", got=text, do=do)

    def _own(self, error: Any) -> Exception:
        """The error of our own that a worker raised, with the machine it was raised on."""
        cause, place = getattr(error, "cause", None), getattr(error, "ip", "")
        if isinstance(cause, SelfDistillError):
            what = f"{cause.what} (on an environment worker{f', at {place}' if place else ''})"
            return type(cause)(what, got=cause.got, why=cause.why, do=cause.do)
        return EnvError("an environment worker failed", got=f"{type(cause).__name__}: {cause}", do="report it")


class RemoteEnvironment:
    """An environment whose answers are scored by the workers of a pool; all else is that of `local`."""

    def __init__(self, local: Any, pool: Pool, *, evaluates: bool = False) -> None:
        self.local, self.pool, self.evaluates, self.name = local, pool, evaluates, local.name

    def __getattr__(self, name: str) -> Any:
        if name in ("local", "time_limit_s"):  # a worker sees to the time of its answers
            raise AttributeError(name)
        return getattr(self.local, name)

    @property
    def spent(self) -> Counter[str]:
        """What scoring has cost on all workers."""
        return spent_by(self.local) + self.pool.spent

    def for_evaluation(self) -> RemoteEnvironment:
        """The same environment on the same workers, scoring by what training never shows."""
        private = getattr(self.local, "for_evaluation", None)
        return RemoteEnvironment(private() if private else self.local, self.pool, evaluates=True)

    def score_batch(self, pairs: Sequence[Pair]) -> list[Scored]:
        """Of all answers, in order."""
        return self.pool.scored(pairs, evaluates=self.evaluates)


@contextmanager
def workers(ray: Any, settings: Mapping[str, Any], count: int, note: Callable[[str], None]) -> Iterator[Pool]:
    """Inside, so many workers hold the environment of these settings."""
    pool = Pool(ray, settings, count, note)
    try:
        pool.open()
        yield pool
    finally:
        pool.close()
