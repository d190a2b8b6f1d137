"""OpenAI's chat completions on the wire: requests as messages, answers and errors as the JSON that clients read.

request = read_request(body)                         raises `ChatError` for what cannot be answered
reply = reply_to(request, completion, calls, text)   calls that were read in the completion, and the text before them
reply.body                                           one JSON object, or `reply.events()` as server-sent events
error.status, error.body                             of a `ChatError`
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

from selfdistill.files import BadJson, decode_json
from selfdistill.prompts.context import without_thinking
from selfdistill.prompts.render import CLOSE, OPEN
from selfdistill.types import Completion, Message, Role, StopReason

COMPLETIONS = "/v1/chat/completions"
ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip

Finish: TypeAlias = Literal["stop", "length", "tool_calls"]
Key: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]
"""What a message says, whatever its JSON looks like: its role, its text, and the name and arguments of each call."""


class ChatError(Exception):
    """A request that gets an error: its HTTP status, and the object that OpenAI's clients read."""

    def __init__(
        self, message: str, *, status: HTTPStatus = HTTPStatus.BAD_REQUEST, param: str | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code or None}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request as the model reads it. `keys` compare its messages with others; `body` is all that was sent."""

    messages: tuple[Message, ...]
    keys: tuple[Key, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(self.body.get("model") or "")

    @property
    def may_call(self) -> bool:
        """Whether the answer may hold calls of tools."""
        return bool(self.tools) and self.body.get("tool_choice") != "none"

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises `ChatError`."""
    try:
        found = decode_json(body.decode())
    except (UnicodeDecodeError, BadJson) as error:
        raise ChatError(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ChatError("the body should be a JSON object")
    return found


def read_field(body: bytes, name: str, *kinds: type, default: Any = ...) -> Any:
    """The one field of a request, of one of these types; `default` where it is left out, if there is one. Raises
    `ChatError`."""
    found = read_object(body or b"{}")
    value = found.get(name, default)
    if {*found} - {name} or type(value) not in kinds:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ChatError(f"the body should be {{{name!r}: {names}}}", param=name)
    return value


def read_request(body: bytes, *, answers: int = 1) -> ChatRequest:
    """A request in text for at most this many `answers`. Raises `ChatError`."""
    found = read_object(body)
    messages, tools = found.get("messages"), found.get("tools") or []
    if not isinstance(messages, list) or not messages:
        raise ChatError("messages should be a list of at least one message", param="messages")
    if not isinstance(n := found.get("n", 1) or 1, int) or not 1 <= n <= answers:
        what = "one answer a request: n should be 1" if answers == 1 else f"n should be from 1 to {answers}"
        raise ChatError(what, param="n")
    check_stream_options(found)
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise ChatError('a tool should be {"type": "function", "function": {"name": …}}', param="tools")
    keys = tuple(_key(message, place) for place, message in enumerate(messages))
    return ChatRequest(tuple(map(_message, keys)), keys, tuple(tools), found)


def check_stream_options(body: Mapping[str, Any]) -> None:
    """Raises `ChatError` for options of a stream that `ChatRequest.wants_usage` cannot read."""
    if not isinstance(body.get("stream_options") or {}, dict):
        raise ChatError("stream_options should be an object", param="stream_options")


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _key(message: Any, place: int) -> Key:
    param = f"messages[{place}]"
    role = ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        raise ChatError(f"a message needs a role, one of {', '.join(ROLES)}", param=param)
    text, calls = _text(message.get("content"), param), message.get("tool_calls") or []
    if role != "assistant":
        return role, text, ()
    calls = calls if isinstance(calls, list) else [calls]
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    named = [each for each in functions if isinstance(each, dict) and isinstance(each.get("name"), str)]
    if len(named) < len(calls):
        raise ChatError('a call should be {"function": {"name": …, "arguments": "…"}}', param=f"{param}.tool_calls")
    return role, text.strip(), tuple((each["name"], _canonical(each.get("arguments"))) for each in named)


def _text(content: Any, param: str) -> str:
    texts = []
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ChatError(f"only text can be read, got {kind}", param=f"{param}.content", code="unsupported_content")
        texts.append(text)
    return "".join(texts)


def _canonical(arguments: Any) -> str:
    """Arguments as JSON with its names in order; text that is none as it is."""
    try:
        value = decode_json(arguments) if isinstance(arguments, str) else arguments or {}
    except BadJson:
        return str(arguments)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _message(key: Key) -> Message:
    """A message as templates without a place for calls write it: the calls stand in its text."""
    role, text, calls = key
    return Message(ROLES[role], written(text, calls))


def written(text: str, calls: Iterable[tuple[str, str]]) -> str:
    """A turn with calls, names and arguments as JSON, in text alone."""
    each = [f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {args}}}\n</tool_call>' for name, args in calls]
    return "\n".join(filter(None, (text, *each)))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on the wire. `calls` are names and arguments as JSON; `reasoning` is its thinking."""

    id: str
    model: str
    content: str
    finish: Finish
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    logprobs: Mapping[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What a client that sends the answer back should send."""
        return "assistant", self.content.strip(), tuple((name, _canonical(given)) for name, given in self.calls)

    @property
    def usage(self) -> dict[str, int]:
        read, sampled = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled}

    @property
    def message(self) -> dict[str, Any]:
        calls = [
            {"id": f"call-{self.id}-{place}", "type": "function", "function": {"name": name, "arguments": given}}
            for place, (name, given) in enumerate(self.calls)
        ]
        return {
            "role": "assistant",
            "content": self.content or (None if calls else ""),
            **({"reasoning_content": self.reasoning} if self.reasoning else {}),
            **({"tool_calls": calls} if calls else {}),
        }

    @property
    def body(self) -> dict[str, Any]:
        """The answer as one object."""
        return {**self.head("chat.completion"), "choices": [self.choice(0)], "usage": self.usage}

    def choice(self, index: int) -> dict[str, Any]:
        """The answer as one of several."""
        return {
            "index": index,
            "message": self.message,
            "finish_reason": self.finish,
            "logprobs": self.logprobs,
        }

    def events(self, *, usage: bool = False) -> Iterator[dict[str, Any]]:
        """The answer as chunks of a stream: one with all of it, one with its end, with `usage` one with the counts."""
        message = self.message
        for place, call in enumerate(message.get("tool_calls", ())):
            call["index"] = place
        for delta, finish in ((message, None), ({}, self.finish)):
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            yield {**self.head("chat.completion.chunk"), "choices": [choice]}
        if usage:
            yield {**self.head("chat.completion.chunk"), "choices": [], "usage": self.usage}

    def head(self, kind: str) -> dict[str, Any]:
        """What every object about this answer begins with."""
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": self.model}


