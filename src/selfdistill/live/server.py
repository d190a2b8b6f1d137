"""The endpoint over HTTP: who may ask, bodies, streams, clients that go, and the end.

Starlette and uvicorn come with the extra `serve`. The event loop waits for nothing: texts become token ids in one
thread, the journal is written in others, the model works in its own.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from selfdistill.errors import ConfigError, JournalError
from selfdistill.live.answers import ChatAnswer
from selfdistill.live.batch import Piece
from selfdistill.live.control import Control
from selfdistill.live.learn_control import LearnControl
from selfdistill.live.schedule import Schedule
from selfdistill.live.service import Call, Service
from selfdistill.plugins import import_extra
from selfdistill.protocol.chat import COMPLETIONS, ChatError, Reply, data_event

MOST_BODY = 8 * 2**20  # bytes
KEEP_ALIVE_S = 10.0  # between two signs of life of a stream
GRACE_S = 10.0  # for answers that are being sampled when the server ends
RECEIPT, CONVERSATION = "x-selfdistill-receipt", "x-selfdistill-conversation"

Handler = Callable[[Any], Awaitable[Any]]


class Server:
    """Answers HTTP requests with a service. Without a `token` only requests of this machine's own programs are
    answered: none that a browser sends for another site."""

    def __init__(self, service: Service, *, token: str = "", schedule: Schedule | None = None) -> None:
        self.service, self._token, self._schedule = service, token, schedule
        self._responses = import_extra("starlette.responses", "serve", "selfdistill serve")
        self._reader = ThreadPoolExecutor(1, "reader")
        self._behind: set[asyncio.Future[Any]] = set()  # records of clients that went

    def app(self) -> Any:
        """The ASGI application."""
        applications = import_extra("starlette.applications", "serve", "selfdistill serve")
        route = import_extra("starlette.routing", "serve", "selfdistill serve").Route
        exceptions = import_extra("starlette.exceptions", "serve", "selfdistill serve")
        handlers: list[tuple[str, str, Handler]] = [
            ("POST", COMPLETIONS, self._chat),
            ("POST", "/v1/completions", self._text),
            ("POST", "/v1/feedback", self._feedback),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{name:path}", self._models),
            ("GET", "/healthz", self._health),
            *Control(self.service, self._responses.JSONResponse, _body).handlers,
            *LearnControl(self.service, self._schedule, self._responses.JSONResponse, _body).handlers,
        ]
        routes = [route(path, self._guarded(handle), methods=[method]) for method, path, handle in handlers]
        return applications.Starlette(routes=routes, exception_handlers={exceptions.HTTPException: self._not_served})

    def _guarded(self, handle: Handler) -> Handler:
        """A handler whose errors have OpenAI's shape, for clients that may ask."""

        async def guarded(request: Any) -> Any:
            try:
                if request.url.path != "/healthz":
                    self._allow(request)
                return await handle(request)
            except ChatError as error:
                return self._error(error)
            except JournalError as error:
                what = str(error).splitlines()[0]
                return self._error(ChatError(what, status=HTTPStatus.SERVICE_UNAVAILABLE, code="journal_error"))

        return guarded

    def _allow(self, request: Any) -> None:
        """Raises `ChatError` for a client without the token, or for a page of another site in a browser here."""
        if self._token:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                raise ChatError("the token is missing or wrong", status=HTTPStatus.UNAUTHORIZED, code="invalid_api_key")
            return
        named = [request.headers.get("host", "localhost"), request.headers.get("origin", "")]
        for name in filter(None, named):
            if not is_loopback(urlsplit(name if "//" in name else f"//{name}").hostname or ""):
                what = f"{name} may not ask: without a token, only programs of this machine are answered"
                raise ChatError(what, status=HTTPStatus.FORBIDDEN, code="forbidden")

    async def _chat(self, request: Any) -> Any:
        return await self._answer(request, self.service.chat)

    async def _text(self, request: Any) -> Any:
        return await self._answer(request, self.service.text)

    async def _answer(self, request: Any, read: Callable[[bytes, Any], Call]) -> Any:
        """Reads a request, has its answers sampled, and sends them."""
        service = self.service
        if not service.has_room(1):
            raise self._busy()
        service.reading += 1
        try:
            body = await _body(request)
            loop = asyncio.get_running_loop()
            call = await loop.run_in_executor(self._reader, read, body, dict(request.headers))
            if not service.has_room(len(call.answers) - 1):
                raise self._busy()
            pieces: asyncio.Queue[tuple[ChatAnswer, Piece]] = asyncio.Queue()

            def deliver(answer: ChatAnswer, piece: Piece) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(pieces.put_nowait, (answer, piece))

            service.start(call, deliver)
        finally:
            service.reading -= 1
        if call.streams:
            headers = {**self._headers(call), "cache-control": "no-cache", "x-accel-buffering": "no"}
            stream = self._stream(call, pieces)
            return self._responses.StreamingResponse(stream, headers=headers, media_type="text/event-stream")
        replies = await self._whole(request, call, pieces)
        return self._responses.JSONResponse(call.body(replies), headers=self._headers(call))

    async def _whole(self, request: Any, call: Call, pieces: asyncio.Queue[tuple[ChatAnswer, Piece]]) -> list[Reply]:
        """The recorded answers, unless the client goes first."""

        async def collected() -> None:
            async for got in _pieces(call, pieces):
                if got is not None:
                    got[0].add(got[1])
                    _check_end(got[1])

        work, gone = asyncio.create_task(collected()), asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ChatError("the client went", code="cancelled")
            work.result()
            return await asyncio.to_thread(self.service.record, call)
        finally:
            work.cancel()
            gone.cancel()
            self._cancelled(call)

    async def _stream(self, call: Call, pieces: asyncio.Queue[tuple[ChatAnswer, Piece]]) -> AsyncIterator[bytes]:
        """The answers as server-sent events; the last of each, with its receipt, once all are recorded."""
        head = call.head()
        try:
            for answer in call.answers:
                yield data_event({**head, **answer.first()})
            async for got in _pieces(call, pieces):
                if got is None:
                    yield b": keep-alive\n\n"
                    continue
                answer, piece = got
                answer.add(piece)
                _check_end(piece)
                for chunk in answer.chunks() if not piece.ended else ():
                    yield data_event({**head, **chunk})
            replies = await asyncio.to_thread(self.service.record, call)
            for answer, reply in zip(call.answers, replies, strict=True):
                for chunk in answer.last(reply, call.about(answer)):
                    yield data_event({**head, **chunk})
            if call.wants_usage:
                last = {"object": "text_completion", "choices": [], "usage": call.usage(replies)}
                chat = call.answers[0].kind == "chat.completion"
                yield data_event({**head, **last, **({"object": "chat.completion.chunk"} if chat else {})})
            yield b"data: [DONE]\n\n"
        except ChatError as error:
            yield data_event(error.body)
        finally:
            self._cancelled(call)

    def _cancelled(self, call: Call) -> None:
        """Records, behind the client's back, what was sampled for one that went."""
        if call.recorded:
            return
        call.cancel()
        if any(answer.ended in ("failed", "shutdown") for answer in call.answers):
            return
        task = asyncio.get_running_loop().run_in_executor(self._reader, self._record_cancelled, call)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _record_cancelled(self, call: Call) -> None:
        try:
            self.service.record_cancelled(call)
        except ChatError:  # nobody waits for it
            return

    def _busy(self) -> ChatError:
        what = f"{self.service.most} answers are in progress or wait, and more are not queued: try again later"
        return ChatError(what, status=HTTPStatus.TOO_MANY_REQUESTS, code="rate_limit_exceeded")

    async def _feedback(self, request: Any) -> Any:
        body = await _body(request)
        return self._responses.JSONResponse(await asyncio.to_thread(self.service.feedback, body))

    async def _models(self, request: Any) -> Any:
        name, service = request.path_params.get("name"), self.service
        model = {
            "id": service.name, "object": "model", "created": int(service.started), "owned_by": "selfdistill",
            "max_model_len": service.policy.context_length,
        }  # fmt: skip
        if name is None:
            return self._responses.JSONResponse({"object": "list", "data": [model]})
        if name != service.name:
            what = f"the model {name!r} is not served: {service.name} is"
            raise ChatError(what, status=HTTPStatus.NOT_FOUND, code="model_not_found")
        return self._responses.JSONResponse(model)

    async def _health(self, _: Any) -> Any:
        return self._responses.JSONResponse({"status": "ok", "model": self.service.name})

    async def _not_served(self, request: Any, error: Any) -> Any:
        """What no route takes."""
        what = f"{request.method} {request.url.path} is not served"
        if request.url.path.startswith("/v1/responses"):
            what += f": use {COMPLETIONS}"
        return self._error(ChatError(what, status=HTTPStatus(error.status_code), code="not_found"))

    def _error(self, error: ChatError) -> Any:
        headers = {}
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            headers["retry-after"] = str(self.service.retry_after())
        return self._responses.JSONResponse(error.body, status_code=error.status, headers=headers)

    def _headers(self, call: Call) -> dict[str, str]:
        return {RECEIPT: ",".join(call.receipts), CONVERSATION: call.place.conversation}


