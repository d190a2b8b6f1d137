"""What clients are sent of an answer, chunk by chunk: text, thinking and calls as OpenAI's clients read them."""

from typing import Any

from live_parts import user
from selfdistill.live.answers import ChatAnswer
from selfdistill.live.batch import Generation, Piece
from selfdistill.models.sampler import SamplingOptions
from selfdistill.protocol.chat import ChatRequest
from selfdistill.protocol.sampling import read_sampling
from selfdistill.types import Message

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def streamed(text: str, *, tools: bool = True, opened: str = "") -> tuple[list[dict[str, Any]], str | None, Any]:
    """The deltas of an answer that comes letter by letter, its finish reason, and the message of the whole."""
    body = {"messages": [user("Hi.")], "tools": [TOOL] if tools else []}
    request = ChatRequest((Message("user", "Hi."),), (), tuple(body["tools"]), body)
    answer = ChatAnswer(0, "r", "m", read_sampling(body, chat=True), None, request, opened=opened)
    answer.generation = Generation((5, 6), SamplingOptions(100), 0, "0", lambda _: None)
    chunks = []
    for place, letter in enumerate(text):
        answer.add(Piece(letter, token=ord(letter), ended="end" if place == len(text) - 1 else ""))
        chunks += list(answer.chunks()) if place < len(text) - 1 else []
    reply = answer.reply()
    chunks += answer.last(reply, {})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return deltas, chunks[-1]["choices"][0]["finish_reason"], reply.message


def joined(deltas: list[dict[str, Any]], name: str) -> str:
    return "".join(delta.get(name, "") for delta in deltas)


def test_calls_come_with_index_and_type_and_never_as_text():
    deltas, finish, message = streamed(f"I add.\n{CALL}\n{CALL.replace('1', '2')}")
    assert (joined(deltas, "content"), finish) == ("I add.", "tool_calls")
    (calls,) = (delta["tool_calls"] for delta in deltas if "tool_calls" in delta)
    assert [(call["index"], call["type"], call["function"]["arguments"]) for call in calls] == [
        (0, "function", '{"a": 1}'),
        (1, "function", '{"a": 2}'),
    ]
    assert len({call["id"] for call in calls}) == 2
    assert [call["id"] for call in message["tool_calls"]] == [call["id"] for call in calls]


def test_what_only_looks_like_a_call_is_text():
    for text in ("Use a <tool", '{"name" is no call', "```python\nadd(1)\n```"):
        deltas, finish, message = streamed(text)
        assert (joined(deltas, "content"), finish) == (text, "stop")
        assert message["content"] == text
    assert joined(streamed(CALL, tools=False)[0], "content") == CALL


def test_thinking_comes_apart():
    for opened, text in (("", "<think>\nHm, 1.\n</think>\n\nIt is 1."), ("<think>\n", "Hm, 1.\n</think>\n\nIt is 1.")):
        deltas, _, message = streamed(text, opened=opened)
        assert (joined(deltas, "reasoning_content"), joined(deltas, "content")) == ("Hm, 1.", "It is 1.")
        assert (message["reasoning_content"], message["content"]) == ("Hm, 1.", "It is 1.")


def test_text_comes_as_it_is_sampled():
    deltas, _, message = streamed("One, two. ", tools=False)
    assert [delta.get("content") for delta in deltas][:4] == ["O", "n", "e", ","]
    assert joined(deltas, "content") == message["content"] == "One, two."
