"""The pages over HTTP, for this machine alone. Starlette and uvicorn come with the extra `view`.

Texts of a run are hostile: the policy lets a page load nothing but its own script and style, and a request of another
site's page is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import uvicorn
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfdistill.errors import RunError, SelfDistillError
from selfdistill.runs.credit import AnswerCredit
from selfdistill.view.site.answers import Answers
from selfdistill.view.site.library import is_here
from selfdistill.view.site.undo import undo

Recompute: TypeAlias = Callable[[Path, str], AnswerCredit]
STATIC = files("selfdistill.view.site") / "static"
SCRIPTS = (
    "preact-10.29.8.js", "preact-hooks-10.29.8.js", "htm-3.1.1.js", "uplot-1.6.32.js", "common.js", "curves.js",
    "runs.js", "step.js", "rollout.js", "search.js", "journal.js", "app.js",
)  # fmt: skip
STYLES = ("uplot-1.6.32.css", "style.css")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}  # fmt: skip


def static(*names: str) -> str:
    """The texts of files of the pages, one after the other."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


def page(head: str, body: str) -> str:
    """The page around everything; scripts and styles are what `head` and `body` add."""
    return static("page.html").replace("<!--head-->", head).replace("<!--body-->", body)


def application(answers: Answers, recompute: Recompute | None = None) -> Starlette:
    """The ASGI application. `recompute` is the credit of a rollout by a checkpoint of its run, one at a time."""
    one = Lock()
    index = page('<link rel="stylesheet" href="style.css">', '<script src="script.js"></script>')
    texts = {"/": ("text/html", index), "/style.css": ("text/css", static(*STYLES))}
    texts["/script.js"] = ("text/javascript", static(*SCRIPTS))

    def text(request: Request) -> Response:
        kind, content = texts[request.url.path]
        return _tagged(request, content.encode(), kind)

    def answer(request: Request) -> Response:
        try:
            return _tagged(request, answers(request.path_params["name"], request.query_params), "application/json")
        except (SelfDistillError, OSError) as error:  # a file may go at any time
            return JSONResponse({"error": str(error)}, 404)

    def undone(query: Mapping[str, str], body: Mapping[str, Any]) -> Any:
        return undo(answers.library.get(query.get("id", ""), "journal").path, body)

    def credited(query: Mapping[str, str], _: Mapping[str, Any]) -> Any:
        path = answers.library.get(query.get("id", ""), "run").path
        if recompute is None:
            raise RunError("credit is not computed here", do="start the pages with `selfdistill view`")
        with one:
            return recompute(path, query.get("uid", ""))

    def changing(
        act: Callable[[Mapping[str, str], Mapping[str, Any]], Any],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                body = json.loads(await request.body() or b"{}")
                found = await run_in_threadpool(act, request.query_params, body if isinstance(body, dict) else {})
                return Response(to_json(found, inf_nan_mode="strings"), media_type="application/json")
            except (SelfDistillError, ValueError, RuntimeError, MemoryError) as error:
                return JSONResponse({"error": str(error)}, 400)

        return handle

    routes = [Route(path, text) for path in texts]
    routes += [Route("/api/undo", changing(undone), methods=["POST"])]
    routes += [Route("/api/credit", changing(credited), methods=["POST"]), Route("/api/{name}", answer)]
    app = Starlette(routes=routes)
    app.add_middleware(_Guard)
    return app


def _tagged(request: Request, body: bytes, kind: str) -> Response:
    """A response that a browser asks for again at no cost while it has not changed."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(body, media_type=kind, headers={"etag": tag})


class _Guard:
    """Refuses requests that a page of another site makes, or that came by another name than this machine's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        named = [headers.get("host", ""), headers.get("origin", "")]
        own = all(is_here(name) for name in named[:1]) and (not named[1] or urlsplit(named[1]).netloc == named[0])
        if not own or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return await Response("only pages of this program are answered", 403, HEADERS)(scope, receive, send)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, sent)


def serve(answers: Answers, port: int, ready: Callable[[str], None], recompute: Recompute | None = None) -> None:
    """Serves the pages until Ctrl-C. `ready` gets the address once bound. Raises `RunError` where it cannot be."""
    config = uvicorn.Config(
        application(answers, recompute), host="127.0.0.1", port=port, log_level="error", access_log=False,
        lifespan="off", server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    try:
        bound = config.bind_socket()
    except SystemExit:
        do = "another program has this port: name another with --port, or leave it out"
        raise RunError("the address cannot be used", got=f"127.0.0.1:{port}", do=do) from None
    with bound:
        bound.listen()  # a browser that is opened now waits until the server runs
        ready(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[bound])
