"""Samplers outside of the learner's process: several vLLM servers as one.

    with open_samplers(config, policy, probe, folder, note) as sampler:
        sampler.load(policy, version)                               # every server, or it is left out
        completions = sampler.generate(policy, prompts, options, seed=0, uids=uids)

Weights are written to a directory of their version, renamed into place when it is whole, and every server loads it: an
adapter under a new name each time, a whole model by vLLM's reload. After each load a few tokens of every server are
compared with the model's own log-probabilities: vLLM can keep old weights without an error.

Each server takes the next request as soon as one of its own is answered, so a faster one takes more. What a lost server
had in progress is sampled by another. Lost servers are started, or tried, again at the next load.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import httpx
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError, EndpointError, RunError, SelfDistillError
from selfdistill.models.policy import ALONE, Policy, Ranks
from selfdistill.models.sampler import SamplingOptions
from selfdistill.runs.scale import SamplerOptions
from selfdistill.runs.store import lock_directory
from selfdistill.scale import engine as routes
from selfdistill.scale.engine import Engine, LostError
from selfdistill.scale.exchange import completion, distance, refuse_beyond, request
from selfdistill.scale.nccl import sender
from selfdistill.scale.placed import PlacedServer
from selfdistill.scale.placement import RAY
from selfdistill.scale.processes import Process, served, write_weights
from selfdistill.types import Completion, TokenIds

T = TypeVar("T")
Launch: TypeAlias = Callable[[SamplerOptions, int, str, Sequence[str], Path], Process]
PROBED = 16  # tokens of each server that are compared after a load
KEPT = 2  # versions on the disk
HEALTH_S, END_S = 30.0, 5.0
RESTART_S = 10.0  # in which no vLLM starts: one that is silent for longer may be another, with its first weights
DROPS = 2  # the level of sleep at which a server keeps no weights
AGAIN_S = 600.0  # between two tries to start a server, which may take minutes of a full cluster, while others sample


class Servers:
    """Several vLLM servers that sample one policy; `note` gets a line when one is started, lost or back.

    `launch` starts a server of a number, for a model directory with flags of `vllm serve` and a log. `tokens` bounds
    prompt and answer together. `probe` is a prompt of the run, behind which log-probabilities are compared.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        probe: TokenIds,
        tokens: int,
        note: Callable[[str], None],
        launch: Launch = Process,
    ) -> None:
        options = config.scale.sampler
        assert options is not None
        self.version, self.config, self.options, self.probe, self.tokens = -1, config, options, probe, tokens
        self._lock: IO[bytes] | None = None
        self.folder, self._note, self._launch = folder.resolve(), note, launch
        addresses = options.addresses or ("",) * options.servers
        self.engines = [Engine(url.rstrip("/"), lost="not started", group=options.tensor_parallel) for url in addresses]
        self._processes: dict[int, Process] = {}
        self._not_before: dict[int, float] = {}  # when a server that could not be started is tried again
        self._name = f"selfdistill-{secrets.token_hex(4)}"  # several runs may share a server
        self._loads, self._asleep = 0, False
        self._tls = ssl.create_default_context()  # reading its certificates takes as long as a small batch
        self._send: Callable[[], None] = lambda: None  # all weights, over NCCL
        self._sends_to: list[Engine] = []
        self._threads = ThreadPoolExecutor()  # a server ends with the thread that started it
        self._running: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}

    def open(self) -> None:
        """Takes the folder of weights. Raises `RunError` where another process has it, or nobody can write there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what, do = "the folder for servers' weights cannot be made", "choose another with scale.sampler.folder"
            raise RunError(what, got=f"{self.folder} ({error.strerror})", do=do) from error
        self._lock = lock_directory(self.folder)
        for left in self.folder.glob("v*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    @property
    def live(self) -> list[Engine]:
        """The servers that take requests."""
        return [engine for engine in self.engines if not engine.lost]

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[TokenIds],
        options: SamplingOptions,
        *,
        seed: int,
        uids: Sequence[str],
        **_: object,
    ) -> list[Completion]:
        """As `models.sampler.sample`, but for the draws, which are vLLM's. Raises `EndpointError`."""
        if self._asleep:
            self._run(self._wake(policy))
        elif not policy.has_adapter and any(time.monotonic() - one.answered > RESTART_S for one in self.live):
            self._run(self._each(self._refreshed))
        bodies = [request(policy, *named, options, seed) for named in zip(prompts, uids, strict=True)]
        found = self._run(self._spread(bodies)) if bodies else []
        return [
            completion(policy, prompt, uid, body, *answer, self.version)
            for prompt, uid, body, answer in zip(prompts, uids, bodies, found, strict=True)
        ]

    def load(self, policy: Policy, version: int) -> dict[str, float]:
        """Writes the policy's weights and has every server load them. Raises `EndpointError`: no server is left, one
        refuses the weights, or its log-probabilities are not the policy's. All ranks call it."""
        began, same = time.monotonic(), policy.ranks.same
        if same(lambda: version == self.version and all(not engine.lost for engine in self.engines)):
            return {}
        weights = policy.gathered()
        probes = same(lambda: self._load(policy, version, weights))
        rows = [distance(policy, self.probe, done, self.config.sampling) for _, done in probes]
        same(lambda: refuse_beyond(self.options.logprob_bound, rows, probes))
        gap = max(float(apart_T.mean()) for apart_T in rows)
        return {"sync_s": time.monotonic() - began, "sampler_gap": gap, "samplers": float(len(rows))}

    def _load(self, policy: Policy, version: int, weights: Mapping[str, Tensor] | None) -> list[tuple[str, Completion]]:
        """What every server samples behind the probe with these weights (None: the policy has them), by its url."""
        if self.options.colocate and self.options.colocate.sleep == DROPS and policy.has_adapter:
            do = "set scale.sampler.colocate.sleep=1"
            raise ConfigError("a server that drops its weights loses the base of an adapter", got="sleep=2", do=do)
        path, self._loads = self._path(version), self._loads + 1
        if not path.is_dir() or version != self.version:
            write_weights(path, policy, weights)
        self._run(self._started(path, policy))
        if nccl := self.options.transfer == "nccl" and not policy.has_adapter:
            if self._sends_to != self.live:  # a group that lost a member cannot be used
                self._send, self._sends_to = sender(policy, self.live, self.options.timeout_s), self.live
            self._send()
        self._run(
            self._each(lambda client, engine: self._loaded(client, engine, path, version, policy.has_adapter, nccl))
        )
        self._require_live()
        self.version, probes = version, list[tuple[str, Completion]]()
        options = replace(self.config.sampling, max_new_tokens=PROBED)

        async def probed(client: httpx.AsyncClient, engine: Engine) -> None:
            body = request(policy, self.probe, f"probe-{version}", options, self.config.seed)
            reply = await engine.complete(client, body, self.options.timeout_s)
            done = completion(policy, self.probe, "", body, engine.url, reply, version)
            engine.probe, engine.probed = body, tuple(zip(done.token_ids, done.logprobs, strict=True))
            probes.append((engine.url, done))

        self._run(self._each(probed))
        self._require_live()
        for old in sorted(self.folder.glob("v*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return probes

    def _path(self, version: int) -> Path:
        return self.folder / f"v{version:06d}"

    async def _refreshed(self, client: httpx.AsyncClient, engine: Engine) -> None:
        """Loads the weights once more where a server was started anew meanwhile, with those that it begins with."""
        if not await engine.kept(client, self.options.logprob_bound, self.options.timeout_s):
            self._note(f"the sampler {engine.url} has other weights than it was sent: it loads them again")
            await engine.reload(client, str(self._path(self.version)), self.options.timeout_s)

    def rest(self) -> None:
        """Servers on the learner's GPU give memory back until the next call; others do nothing."""
        if self.options.colocate and not self._asleep:
            level = str(self.options.colocate.sleep)
            self._run(self._each(lambda client, engine: engine.call(
                client, routes.SLEEP, {}, timeout_s=self.options.timeout_s, level=level, mode="wait"
            )))  # fmt: skip
            self._asleep = True

    async def _wake(self, policy: Policy | None = None) -> None:
        """With a policy servers that dropped their weights load them again."""

        async def one(client: httpx.AsyncClient, engine: Engine) -> None:
            await engine.call(client, routes.WAKE, {}, timeout_s=self.options.timeout_s)
            if policy and self.options.colocate and self.options.colocate.sleep == DROPS:
                await engine.reload(client, str(self._path(self.version)), self.options.timeout_s)

        await self._each(one)
        self._asleep = False

    def close(self) -> None:
        """Ends requests in progress, servers that were started, and the weights written for them."""
        for task, loop in list(self._running.items()):
            with suppress(RuntimeError):  # it has just ended, and its loop with it
                loop.call_soon_threadsafe(task.cancel)
        if self.options.addresses:
            self._run(self._unloaded())
        for process in self._processes.values():
            process.end()
        self._threads.shutdown(wait=False)
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, from any thread, also one with a loop such as a notebook's; `close` cancels it."""

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._running[task] = asyncio.get_running_loop()
            try:
                return await work
            finally:
                del self._running[task]

        try:
            found = self._threads.submit(lambda: asyncio.run(tracked()))
        except RuntimeError:  # the run has ended
            work.close()
            raise
        return found.result()

    async def _unloaded(self) -> None:
        """The servers of others give the last adapter back."""
        async with self._client() as client:
            calls = [e.unload(client, e.model, END_S) for e in self.live if e.model != e.base]
            await asyncio.gather(*calls, return_exceptions=True)

    def _client(self) -> httpx.AsyncClient:
        """Of no proxy: servers are on this machine, or on a private network."""
        unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.requests)
        return httpx.AsyncClient(verify=self._tls, limits=unbounded, trust_env=False)

    async def _each(self, call: Callable[[httpx.AsyncClient, Engine], Coroutine[Any, Any, Any]]) -> None:
        """One call to every live server; those that are lost by it are left out from then on."""

        async def one(client: httpx.AsyncClient, engine: Engine) -> None:
            try:
                await call(client, engine)
            except LostError as error:
                self._lose(engine, error)

        async with self._client() as client:
            await asyncio.gather(*(one(client, engine) for engine in self.live))

    async def _spread(self, bodies: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
        """The answers to requests, in order. A server takes the next one when one of its own is answered."""
        waiting: asyncio.Queue[int] = asyncio.Queue()
        found, done = dict[int, tuple[str, Any]](), asyncio.get_running_loop().create_future()
        for place in range(len(bodies)):
            waiting.put_nowait(place)

        async def work(client: httpx.AsyncClient, engine: Engine) -> None:
            while True:
                place = await waiting.get()
                try:
                    if engine.lost:
                        waiting.put_nowait(place)
                        return
                    found[place] = engine.url, await engine.complete(client, bodies[place], self.options.timeout_s)
                except LostError as error:
                    waiting.put_nowait(place)
                    self._lose(engine, error)
                    if not self.live and not done.done():
                        done.set_exception(self._none_left())
                    return
                except BaseException as error:
                    if not done.done():
                        done.set_exception(error)
                    raise
                if len(found) == len(bodies) and not done.done():
                    done.set_result(None)

        self._require_live()
        async with self._client() as client:
            count = min(self.options.requests, len(bodies))
            workers = [asyncio.create_task(work(client, engine)) for engine in self.live for _ in range(count)]
            try:
                await done
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [found[place] for place in range(len(bodies))]

    async def _loaded(
        self, client: httpx.AsyncClient, engine: Engine, path: Path, version: int, adapter: bool, sent: bool
    ) -> None:
        seconds = self.options.timeout_s
        if adapter:
            await engine.load_adapter(client, f"{self._name}-{version}-{self._loads}", str(path), seconds)
        elif sent:
            await engine.forget(client, seconds)
        else:
            await engine.reload(client, str(path), seconds)

    async def _started(self, path: Path, policy: Policy) -> None:
        """Wakes, starts or tries again the servers that take no requests; waits for them where there is no other."""
        needs = [routes.GENERATE, *((routes.LOAD, routes.UNLOAD) if policy.has_adapter else (routes.RPC, routes.RESET))]
        needs += [routes.SLEEP, routes.WAKE] if self.options.colocate else []
        await self._each(lambda client, engine: engine.call(client, "/health", timeout_s=HEALTH_S))
        wait = not self.live
        if not self.options.addresses:
            for number, engine in enumerate(self.engines):
                process, rests = self._processes.get(number), time.monotonic() < self._not_before.get(number, 0.0)
                if engine.lost and (process is None or process.ended) and (wait or not rests):
                    self._start(number, path, policy)

        async def one(client: httpx.AsyncClient, number: int, engine: Engine) -> None:
            end = time.monotonic() + (self.options.start_s if wait else 0.0)
            while True:
                try:
                    await engine.call(client, "/health", timeout_s=HEALTH_S)
                    await engine.check(client, needs, self.tokens, 60.0)
                    break
                except LostError as error:
                    process = self._processes.get(number)
                    if (process and process.ended) or time.monotonic() >= end:
                        engine.lost = process.ended if process and process.ended else error.what
                        return
                    await asyncio.sleep(0.3)
            engine.model = engine.base
            if engine.lost != "not started":
                self._note(f"the sampler {engine.url} is back")
            engine.lost = ""

        if self._asleep:
            await self._wake()
        async with self._client() as client:
            known = self._processes if not self.options.addresses else range(len(self.engines))
            await asyncio.gather(*(one(client, n, e) for n, e in enumerate(self.engines) if e.lost and n in known))
        if not self.live:
            raise self._none_left()

    def _start(self, number: int, path: Path, policy: Policy) -> None:
        """Starts a server, in place of what is left of the one before. Raises `SelfDistillError` where it cannot, and
        at a later load it stays lost, to be tried again after `AGAIN_S`."""
        if number in self._processes:
            self._processes.pop(number).end()  # its engine may run on, and a cluster keeps its place
        engine, model = self.engines[number], served(self.config, policy, path, self.tokens)
        try:
            process = self._launch(self.options, number, *model, self.folder / f"server-{number}.log")
        except SelfDistillError as error:
            if self.version < 0:
                raise
            engine.lost, self._not_before[number] = f"{error.what}: {error.got}", time.monotonic() + AGAIN_S
            self._note(f"the sampler {number + 1} is not started again: {error.what}; {len(self.live)} left")
            return
        self._processes[number], engine.url = process, process.url
        self._note(f"starting a vLLM server at {process.url}; its log is {process.log}")

    def _lose(self, engine: Engine, error: LostError) -> None:
        if not engine.lost:
            number = self.engines.index(engine)
            process = self._processes.get(number)
            engine.lost = (process.ended if process else "") or error.what
            self._note(f"the sampler {engine.url} is lost: {engine.lost.splitlines()[0]}; {len(self.live)} left")

    def _require_live(self) -> None:
        if not self.live:
            raise self._none_left()

    def _none_left(self) -> EndpointError:
        reasons = "\n       ".join(f"{engine.url or 'not started'}: {engine.lost}" for engine in self.engines)
        do = "see the logs above, and that servers which run already can be reached"
        return EndpointError("no vLLM server is left to sample with", got=reasons, do=do)


@contextmanager
def open_samplers(
    config: RunConfig, folder: Path, probe: TokenIds, tokens: int, note: Callable[[str], None], ranks: Ranks = ALONE
) -> Iterator[Servers]:
    """Servers for as long as a run needs them, on this machine, or where the Ray cluster of this learner has room.
    Weights and logs lie in `folder` until then. Rank 0 alone has servers."""
    servers = Servers(config, folder, probe, tokens, note, PlacedServer if RAY in os.environ else Process)
    try:
        ranks.same(servers.open)
        yield servers
    finally:
        servers.close()
