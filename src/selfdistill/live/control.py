"""The routes under /v1/selfdistill: the server in numbers, and which version of the weights answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from selfdistill.errors import ModelError, VersionError
from selfdistill.live.service import Service
from selfdistill.protocol.chat import ChatError, read_field

FIELDS = ("id", "parent", "created", "model", "path", "state", "pinned")


class Control:
    """Answers requests about versions. `respond` makes a response of JSON, `body` reads that of a request."""

    def __init__(
        self, service: Service, respond: Callable[[Any], Any], body: Callable[[Any], Awaitable[bytes]]
    ) -> None:
        self._service, self._respond, self._body = service, respond, body
        prefix = "/v1/selfdistill"
        self.handlers: list[tuple[str, str, Callable[[Any], Awaitable[Any]]]] = [
            ("GET", f"{prefix}/status", self._status),
            ("GET", f"{prefix}/versions", self._versions),
            ("POST", f"{prefix}/pin", self._pin),
            ("POST", f"{prefix}/undo", self._undo),
            ("POST", f"{prefix}/pause", self._pause),
        ]

    async def _status(self, _: Any) -> Any:
        return self._respond(await asyncio.to_thread(self._service.status))

    async def _versions(self, _: Any) -> Any:
        versions = await asyncio.to_thread(lambda: self._service.journal.versions.all)
        data = [{name: getattr(version, name) for name in FIELDS} for version in versions]
        return self._respond({"served": self._service.version.id, "data": data})

    async def _pin(self, request: Any) -> Any:
        version = await self._read(request, "version", int, type(None))
        return await self._changed(request, lambda: self._service.pin(version))

    async def _undo(self, request: Any) -> Any:
        count = await self._read(request, "versions", int, default=1)
        if count < 1:
            raise ChatError("versions should be how many to undo, at least 1", param="versions")
        return await self._changed(request, lambda: self._service.undo(count))

    async def _pause(self, request: Any) -> Any:
        paused = await self._read(request, "paused", bool)
        await asyncio.to_thread(self._service.journal.pause, paused)
        return self._respond({"paused": paused})

    async def _read(self, request: Any, name: str, *kinds: type, default: Any = ...) -> Any:
        return read_field(await self._body(request), name, *kinds, default=default)

    async def _changed(self, request: Any, change: Callable[[], object]) -> Any:
        """The versions after a change. Raises `ChatError` for one that is not possible."""
        try:
            await asyncio.to_thread(change)
        except (VersionError, ModelError) as error:
            what = "; ".join(filter(None, (f"{error.what}: {error.got}", error.why, error.do)))
            code = "not_loaded" if isinstance(error, ModelError) else "not_possible"
            raise ChatError(what, status=HTTPStatus.CONFLICT, code=code) from error
        return await self._versions(request)