def reply_to(
    request: ChatRequest,
    completion: Completion,
    calls: Sequence[tuple[str, Mapping[str, Any]]] = (),
    before: str = "",
    *,
    prompt_tokens: int = 0,
) -> Reply:
    """A completion as the answer to a request: thinking apart, and the names and arguments of its calls, if any, beside
    the text `before` them. `prompt_tokens` is how many the model read."""
    text = completion.text
    shown, thought = without_thinking(text).strip(), ""
    if shown != text.strip() and text.rstrip().endswith(shown):
        thought = text.rstrip().removesuffix(shown).strip().removeprefix(OPEN).removesuffix(CLOSE).strip()
    finish: Finish = "length" if completion.stop is StopReason.LENGTH else "tool_calls" if calls else "stop"
    return Reply(
        completion.uid,
        request.model,
        before if calls else shown,
        finish,
        thought,
        tuple((name, json.dumps(given, ensure_ascii=False)) for name, given in calls),
        prompt_tokens,
        len(completion.token_ids),
    )


def data_event(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n".encode()


def server_sent(events: Iterator[Mapping[str, Any]]) -> Iterator[bytes]:
    """Chunks as the bytes of server-sent events, with the last one that clients wait for."""
    for event in events:
        yield data_event(event)
    yield b"data: [DONE]\n\n"
