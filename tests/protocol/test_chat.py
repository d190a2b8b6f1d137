"""Chat completions on the wire: what is read of a request, what clients read of an answer, and what is refused."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest

from selfdistill.protocol.chat import ChatError, read_request, reply_to, server_sent
from selfdistill.types import Completion, Message, StopReason

USER = {"role": "user", "content": "Hi."}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}


def request(messages: Any = (USER,), **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def test_messages_of_every_shape_are_read_as_text() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 2?"}]
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    found = read_request(request(chat, tools=[TOOL], stream=True, stream_options={"include_usage": True}))
    called = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    assert found.messages == (
        Message("system", "Be brief."),
        Message("user", "What is 1 + 2?"),
        Message("assistant", called),
        Message("tool", "3"),
    )
    assert found.keys[2] == ("assistant", "", (("add", '{"a": 1, "b": 2}'),))
    assert (found.model, found.tools, found.may_call, found.streams, found.wants_usage) == (
        "m",
        (TOOL,),
        True,
        True,
        True,
    )
    assert not read_request(request(tools=[TOOL], tool_choice="none")).may_call


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the body is no JSON"),
        (b"\xff", "the body is no JSON"),
        (b"[]", "should be a JSON object"),
        (request([]), "at least one message"),
        (request(n=2), "n should be 1"),
        (request(tools=[{}]), "a tool should be"),
        (request(stream_options=1), "stream_options should be an object"),
        (request(["Hi."]), "a message needs a role"),
        (request([{"role": "robot"}]), "one of system"),
        (request([{"role": "assistant", "tool_calls": [1]}]), "a call should be"),
        (request([{"role": "assistant", "tool_calls": 1}]), "a call should be"),
        (request([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "got image_url"),
        (request([{"role": "user", "content": 3}]), "got int"),
    ],
)
def test_what_cannot_be_answered_is_refused_as_openai_does(body: bytes, says: str) -> None:
    with pytest.raises(ChatError, match=says) as raised:
        read_request(body)
    error = raised.value
    assert error.status == HTTPStatus.BAD_REQUEST
    assert error.body["error"]["type"] == "invalid_request_error"
    assert says in error.body["error"]["message"]


def test_an_answer_comes_back_whole_or_as_a_stream() -> None:
    asked = read_request(request(tools=[TOOL]))
    done = Completion("1-0", "<think>\nOne and two.\n</think>\n\nI add. <tool_call>…", (5, 6, 7))
    reply = reply_to(asked, done, [("add", {"b": 2, "a": 1})], "I add.", prompt_tokens=4)
    (choice,) = reply.body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("I add.", "One and two.")
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"b": 2, "a": 1}'}
    assert reply.body["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    *events, end = [line.decode() for line in server_sent(reply.events(usage=True))]
    assert end == "data: [DONE]\n\n"
    whole, last, counts = (json.loads(event.removeprefix("data: ")) for event in events)
    assert whole["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert (counts["choices"], counts["usage"]) == ([], reply.usage)
    echoed = read_request(request([USER, message, {"role": "tool", "content": "3"}]))
    assert echoed.keys[1] == reply.key


def test_a_plain_answer_keeps_its_text_and_says_why_it_ended() -> None:
    reply = reply_to(read_request(request()), Completion("1-0", " Three. ", (5,), stop=StopReason.LENGTH))
    assert reply.message == {"role": "assistant", "content": "Three."}
    assert reply.finish == "length"
    lone = reply_to(read_request(request()), Completion("1-1", "<think>\nSo"))
    assert (lone.message["content"], lone.reasoning) == ("", "So")
