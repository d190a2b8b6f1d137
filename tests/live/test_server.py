"""The endpoint as clients use it: over HTTP on the loopback interface, with the embedded model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core_parts import soon
from live_parts import assistant, user
from selfdistill.errors import ConfigError
from selfdistill.live.engine import Engine
from selfdistill.live.exchange import Exchange
from selfdistill.live.journal import Journal
from selfdistill.live.server import CONVERSATION, MOST_BODY, RECEIPT, Server, check_exposed, run
from selfdistill.live.service import Service
from selfdistill.models.load import load_policy

pytest.importorskip("starlette", reason="needs the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx2")

QUESTION = user("Write f(xs) that sorts the list.")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    policy = load_policy("sapling", device="cpu", trained=False)
    with Journal.serve(tmp_path_factory.mktemp("live") / "journal.db") as journal:
        version = journal.versions.publish("sapling")
        engine = Engine(policy)
        yield Service(policy, engine, journal, version, name="sapling", most=12, max_tokens=64)
        engine.close()
        engine.join()


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Serves in a thread, on a free port."""
    config = uvicorn.Config(server.app(), port=0, log_level="error", lifespan="off")
    bound, served = config.bind_socket(), uvicorn.Server(config)
    bound.listen()
    thread = threading.Thread(target=served.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    served.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running(Server(service)) as address:
        yield address


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[Any]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def chat(http: Any, *messages: Any, headers: dict[str, str] | None = None, **body: Any) -> Any:
    given = {"model": "sapling", "messages": messages or [QUESTION], "temperature": 0, "max_tokens": 24, **body}
    return http.post("/chat/completions", json=given, headers=headers)


def events(response: Any) -> list[dict[str, Any]]:
    """The events of a stream, which ends as it should."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_is_recorded_with_its_tokens(http: Any, service: Service):
    answer = chat(http, max_completion_tokens=6, logprobs=True, top_logprobs=2, seed=3)
    body, (choice,) = answer.json(), answer.json()["choices"]
    exchange = service.journal.exchange(answer.headers[RECEIPT])
    assert body["id"] == f"chatcmpl-{exchange.receipt}"
    assert body["selfdistill"]["receipt"] == exchange.receipt
    assert (exchange.reply["content"], exchange.text) == (choice["message"]["content"],) * 2
    assert exchange.conversation == answer.headers[CONVERSATION]
    assert body["usage"]["completion_tokens"] == len(exchange.sampled_ids) <= 6
    assert body["usage"]["prompt_tokens"] == len(exchange.prompt_ids)
    listed = choice["logprobs"]["content"]
    assert [each["logprob"] for each in listed] == pytest.approx(list(exchange.logprobs))
    assert all(each["top_logprobs"][0]["token"] == each["token"] for each in listed)
    assert exchange.sampling["seed"] == 3
    assert choice["finish_reason"] in ("stop", "length")


def test_a_stream_says_what_the_whole_answer_says(http: Any, service: Service):
    whole = chat(http).json()["choices"][0]
    response = chat(http, stream=True, stream_options={"include_usage": True}, logprobs=True)
    chunks = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert len(deltas) > 3
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-2:] == [None, whole["finish_reason"]]
    assert chunks[-2]["selfdistill"]["receipt"] == response.headers[RECEIPT]
    assert chunks[-1]["choices"] == []
    logprobs = [c["choices"][0]["logprobs"]["content"] for c in chunks if c["choices"] and c["choices"][0]["logprobs"]]
    assert sum(map(len, logprobs)) == chunks[-1]["usage"]["completion_tokens"]
    assert service.journal.exchange(response.headers[RECEIPT]).reply["content"] == whole["message"]["content"]


def test_several_answers_and_seeds(http: Any):
    one, two = (chat(http, n=3, temperature=1, seed=5).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in one["choices"]]
    assert texts == [choice["message"]["content"] for choice in two["choices"]]
    assert len(set(texts)) > 1
    assert len(set(one["selfdistill"]["receipts"])) == 3
    assert texts[0] == chat(http, temperature=1, seed=5).json()["choices"][0]["message"]["content"]
    stopped = chat(http, stop=["def"]).json()["choices"][0]
    assert "def" not in stopped["message"]["content"]
    assert stopped["finish_reason"] == "stop"


def test_plain_completions_of_token_ids(http: Any, service: Service):
    given = {"prompt": [[5, 6, 7], [5, 6]], "max_tokens": 4, "temperature": 0, "logprobs": 1, "return_token_ids": True}
    body = http.post("/completions", json=given).json()
    first, second = body["choices"]
    exchange = service.journal.exchange(body["selfdistill"]["receipts"][0])
    assert (first["prompt_token_ids"], second["prompt_token_ids"]) == ([5, 6, 7], [5, 6])
    assert first["token_ids"] == list(exchange.sampled_ids)
    assert first["logprobs"]["token_logprobs"] == pytest.approx(list(exchange.logprobs))
    assert exchange.kind == "side"
    streamed = http.post("/completions", json={**given, "prompt": [5, 6, 7], "stream": True})
    chunks = [chunk["choices"][0] for chunk in events(streamed)]
    assert "".join(chunk["text"] for chunk in chunks) == first["text"]
    assert [token for chunk in chunks for token in chunk["token_ids"]] == first["token_ids"]


def test_a_client_without_a_session_id_is_followed(http: Any, service: Service):
    """Also where it strips our answer and puts answers of its own between."""
    first = chat(http)
    said = first.json()["choices"][0]["message"]["content"]
    second = chat(http, QUESTION, assistant(f"\n {said}  "), assistant("Ok."), user("Shorter, please."))
    assert second.headers[CONVERSATION] == first.headers[CONVERSATION]
    follow_up = service.journal.exchange(second.headers[RECEIPT]).follow_up
    assert follow_up is not None
    assert (follow_up.receipt, follow_up.messages[0].content) == (first.headers[RECEIPT], "Shorter, please.")
    invented = chat(http, QUESTION, assistant("I never said that."), user("No."))
    assert service.journal.exchange(invented.headers[RECEIPT]).follow_up is None
    title = chat(
        http, {"role": "system", "content": "You are a title generator."}, QUESTION, headers={"x-session-id": "s"}
    )
    exchange = service.journal.exchange(title.headers[RECEIPT])
    assert (exchange.kind, exchange.conversation) == ("side", "s")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "only text"),
        ({"messages": [{"role": "robot", "content": ""}]}, 400, "a message needs a role"),
        ({"messages": [user("word " * 2000)]}, 400, "maximum context length is 1024"),
        ({"messages": [user("Hi."), assistant("Hm.")]}, 400, "last message"),
        ({"messages": [user("a" * MOST_BODY)]}, 413, "a body has at most"),
        ({"n": 17}, 400, "n should be"),
        ({"temperature": 3}, 400, "temperature should be a number from 0 to 2"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"seed": "x"}, 400, "seed"),
        ({"stop": [""]}, 400, "stop"),
        ({"top_logprobs": 2}, 400, "logprobs"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"tools": [TOOL], "tool_choice": "required"}, 400, "tool_choice"),
    ],
)
def test_what_is_refused(http: Any, service: Service, body: dict[str, Any], status: int, says: str):
    before = service.journal.counts()["exchanges"]
    answer = http.post("/chat/completions", json={"messages": [QUESTION], **body})
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert service.journal.counts()["exchanges"] == before


def test_what_is_not_served_has_openais_shape(http: Any, url: str):
    for method, path in (("POST", "/responses"), ("GET", "/chat/completions"), ("GET", "/models/other")):
        answer = http.request(method, path)
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert http.get("/models").json()["data"][0]["id"] == "sapling"
    assert httpx.get(url.replace("/v1", "/healthz")).json()["status"] == "ok"


def test_feedback_counts_once(http: Any):
    receipt = chat(http).headers[RECEIPT]
    given = {"receipt": receipt, "rating": 0.5}
    assert [http.post("/feedback", json=given).json()["new"] for _ in range(2)] == [1, 0]
    assert http.post("/feedback", json={"receipt": "none", "text": "x"}).status_code == 404
    wrong = http.post("/feedback", json={"receipt": receipt, "txt": "x"})
    assert (wrong.status_code, "did you mean 'text'" in wrong.json()["error"]["message"]) == (400, True)


def test_of_a_thousand_at_once_those_beyond_the_limit_are_refused(service: Service):
    transport = httpx.ASGITransport(Server(service).app())

    async def asked() -> list[Any]:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=60) as client:
            body = {"messages": [QUESTION], "max_tokens": 2}
            return await asyncio.gather(*(client.post("/chat/completions", json=body) for _ in range(1000)))

    before = service.journal.counts()["exchanges"]
    answers = asyncio.run(asked())
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 1000 - 100
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    given = [answer.headers[RECEIPT] for answer in answers if answer.status_code == 200]
    assert len(given) == 1000 - len(refused) == service.journal.counts()["exchanges"] - before >= service.most
    assert all(service.journal.exchange(receipt).status == "complete" for receipt in given)


def test_a_stream_shows_signs_of_life_while_a_long_prompt_is_read(http: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfdistill.live.server.KEEP_ALIVE_S", 0.002)
    response = chat(http, user("word " * 220), stream=True, max_tokens=3)
    text, first = response.text, events(response)[0]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert text.index(": keep-alive") < text.index('"finish_reason": "')


def test_ctrl_c_lets_answers_in_progress_end(service: Service, tmp_path: Path):
    lines: list[str] = []

    def ask_and_stop(url: str) -> None:
        body = {"messages": [QUESTION], "stream": True, "max_tokens": 60, "temperature": 2, "seed": 3}
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) == 3:
                    os.kill(os.getpid(), signal.SIGINT)

    with Journal.serve(tmp_path / "journal.db") as journal:
        version, engine = journal.versions.publish("sapling"), Engine(service.policy)
        server = Server(Service(service.policy, engine, journal, version, name="sapling"))
        threads: list[threading.Thread] = []

        def ready(url: str) -> None:
            threads.append(threading.Thread(target=ask_and_stop, args=(url,)))
            threads[0].start()

        run(server, "127.0.0.1", 0, ready)  # returns: `selfdistill serve` then ends with 0
        threads[0].join(10)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert [each.status for each in journal.exchanges()] == ["complete"]


def test_a_client_that_goes_stops_its_answer(http: Any, service: Service):
    with http.stream("POST", "/chat/completions", json={"messages": [QUESTION], "temperature": 2, "stream": True}) as r:
        receipt = r.headers[RECEIPT]
        next(r.iter_raw())
    soon(lambda: service.engine.load == (0, 0))

    def recorded() -> list[Exchange]:
        return [each for each in service.journal.exchanges() if each.receipt == receipt]

    soon(recorded, 2)  # one that had not begun never is
    found = recorded()
    assert not found or found[0].status in ("cancelled", "complete")


def test_nothing_is_answered_that_is_not_recorded(http: Any, service: Service, monkeypatch: pytest.MonkeyPatch):
    database = service.journal.database
    pages = database.rows("PRAGMA page_count")[0][0]
    before = service.journal.counts()["exchanges"]
    database.rows(f"PRAGMA max_page_count = {pages}")
    try:
        answers = [chat(http, user(f"{'x ' * 300}{i}"), max_tokens=2) for i in range(4)]
        assert answers[-1].status_code == 503
        assert "the disk of the journal is full" in answers[-1].json()["error"]["message"]
        stream = chat(http, user("x " * 400), stream=True).text
        assert "[DONE]" not in stream
        assert '"code": "disk_full"' in stream
        assert 'finish_reason": "' not in stream
        assert service.journal.counts()["exchanges"] == before + sum(a.status_code == 200 for a in answers)
    finally:
        database.rows("PRAGMA max_page_count = 1000000")
    assert chat(http).status_code == 200
    monkeypatch.setattr("selfdistill.live.service.LEAST_DISK", 2**62)
    assert chat(http).status_code == 503


def test_without_a_token_only_this_machine_is_answered(http: Any):
    for headers in ({"origin": "https://example.org"}, {"host": "example.org"}):
        assert chat(http, headers=headers).status_code == 403
    check_exposed("127.0.0.1", "")
    check_exposed("0.0.0.0", "secret")
    with pytest.raises(ConfigError, match="a token is required"):
        check_exposed("0.0.0.0", "")


def test_a_token_is_required_where_one_is_set(service: Service):
    with (
        running(Server(service, token="secret")) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        assert client.get("/models").status_code == 401
        assert client.get("/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_the_openai_package(url: str):
    openai = pytest.importorskip("openai", reason="needs the package openai")
    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
    asked = {"model": "sapling", "messages": [QUESTION], "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    usage = {"include_usage": True}
    text, usages = "", []
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options=usage, tools=[TOOL]):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usages.append(chunk.usage)
    assert usages[-1].completion_tokens > 0
    assert client.models.list().data[0].id == "sapling"
    assert client.completions.create(model="m", prompt=[5, 6], max_tokens=2).usage.completion_tokens <= 2
    assert whole.choices[0].message.content
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="m", input="Hi.")


def test_the_journal_is_plain_sqlite(service: Service, http: Any):
    receipt = chat(http).headers[RECEIPT]
    with sqlite3.connect(Path(service.journal.database.path)) as plain:
        assert plain.execute("SELECT count(*) FROM exchanges WHERE receipt = ?", (receipt,)).fetchone() == (1,)
