"""The pages over HTTP, for this machine alone. Starlette and uvicorn come with the extra `view`.

Texts of a run are hostile: the policy lets a page load nothing but its own script and style, and a request of another
site's page is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfdistill.errors import RunError, SelfDistillError
from selfdistill.view.site.answers import Answers

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


def application(answers: Answers) -> Starlette:
    """The ASGI application."""
    index = page('<link rel="stylesheet" href="style.css">', '<script src="script.js"></script>')
    texts = {"/": ("text/html", index), "/style.css": ("text/css", static(*STYLES))}
    texts["/script.js"] = ("text/javascript", static(*SCRIPTS))

    def text(request: Request) -> Response:
        kind, content = texts[request.url.path]
        return _tagged(request, content.encode(), kind)

    def answer(request: Request) -> Response:
        try:
            return _tagged(request, answers(request.path_params["name"], request.query_params), "application/json")
        except SelfDistillError as error:
            return JSONResponse({"error": str(error)}, 404)

    routes = [Route(path, text) for path in texts] + [Route("/api/{name}", answer)]
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
        own = all(_is_here(name) for name in named[:1]) and (not named[1] or urlsplit(named[1]).netloc == named[0])
        if not own or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return await Response("only pages of this program are answered", 403, HEADERS)(scope, receive, send)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, sent)


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def serve(answers: Answers, port: int, ready: Callable[[str], None]) -> None:
    """Serves the pages until Ctrl-C. `ready` gets the address once bound. Raises `RunError` where it cannot be."""
    config = uvicorn.Config(
        application(answers), host="127.0.0.1", port=port, log_level="error", access_log=False, lifespan="off",
        server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    try:
        bound = config.bind_socket()
    except SystemExit:
        do = "another program has this port: name another with --port, or leave it out"
        raise RunError("the address cannot be used", got=f"127.0.0.1:{port}", do=do) from None
    with bound:
        ready(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[bound])
