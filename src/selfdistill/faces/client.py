"""A small client of the endpoint: answers while they are sampled, feedback, updates and versions.

client = Client("http://127.0.0.1:8321/v1")
answer = Answer()
for text in client.stream(answer, messages, session="s-1"): …     `answer` has its calls and its receipt at the end
client.feedback(answer.receipt, text="Shorter.")
client.wait(client.learn())                                       an update, once it was admitted or rejected
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from selfdistill.errors import ConfigError, EndpointError

MessageBody = dict[str, Any]  # a message as JSON
DEFAULT_URL = "http://127.0.0.1:8321/v1"
TIMEOUT_S = 600.0  # without a sign of life; streams have one every 10 s
IN_PROGRESS = ("queued", "training")  # states of an update that will change by themselves
NO_ROUTE, NOT_LEARNING = (404, 405), "not_learning"  # status, and code, of a server that cannot


@dataclass(slots=True)
class Answer:
    """An answer so far: its text, its calls as OpenAI writes them, why it ended, and its receipt, empty until it is
    recorded."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str = ""
    receipt: str = ""

    @property
    def message(self) -> MessageBody:
        """The answer as a message of a later request."""
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {"role": "assistant", "content": self.text, **calls}

    def add(self, chunk: Mapping[str, Any]) -> str:
        """Takes a chunk of its stream and returns the text that is new."""
        self.receipt = (chunk.get("selfdistill") or {}).get("receipt", self.receipt)
        choice = (chunk.get("choices") or [{}])[0]
        self.finish = choice.get("finish_reason") or self.finish
        delta = choice.get("delta") or {}
        for part in delta.get("tool_calls") or ():
            while len(self.calls) <= part.get("index", 0):
                number = len(self.calls)
                self.calls.append(
                    {"id": f"call-{number}", "type": "function", "function": {"name": "", "arguments": ""}}
                )
            call, given = self.calls[part.get("index", 0)], part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            for name in ("name", "arguments"):
                call["function"][name] += given.get(name) or ""
        text = str(delta.get("content") or "")
        self.text += text
        return text


class Client:
    """A client of one server. `token` is its API key, if it has one. Every method raises `EndpointError`."""

    def __init__(self, url: str = DEFAULT_URL, token: str = "") -> None:
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            self._host, self._port = parts.hostname or "", parts.port
            if not self._host or parts.scheme not in ("http", "https"):
                raise ValueError
        except ValueError:
            do = f"give for example {DEFAULT_URL}"
            raise ConfigError("the address of a server should be a URL", got=url, do=do) from None
        self.url, self._path = url, parts.path.rstrip("/") or "/v1"
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}

    def stream(
        self, answer: Answer, messages: Sequence[MessageBody], *, session: str, **settings: Any
    ) -> Generator[str, None, None]:
        """The texts of an answer as they come. Closing the iterator stops the answer."""
        body = {"model": "selfdistill", "messages": list(messages), "stream": True, **settings}
        headers = {"x-session-id": session, "x-turn-type": "main"}
        with self._send("POST", "/chat/completions", body, headers) as response:
            try:
                for line in response:
                    if not line.startswith(b"data:"):
                        continue
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        break
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise EndpointError("the answer failed", got=chunk["error"].get("message"))
                    if text := answer.add(chunk):
                        yield text
            except EndpointError:
                raise
            except (OSError, HTTPException, ValueError) as error:
                raise EndpointError("the answer was cut off", got=f"{type(error).__name__}: {error}") from error
        if not answer.finish:
            raise EndpointError("the answer was cut off", why="an answer without an end was not recorded")

    def model(self) -> str:
        """The name of the model that answers."""
        models = self._call("GET", "/models", "list its models").get("data") or [{}]
        return str(models[0].get("id", "?"))

    def status(self) -> dict[str, Any]:
        """The server in numbers."""
        return self._call("GET", "/selfdistill/status", "say how it is")

    def versions(self) -> list[dict[str, Any]]:
        """The versions of the weights."""
        return list(self._call("GET", "/selfdistill/versions", "have versions")["data"])

    def updates(self) -> list[dict[str, Any]]:
        """The updates, with what was decided and why."""
        return list(self._call("GET", "/selfdistill/updates", "learn")["updates"])

    def feedback(self, receipt: str, **content: Any) -> dict[str, Any]:
        """Records feedback on an answer: `text`, `rating` or `solution`."""
        return self._call("POST", "/feedback", "take feedback", {"receipt": receipt, **content})

    def learn(self) -> int | str:
        """Begins an update from what came back so far; returns its id."""
        return self._call("POST", "/selfdistill/learn", "learn", {})["update"]  # type: ignore[no-any-return]

    def wait(self, update: int | str, *, every_s: float = 1.0) -> dict[str, Any]:
        """An update once it was decided."""
        while True:
            found = next((each for each in self.updates() if each["id"] == update), None)
            if found is None:
                raise EndpointError("the server does not know the update", got=update)
            if found["state"] not in IN_PROGRESS:
                return found
            time.sleep(every_s)

    def decide(self, update: int, *, approve: bool) -> dict[str, Any]:
        """Approves an update that waits for a person, or rejects it."""
        path = "/selfdistill/approve" if approve else "/selfdistill/reject"
        return self._call("POST", path, "let a person decide", {"update": update})

    def why(self, receipt: str) -> dict[str, Any]:
        """The log-ratio of every token of an answer, between reading what came back for it and not."""
        return self._call("POST", "/selfdistill/why", "show the credit of tokens", {"receipt": receipt})

    def undo(self, versions: int = 1) -> dict[str, Any]:
        """Drops the newest versions."""
        return self._call("POST", "/selfdistill/undo", "undo versions", {"versions": versions})

    def pause(self, paused: bool) -> dict[str, Any]:
        """Stops or resumes learning."""
        return self._call("POST", "/selfdistill/pause", "pause its learning", {"paused": paused})

    def _call(self, method: str, path: str, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._send(method, path, body, what=what) as response:
            try:
                found = json.loads(response.read())
            except (OSError, HTTPException, ValueError) as error:
                raise EndpointError("the server's reply cannot be read", got=f"{method} {path}: {error}") from error
        if not isinstance(found, dict):
            raise EndpointError("the server's reply cannot be read", got=f"{method} {path}: {found!r:.200}")
        return found

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] = {},
        *,
        what: str = "answer chats",
    ) -> HTTPResponse:
        connection = self._kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, data, {**self._headers, **headers, "connection": "close"})
            response = connection.getresponse()
            if response.status < 400:
                return response
            data = response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            do = "start one with `selfdistill serve`, give its address with --url, or --model NAME for one of its own"
            raise EndpointError("no server answers", got=f"{self.url}: {error}", do=do) from error
        try:
            found = json.loads(data)["error"]
            message, code = str(found["message"]), str(found.get("code") or "")
        except (ValueError, LookupError, TypeError, AttributeError):
            message, code = data.decode(errors="replace")[:200].strip(), ""
        if response.status in NO_ROUTE and code in ("", "not_found"):
            raise EndpointError(f"this server does not {what}", got=message, status=response.status, code=code)
        advice = {401: "give its token with --token or in SELFDISTILL_TOKEN", 429: "try again in a moment"}
        raise EndpointError(message, status=response.status, code=code, do=advice.get(response.status, ""))