async def _body(request: Any) -> bytes:
    """The body of a request. Raises `ChatError` for one that is too long, once it was sent: a client that is still
    sending would not read the error."""
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BODY:
            parts.append(part)
        elif size > 16 * MOST_BODY:
            break
    if size > MOST_BODY:
        what = f"a body has at most {MOST_BODY} bytes, got {size}"
        raise ChatError(what, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, code="request_too_large")
    return b"".join(parts)


async def _disconnected(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _pieces(
    call: Call, pieces: asyncio.Queue[tuple[ChatAnswer, Piece]]
) -> AsyncIterator[tuple[ChatAnswer, Piece] | None]:
    """What is sampled, until all answers have ended; None after a while without anything."""
    left = len(call.answers)
    while left:
        try:
            got = pieces.get_nowait()
        except asyncio.QueueEmpty:
            try:
                got = await asyncio.wait_for(pieces.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield None
                continue
        left -= bool(got[1].ended)
        yield got


def _check_end(piece: Piece) -> None:
    """Raises `ChatError` for an answer that ended for a reason of the server."""
    if piece.ended == "shutdown":
        raise ChatError("the server is ending", status=HTTPStatus.SERVICE_UNAVAILABLE, code="shutdown")
    if piece.ended == "failed":
        what = f"the model could not go on: {piece.why}"
        raise ChatError(what, status=HTTPStatus.INTERNAL_SERVER_ERROR, code="engine_error")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nobody else's."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposed(host: str, token: str) -> None:
    """Raises `ConfigError` for an address that others reach, without a token."""
    if not is_loopback(host) and not token:
        why = "others on the network could use the model, and read what conversations say by continuing them"
        do = "give --token TEXT or @FILE (or set SELFDISTILL_TOKEN), or leave --host out"
        raise ConfigError(f"a token is required beyond this machine ({host})", why=why, do=do)


def run(server: Server, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until Ctrl-C or SIGTERM; answers in progress then have some seconds, and those that wait are refused.
    `ready` gets the address once it is bound. Raises `ConfigError` where it cannot be."""
    uvicorn = import_extra("uvicorn", "serve", "selfdistill serve")
    config = uvicorn.Config(
        server.app(), host=host, port=port, log_level="error", access_log=False, lifespan="off",
        timeout_graceful_shutdown=int(GRACE_S) + 5, server_header=False,
    )  # fmt: skip
    engine = server.service.engine

    running = uvicorn.Server(config)

    def handle_exit(*_: Any) -> None:  # uvicorn's own raises the signal again at the end, which is none that failed
        engine.close(0.0 if running.should_exit else GRACE_S)
        running.should_exit, running.force_exit = True, running.should_exit

    running.handle_exit = handle_exit

    try:
        bound = config.bind_socket()
    except SystemExit:
        do = "another program has this port: name another with --port, 0 takes a free one"
        raise ConfigError("the address cannot be used", got=f"{host}:{port}", do=do) from None
    try:
        bound.listen()  # who reads the address may ask at once
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{bound.getsockname()[1]}/v1")
        running.run(sockets=[bound])
    finally:
        bound.close()
        engine.close()
        engine.join()
