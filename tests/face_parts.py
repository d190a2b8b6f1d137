"""An endpoint with scripted answers, in the shapes of the real one, and a terminal that a test types into."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from selfdistill.protocol.chat import read_request, reply_to, server_sent
from selfdistill.types import Completion

Call = tuple[str, Mapping[str, Any]]


class Scripted(ThreadingHTTPServer):
    """Answers chats with `answers`, texts or calls, and other paths with `routes`; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[str | Call | list[Call]] = []
        self.routes: dict[str, Any] = {"/v1/models": {"data": [{"id": "scripted"}]}}
        self.got: list[tuple[str, Any]] = []
        self.pause_s = 0.0  # between two chunks
        self.cut_after = 10**6  # chunks, at which a stream breaks off

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def bodies(self, path: str) -> list[Any]:
        """What was posted to a path, in order."""
        return [body for where, body in self.got if where == f"/v1{path}"]

    def learns(self, *decided: Mapping[str, Any]) -> None:
        """Each update is decided as the next of these."""
        left, updates = list(decided), list[dict[str, Any]]()

        def learn() -> dict[str, Any]:
            number = len(updates) + 1
            updates.append({"id": number, "reason": "", "version": None, "lessons": 1, "numbers": {}, **left.pop(0)})
            return {"update": number, "state": "queued"}

        self.routes["/v1/selfdistill/learn"] = learn
        self.routes["/v1/selfdistill/updates"] = lambda: {"updates": updates}
        self.routes["/v1/feedback"] = {"new": 1, "total": 1}


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, json.loads(body)))
        if self.path == "/v1/chat/completions":
            self._answer(body)
        else:
            self.do_GET()

    def do_GET(self) -> None:
        found = self.server.routes.get(self.path)
        found = found() if callable(found) else found
        status, found = found if isinstance(found, tuple) else (200, found)
        if found is None:
            status, found = 404, {"error": {"message": f"{self.path} is not served", "code": "not_found"}}
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, body: bytes) -> None:
        script, receipt = self.server.answers.pop(0), f"r-{len(self.server.bodies('/chat/completions'))}"
        calls = [] if isinstance(script, str) else script if isinstance(script, list) else [script]
        text = script if isinstance(script, str) else ""
        whole = list(reply_to(read_request(body), Completion(receipt, text), calls).events())
        pieces = [{"choices": [{"delta": {"content": text[n : n + 5]}}]} for n in range(0, len(text), 5)]
        chunks = [*pieces, *([] if text else whole[:1]), {**whole[-1], "selfdistill": {"receipt": receipt}}]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number, event in enumerate(server_sent(iter(chunks))):
            if number == self.server.cut_after:
                return
            time.sleep(self.server.pause_s)
            try:
                self.wfile.write(event)
                self.wfile.flush()
            except OSError:  # the client went
                self.server.got.append(("gone", receipt))
                return

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def scripted(*answers: str | Call | list[Call]) -> Iterator[Scripted]:
    """A scripted server on a free port."""
    with Scripted() as server:
        server.answers = list(answers)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


class Session:
    """A command in a terminal of its own. `until` waits for a text, which what is typed next comes after."""

    def __init__(self, *words: object, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **(env or {})}
        command = [sys.executable, "-m", "selfdistill", *map(str, words)]
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment, start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.seen, self._from, self._bytes = "", 0, b""

    def until(self, text: str, limit_s: float = 60.0) -> str:
        """Reads until a text that was not waited for before; returns what came before it."""
        deadline = time.monotonic() + limit_s
        while (place := self.seen.find(text, self._from)) < 0:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in:\n{self.seen[self._from :]}"
            try:
                part = os.read(self._master, 1 << 16)
            except OSError:
                part = b""
            assert part, f"it ended without {text!r}:\n{self.seen}"
            self._add(part)
        before, self._from = self.seen[self._from : place], place + len(text)
        return before

    def _add(self, part: bytes) -> None:
        self._bytes += part
        self.seen = self._bytes.decode(errors="ignore").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Types a text; "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Types Ctrl-C, once the prompt waits for a key."""
        time.sleep(0.2)
        self.type("\x03")

    def say(self, prompt: str, *lines: str) -> str:
        """Waits for a prompt and types lines."""
        before = self.until(prompt)
        self.type("".join(f"{line}\n" for line in lines))
        return before

    def end(self, limit_s: float = 30.0) -> int:
        """The exit code, once it has ended."""
        deadline = time.monotonic() + limit_s
        while self.child.poll() is None and time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self._add(os.read(self._master, 1 << 16))
                except OSError:
                    break
        code = self.child.wait(limit_s)
        os.close(self._master)
        return code


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def messages(server: Scripted, turn: int) -> Sequence[Mapping[str, Any]]:
    """The messages of a request."""
    found = server.bodies("/chat/completions")[turn]["messages"]
    assert isinstance(found, list)
    return found
