"""Environments written for `verifiers` as environments of conversations: its agents talk to our endpoint."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cached_property
from itertools import islice
from types import ModuleType
from typing import Any
from weakref import WeakSet

from selfdistill.envs.agents import AgentEnvironment, AgentState
from selfdistill.envs.base import Fault, Scored, checked
from selfdistill.errors import ConfigError, DataError, EnvError
from selfdistill.plugins import import_extra
from selfdistill.protocol.chat import ChatError, read_request
from selfdistill.types import DropReason, Message, Outcome, Task

MODEL = "selfdistill"  # the model's name in requests
NO_KEY = "SELFDISTILL_NO_KEY"  # of the environment: none is sent to the endpoint
EXIT_S = 10.0  # for agents to end when the program does
OPENS = "(The environment opens the conversation.)"


def from_verifiers(
    taskset: Any,
    *,
    tasks: int = 0,
    held_out: int = 0,
    harness: str | Mapping[str, Any] = "",
    runtime: str | Mapping[str, Any] = "subprocess",
    feedback: str | Callable[[Any], str] = "feedback",
    limit_s: float = 600.0,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> VerifiersEnvironment:
    """An environment from a taskset of `verifiers` (extra `verifiers`): its id, such as "primeintellect/gsm8k", whose
    package is installed, or a `Taskset`.

    tasks: how many to train on; 0: all but the held-out ones. held_out: how many of those after them are kept for
    evaluations. harness: the agent's program, an id or its settings; by default the taskset's own, else `null`, a chat
    loop with the tools of the task and no others. runtime: where that runs, a type or its settings. feedback: what the
    teacher may read of a trace, a text in its `info` by name, or a function of the trace. limit_s: seconds that an
    agent may take to its first request and between two of them. config: other fields of the environment's config.
    settings: those of the taskset.

    Raises `ConfigError`: a package that is missing, settings that the taskset does not have, an environment in which
    several agents play our model.
    """
    vf = import_extra("verifiers.v1", "verifiers", "from_verifiers")
    loaders = import_extra("verifiers.v1.utils.loaders", "verifiers", "from_verifiers")
    given = None if isinstance(taskset, str) else taskset
    if given is not None and not isinstance(given, vf.Taskset):
        raise ConfigError("from_verifiers needs a taskset", got=repr(taskset)[:200], do="give its id, or a vf.Taskset")
    name = taskset if given is None else given.config.id or _registered(type(given))
    _check_package(loaders, name)
    fields = {"id": name, **(settings if given is None else {**given.config.model_dump(exclude={"id"}), **settings})}
    own = loaders.default_harness_id(name)
    agent = {
        "harness": _with_id(harness or ("null" if own == "bash" else own), "id"), "runtime": _with_id(runtime, "type")
    }  # fmt: skip
    try:
        kind = loaders.env_config_type(name, (config or {}).get("id", ""))
        whole = {**(config or {}), "taskset": fields}
        played = [role for role in _roles(kind) if "client" not in whole.get(role, {})]
        if len(played) != 1:
            what = f"the environment {name!r} has {len(played)} agents that our model would play"
            do = 'leave one to it, and give the others a model: config={"judge": {"model": …, "client": {…}}}'
            raise ConfigError(what, got=", ".join(played) or "none", do=do)
        whole[played[0]] = {**agent, **whole.get(played[0], {})}
        env = loaders.load_environment(loaders.resolve_env_config(whole))
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError) as error:  # of settings; an unknown harness is an import error
        raise ConfigError(f"verifiers refuses the settings of {name!r}", got=_settings_error(error)) from error
    if given is not None:
        env.taskset = given
    return VerifiersEnvironment(env, played[0], name, (tasks, held_out), feedback, limit_s)


class VerifiersEnvironment(AgentEnvironment):
    """An environment of `verifiers`, whose agent in one role is our model. Made by `from_verifiers`."""

    def __init__(
        self,
        env: Any,
        role: str,
        name: str,
        sizes: tuple[int, int],
        feedback: str | Callable[[Any], str],
        limit_s: float,
    ) -> None:
        super().__init__(name.rpartition("/")[2].partition("@")[0], limit_s=limit_s)
        self._env, self._role, self._sizes, self._feedback = env, role, sizes, feedback
        self._episodes: WeakSet[Future[None]] = WeakSet()
        if not env.taskset.bounded and not sizes[0]:
            do = "say how many: from_verifiers(…, tasks=256)"
            raise ConfigError(f"the taskset {self.name!r} has no end", got="tasks=0", do=do)

    @cached_property
    def _theirs(self) -> list[Any]:
        """The tasks of the taskset that are used, in its order."""
        train, held_out = self._sizes
        found = list(islice(self._env.taskset, train + held_out if train else None))
        if len(found) <= held_out:
            raise DataError(f"the taskset {self.name!r} has too few tasks", got=f"{len(found)}, held_out={held_out}")
        return found

    def tasks(self, split: str) -> list[Task]:
        """The taskset's tasks: `spec` is the data of each, in JSON."""
        end = self._sizes[0] or len(self._theirs) - self._sizes[1]
        found = {"train": self._theirs[:end], "held_out": self._theirs[end:]}.get(split, [])
        return [Task(f"task-{task.data.idx}", _messages(task.data), _spec(task.data)) for task in found]

    def unusable(self, task: Task) -> str:
        """Names a task that is none of the taskset's."""
        return "" if task.spec.get("idx") in self._by_index else f"it is no task of the taskset {self.name!r}"

    @cached_property
    def _by_index(self) -> dict[Any, Any]:
        return {task.data.idx: task for task in self._theirs}

    def launch(self, state: AgentState) -> None:
        """Begins an episode on the loop of the environment."""
        task, loop = self._by_index[state.task["idx"]], self._loop
        future = asyncio.run_coroutine_threadsafe(self._episode(state, task), loop)
        self._episodes.add(future)
        state.cancel = future.cancel

    async def _episode(self, state: AgentState, task: Any) -> None:
        def register(trace: Any) -> None:
            if trace.agent.name == self._role:
                state.register(trace.id)

        try:
            context = self._context()
            episode = await self._env.run_episode(task, context, on_trace=register)
            result = self._scored(episode)
        except Exception:  # noqa: BLE001 (an environment of the user's)
            result = Fault(DropReason.ENV_RAISED, traceback.format_exc())
        state.end(result)

    def _context(self) -> Any:
        vf = import_extra("verifiers.v1", "verifiers", "from_verifiers")
        client = vf.EvalClientConfig(base_url=self.endpoint.url, api_key_var=NO_KEY)
        return vf.ModelContext(model=MODEL, client=client)

    def _scored(self, episode: Any) -> Scored:
        """The outcome of the agent's trace; a fault where the episode failed."""
        traces = [trace for trace in episode.traces if trace.agent.name == self._role]
        errors = [*(error for trace in traces for error in trace.errors if not trace.ok), *episode.errors]
        if errors or not traces:
            text = "\n".join(f"{error.traceback or ''}{error.type}: {error.message}" for error in errors)
            return Fault(DropReason.ENV_RAISED, text or "the episode has no trace of the agent")
        trace = traces[-1]
        rewards = {name: reward.score for name, reward in trace.rewards.items() if reward is not None}
        if len(rewards) < len(trace.rewards):
            return Fault(DropReason.ENV_RAISED, f"the trace was not scored: {trace.stop_condition}")
        metrics = {name: value for name, value in trace.metrics.items() if value is not None}
        found = trace.info.get(self._feedback, "") if isinstance(self._feedback, str) else self._feedback(trace)
        details = {**metrics, **rewards, "agent_stop": trace.stop_condition or ""}
        return checked(Outcome(trace.reward, found or "", details))

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which episodes run, in a thread of its own, while the environment is served. Raises `EnvError`
        where that fails."""
        ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        thread = threading.Thread(target=_served, args=(self._env, ready), daemon=True)
        thread.start()
        try:
            loop, stop = ready.result()
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise EnvError(f"the environment {self.name!r} cannot be served", got=got) from error
        weakref.finalize(self, _close, loop, stop, thread, self._episodes)
        return loop


def _served(env: Any, ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    """Runs a loop, with what the environment shares among its episodes, until `stop` is set."""

    async def host() -> None:
        stop = asyncio.Event()
        async with env.serving():
            ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    try:
        asyncio.run(host())
    except Exception as error:  # noqa: BLE001 (raised again where the loop is wanted)
        if not ready.done():
            ready.set_exception(error)


def _close(
    loop: asyncio.AbstractEventLoop, stop: asyncio.Event, thread: threading.Thread, episodes: WeakSet[Future[None]]
) -> None:
    """Ends open episodes and their processes, and then the loop."""
    for episode in [*episodes]:
        episode.cancel()
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)
        thread.join(EXIT_S)


def _registered(kind: type) -> str:
    """The id of a taskset's class that no package of its own has: a module made for it."""
    name = f"selfdistill_{kind.__module__}_{kind.__qualname__}".lower().replace(".", "_").replace("<locals>", "_")
    module = ModuleType(name)
    module.__dict__.update({"__all__": ["Given"], "Given": kind})
    sys.modules[name] = module
    return name


