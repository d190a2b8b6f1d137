"""The HTTP routes of one vLLM server that a run uses: token ids in and out, and weights by directory.

    GET  /version, /openapi.json      its version, and the routes that it has
    GET  /v1/models                   the name of its model, and the longest prompt with its answer
    POST /v1/completions              one completion, with the log-probability of every sampled token
    POST /v1/load_lora_adapter        an adapter of a directory, under a name of its own; /v1/unload_lora_adapter
    POST /collective_rpc              `reload_weights`: all weights of a directory; then /reset_prefix_cache
    POST /sleep, /wake_up             gives memory of the device back, and takes it again

Every call has a time limit. A server that does not answer, that fails or gives up an answer, is lost: `LostError`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import takewhile
from statistics import fmean
from typing import Any

import httpx

from selfdistill.errors import EndpointError

GENERATE, LOAD, UNLOAD = "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RPC, RESET, SLEEP, WAKE = "/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up"
GIVEN_UP = ("abort", "error")  # reasons of an end that is none
OLDEST = (0, 32)  # whose routes the contract tests use
SERVED_AS = "--logprobs-mode processed_logprobs --generation-config vllm"
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


class LostError(EndpointError):
    """A server that no longer answers; another one can do its work."""


@dataclass(slots=True)
class Engine:
    """One server. `lost` is why it gets no more requests, "" while it does; `model` is what requests name: its base,
    or the adapter that it loaded last. `group` is the number of its GPUs. After a load it answered the
    request `probe` with the tokens `probed`, each with its log-probability; `answered` is when it last answered."""

    url: str
    base: str = ""
    model: str = ""
    lost: str = ""
    group: int = 1
    probe: Mapping[str, Any] = field(default_factory=dict)
    probed: Sequence[tuple[int, float]] = ()
    answered: float = 0.0

    async def call(
        self, client: httpx.AsyncClient, route: str, body: Any = None, *, timeout_s: float, **query: str
    ) -> Any:
        """The answer as JSON, else as text; without a body a GET. Raises `LostError`, and `EndpointError` for a request
        that the server refuses."""
        verb = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(timeout_s):  # httpx limits each read alone
                answer = await client.request(verb, self.url + route, json=body, params=query, timeout=timeout_s)
        except (httpx.TimeoutException, TimeoutError):
            raise LostError(f"no answer to {route} in {timeout_s:g} s", got=self.url) from None
        except httpx.HTTPError as error:
            raise LostError(f"{route} failed: {type(error).__name__} {error}".strip(), got=self.url) from None
        self.answered = time.monotonic()
        gone = answer.status_code == HTTPStatus.NOT_FOUND and route == GENERATE  # started anew, without our adapter
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or gone:
            raise LostError(f"{route} failed with status {answer.status_code}: {answer.text[:300]}", got=self.url)
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            what = f"the vLLM server refuses {route}"
            raise EndpointError(what, got=f"{self.url}: {answer.text[:600]}", status=answer.status_code)
        try:
            return answer.json()
        except ValueError:
            return answer.text

    async def complete(self, client: httpx.AsyncClient, body: Mapping[str, Any], timeout_s: float) -> Any:
        """The answer to a request for one completion. Raises `LostError` also for one that the server gave up."""
        reply = await self.call(client, GENERATE, {**body, "model": self.model}, timeout_s=timeout_s)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason") in GIVEN_UP:
                raise LostError(f"{GENERATE} ended with {choice['finish_reason']}", got=self.url)
        return reply

    async def kept(self, client: httpx.AsyncClient, bound: float, timeout_s: float) -> bool:
        """Whether it has the weights of its last load: it answers `probe` as it did then."""
        reply = await self.complete(client, self.probe, timeout_s)
        try:
            [choice] = reply["choices"]
            now = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
            equal = takewhile(lambda both: both[0][0] == both[1][0], zip(self.probed, now, strict=False))
            apart = [abs(before[1] - after[1]) for before, after in equal]
        except (KeyError, TypeError, ValueError):
            return False
        return bool(apart) and fmean(apart) <= bound

    async def check(self, client: httpx.AsyncClient, routes: Sequence[str], tokens: int, timeout_s: float) -> None:
        """Raises `EndpointError` for a server that is too old, lacks one of the routes, or reads fewer tokens."""
        found = await self.call(client, "/version", timeout_s=timeout_s)
        version = str(found.get("version", "")) if isinstance(found, dict) else ""
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None:
            raise other_api(self.url, "/version names no version")
        if tuple(map(int, numbers.groups())) < OLDEST:
            raise other_api(
                self.url, f"its version is {version}, and {'.'.join(map(str, OLDEST))} is the oldest that fits"
            )
        known = await self.call(client, "/openapi.json", timeout_s=timeout_s)
        for route in routes:
            if not isinstance(known, dict) or route not in known.get("paths", {}):
                missing = f"vLLM {version} has no route {route}"
                raise other_api(
                    self.url, missing, f"start it with {' '.join(f'{k}={v}' for k, v in ENVIRONMENT.items())}"
                )
        try:
            model = (await self.call(client, "/v1/models", timeout_s=timeout_s))["data"][0]
            self.base, length = model["id"], model.get("max_model_len") or tokens
        except (KeyError, TypeError, IndexError):
            raise other_api(self.url, "/v1/models names no model") from None
        self.model = self.model or self.base
        if length < tokens:
            what = "a vLLM server reads too few tokens"
            why = "prompt and answer together would be cut where this run does not cut them"
            do = (
                f"start it with --max-model-len {tokens}, or lower context.max_prompt_tokens or sampling.max_new_tokens"
            )
            raise EndpointError(what, got=f"{self.url}: {length}, the run needs {tokens}", why=why, do=do)

    async def load_adapter(self, client: httpx.AsyncClient, name: str, path: str, timeout_s: float) -> None:
        """Loads an adapter under a name of its own, then unloads the one before."""
        await self.call(client, LOAD, {"lora_name": name, "lora_path": path}, timeout_s=timeout_s)
        before, self.model = self.model, name
        if before not in (self.base, name):
            await self.unload(client, before, timeout_s)

    async def unload(self, client: httpx.AsyncClient, name: str, timeout_s: float) -> None:
        """Gives an adapter back."""
        try:
            await self.call(client, UNLOAD, {"lora_name": name}, timeout_s=timeout_s)
        except EndpointError as error:
            if error.status != HTTPStatus.NOT_FOUND:  # a server that was started anew has none to unload
                raise

    async def reload(self, client: httpx.AsyncClient, path: str, timeout_s: float) -> None:
        """Loads all weights of a model directory in place of its own."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}, "timeout": timeout_s}
        await self.call(client, RPC, body, timeout_s=timeout_s)
        await self.forget(client, timeout_s)

    async def forget(self, client: httpx.AsyncClient, timeout_s: float) -> None:
        """Drops keys and values that older weights computed. Raises `EndpointError` where some are still in use."""
        done = await self.call(client, RESET, {}, timeout_s=timeout_s)
        if isinstance(done, dict) and not done.get("success", True):
            raise EndpointError(
                "the prefix cache was not reset", got=self.url, why="requests of others use this server"
            )


def other_api(url: str, why: str, do: str = "") -> EndpointError:
    what = "this server is no vLLM that a run can sample from"
    return EndpointError(what, got=url, why=why, do=do or f"use vLLM {'.'.join(map(str, OLDEST))} or newer")
