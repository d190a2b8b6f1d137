"""A chat endpoint on the loopback interface for agents whose model is the one that is being trained.

A request waits until its conversation answers it. It names the conversation in the header `x-session-id`; all else is
as in OpenAI's API. What a request says about sampling is not read: a run samples all answers alike.
"""

from __future__ import annotations

import json
import threading
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, TypeAlias

from selfdistill.envs.base import Scored
from selfdistill.protocol.chat import COMPLETIONS, ChatError, ChatRequest, Reply, read_request, server_sent

HEADER = "x-session-id"
MAX_BODY = 64 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Parked:
    """A request that waits for its answer, or for the error that it gets."""

    request: ChatRequest
    answer: Future[Reply] = field(default_factory=Future)


Event: TypeAlias = Parked | Scored
"""What an agent does next: it sends a request, or ends with an outcome or a fault."""


class Mailbox:
    """The requests of one conversation, and its end, in the order in which they came."""

    def __init__(self) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._lock, self._over = threading.Lock(), False

    def put(self, event: Event) -> None:
        """Adds an event. Raises `ChatError` for a request after the end."""
        with self._lock:
            if not self._over:
                self._events.put(event)
            elif isinstance(event, Parked):
                raise ChatError("this conversation is over", status=HTTPStatus.GONE, code="conversation_over")

    def next(self, seconds: float) -> Event | None:
        """The next event; None where there is none in time."""
        try:
            return self._events.get(timeout=max(seconds, 0.0))
        except Empty:
            return None

    def close(self, why: ChatError) -> None:
        """Ends the conversation: requests that still wait get this error, later ones another."""
        with self._lock:
            self._over = True
            while not self._events.empty():
                event = self._events.get()
                if isinstance(event, Parked):
                    event.answer.set_exception(why)


class Endpoint:
    """The server, on a free port, from the first conversation on. `mailboxes` are those of open conversations, by the
    ids that their requests carry."""

    def __init__(self) -> None:
        self.mailboxes: dict[str, Mailbox] = {}
        handler = type("Handler", (_Handler,), {"mailboxes": self.mailboxes})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=_serve, args=(self._server,), daemon=True).start()
        weakref.finalize(self, self._server.shutdown).atexit = False

    @property
    def url(self) -> str:
        """The base that clients are given."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"


def _serve(server: ThreadingHTTPServer) -> None:
    with server:
        server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # agents begin at once


class _Handler(BaseHTTPRequestHandler):
    mailboxes: ClassVar[dict[str, Mailbox]]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answers a chat request, once its conversation does."""
        try:
            request = self._request()
            reply = request.answer.result()
        except ChatError as error:
            self._send(error.status, json.dumps(error.body).encode())
            return
        if request.request.streams:
            events = server_sent(reply.events(usage=request.request.wants_usage))
            self._send(HTTPStatus.OK, b"".join(events), "text/event-stream")
        else:
            self._send(HTTPStatus.OK, json.dumps(reply.body).encode())

    def do_GET(self) -> None:
        """There is nothing to get."""
        error = ChatError(f"there is no {self.path}", status=HTTPStatus.NOT_FOUND, code="not_found")
        self._send(error.status, json.dumps(error.body).encode())

    def _request(self) -> Parked:
        """The request, waiting in the mailbox of its conversation. Raises `ChatError`."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            raise ChatError(f"a body needs a Content-Length of at most {MAX_BODY}, got {length or 'none'}")
        body = self.rfile.read(int(length))
        if self.path.partition("?")[0] != COMPLETIONS:
            raise ChatError(f"there is no {self.path}", status=HTTPStatus.NOT_FOUND, code="not_found")
        session = self.headers.get(HEADER, "")
        if not session:
            raise ChatError(f"the header {HEADER} is missing, which names the conversation", code="no_session")
        mailbox = self.mailboxes.get(session)
        if mailbox is None:
            what = f"no conversation is open under {HEADER} {session!r}"
            raise ChatError(what, status=HTTPStatus.NOT_FOUND, code="unknown_session")
        parked = Parked(read_request(body))
        if parked.request.messages[-1].role not in ("user", "tool"):
            raise ChatError("the last message should be of the user or of a tool", param="messages")
        mailbox.put(parked)
        return parked

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "application/json") -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client went away
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""