def _check_package(loaders: Any, name: str) -> None:
    """Raises `ConfigError` where a taskset cannot be imported."""
    try:
        loaders.taskset_class(name)
    except ImportError as error:
        inner = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        module = name.rpartition("/")[2].partition("@")[0].replace("-", "_").lower()
        if inner.name in (module, f"verifiers.v1.tasksets.{module}"):
            do = "install the package of the taskset, and check its name"
            raise ConfigError(f"there is no taskset {name!r}", got=error, do=do) from error
        do = f"pip install {inner.name.partition('.')[0]}" if inner.name else "install what it names"
        raise ConfigError(f"the taskset {name!r} needs a package that is not installed", got=inner, do=do) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"the package {name!r} has no taskset", got=error) from error


def _roles(kind: Any) -> list[str]:
    """The roles of an environment's config, each an agent."""
    vf = import_extra("verifiers.v1", "verifiers", "from_verifiers")
    return [name for name, field in kind.model_fields.items() if isinstance(field.default, vf.AgentConfig)]


def _with_id(value: str | Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: value} if isinstance(value, str) else {**value}


def _settings_error(error: Exception) -> str:
    """The errors of a validation on one line each, others as they are."""
    errors = getattr(error, "errors", None)
    found = errors() if callable(errors) else []
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found) or str(error)


def _messages(data: Any) -> tuple[Message, ...]:
    """What the model reads of a task. Its agent may write it in another way, which is then what the model reads."""
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    prompt = data.prompt if data.prompt is not None else OPENS
    if isinstance(prompt, str):
        chat = [{"role": "user", "content": prompt}]
    else:
        chat = [message.model_dump(mode="json", exclude_none=True) for message in prompt]
    try:
        return read_request(json.dumps({"messages": system + chat}).encode()).messages
    except ChatError as error:
        what = f"a task cannot be read: task {data.idx} of the taskset"
        raise DataError(what, got=error, do="choose a taskset of text") from error


def _spec(data: Any) -> dict[str, Any]:
    spec: dict[str, Any] = data.model_dump(mode="json", exclude_none=True)
    return spec
