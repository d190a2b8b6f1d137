"""A server that learns: triggers, what a client reads of updates, approval, and what is refused."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import ConfigError, ModelError, OutOfMemoryError
from selfdistill.live import update as update_module
from selfdistill.live import weights as weights_module
from selfdistill.live.conversations import locate
from selfdistill.live.engine import Engine
from selfdistill.live.exchange import Feedback
from selfdistill.live.journal import Journal
from selfdistill.live.learning import LiveLearning, read_learning
from selfdistill.live.schedule import Schedule
from selfdistill.live.server import Server
from selfdistill.live.service import Service
from selfdistill.live.update import check_learning_fits, finish, perform
from selfdistill.live.updates import Updates
from selfdistill.live.weights import Weights
from selfdistill.training.stopping import PARENT, watch_parent
from tests.core_parts import soon
from tests.live.test_learner import OPTIONS, journal_of
from tests.live_parts import answered, request, user
from tests.toy_user import COMPLAINT, QUESTIONS, toy_user_dir

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")


class Learning:
    """A server of the toy model without a network."""

    def __init__(self, journal: Journal, options: LiveLearning) -> None:
        self.journal, self.lines = journal, list[str]()
        weights = Weights(journal, device="cpu")
        version, policy = weights.start(str(toy_user_dir()))
        self.engine = Engine(policy)
        self.service = Service(policy, self.engine, journal, version, name="toy", max_tokens=6, weights=weights)
        self.schedule = Schedule(self.service, options, device="cpu", say=self.lines.append)
        self.service.learning = self.schedule
        self.app = Server(self.service, schedule=self.schedule).app()

    def call(self, method: str, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        import asyncio

        async def asked() -> tuple[int, dict[str, Any]]:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                found = await client.request(method, f"/v1/{path}", content=json.dumps(body))
                return found.status_code, found.json()

        return asyncio.run(asked())

    def ended(self, number: int, *states: str, seconds: float = 60) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            _, body = self.call("GET", "selfdistill/updates")
            found = {each["id"]: each for each in body["updates"]}
            if number in found and found[number]["state"] in states:
                return found[number]
            time.sleep(0.1)
        raise AssertionError(f"update {number}: {found}")

    def close(self) -> None:
        self.schedule.close()
        self.engine.close()
        self.engine.join()


def answer_of(learning: Learning, version: int) -> str:
    """The receipt of an answer of this version."""
    asked = request(user(QUESTIONS[0]))
    exchange = answered(learning.journal, locate(learning.journal, asked, {}), asked, "no")
    assert exchange.version == version
    return exchange.receipt


@pytest.fixture
def learning(tmp_path: Path) -> Iterator[Learning]:
    with journal_of(tmp_path / "journal.db") as journal:
        found = Learning(journal, replace(OPTIONS, trigger="review", idle_s=0.0))
        yield found
        found.close()


def test_an_update_waits_for_approval_is_served_and_undone(learning: Learning) -> None:
    chat = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0}
    _, before = learning.call("POST", "chat/completions", **chat)
    record = perform(learning.journal, learning.schedule.request().id, OPTIONS, device="cpu")  # else another process
    finish(learning.journal, record, learning.schedule._publish, review=True)
    found = learning.ended(1, "review")
    assert (found["version"], found["lessons"]) == (None, 2)
    assert found["numbers"]["criteria"][0]["name"] == "complete"
    assert learning.call("GET", "selfdistill/status")[1]["update"] == {"id": 1, "state": "review"}
    assert learning.call("POST", "selfdistill/approve", update=7)[0] == 409
    status, body = learning.call("POST", "selfdistill/approve", update=1)
    assert (status, body) == (200, {"update": 1, "state": "accepted", "version": 2})
    _, after = learning.call("POST", "chat/completions", **chat)
    assert after["choices"][0]["message"]["content"] == "yes"
    assert learning.call("POST", "selfdistill/reject", update=1)[0] == 409
    assert learning.call("POST", "selfdistill/undo")[0] == 200
    assert learning.ended(1, "undone")["state"] == "undone"
    _, again = learning.call("POST", "chat/completions", **chat)
    assert again["choices"][0]["message"]["content"] == before["choices"][0]["message"]["content"]


def test_what_is_not_learned_is_said(learning: Learning) -> None:
    receipt = next(iter(learning.journal.exchanges())).receipt
    assert learning.call("POST", "feedback", receipt=receipt, text="Once.")[1]["learned"] is True
    assert learning.call("POST", "feedback", receipt=receipt, text="Once.")[1]["new"] == 0
    assert learning.call("POST", "feedback", receipt="unknown", text="Once.")[0] == 404
    learning.call("POST", "selfdistill/pin", version=1)
    status, body = learning.call("POST", "feedback", receipt=receipt, text="Twice.")
    assert (status, body["new"], body["learned"]) == (200, 1, False)
    assert "version 1 is pinned" in body["why"]
    status, body = learning.call("POST", "selfdistill/learn")
    assert (status, body["error"]["code"]) == (409, "not_learning")
    learning.call("POST", "selfdistill/pin", version=None)
    learning.call("POST", "selfdistill/pause", paused=True)
    assert "paused" in learning.call("POST", "selfdistill/learn")[1]["error"]["message"]
    learning.call("POST", "selfdistill/pause", paused=False)
    assert learning.call("POST", "selfdistill/learn") == (200, {"update": 1, "state": "queued"})
    assert learning.call("POST", "selfdistill/learn") == (200, {"update": 1, "state": "queued"})


def test_feedback_on_an_answer_that_nothing_is_learned_from_says_so(learning: Learning) -> None:
    _, plain = learning.call("POST", "completions", prompt="no", max_tokens=2)
    _, body = learning.call("POST", "feedback", receipt=plain["selfdistill"]["receipt"], text="Wrong.")
    assert (body["new"], body["learned"]) == (1, False)
    assert body["why"] == "nothing is learned from this answer: it is a side call"
    first = next(iter(learning.journal.exchanges())).receipt
    learning.service.publish(str(toy_user_dir()), parent=1)
    learning.service.undo()
    assert learning.call("POST", "feedback", receipt=first, text="Again.")[1]["learned"] is True
    version = learning.journal.versions.pin(2)  # what an undone version answers while it is pinned
    receipt = answer_of(learning, version.id)
    learning.service.pin(1)
    learning.journal.database.rows("UPDATE versions SET state = 'undone' WHERE id = 2")
    learning.service.pin(None)
    assert "of an undone version" in learning.call("POST", "feedback", receipt=receipt, text="No.")[1]["why"]


def test_a_candidate_that_waits_outlives_an_approval_that_is_not_possible(learning: Learning) -> None:
    record = perform(learning.journal, learning.schedule.request().id, OPTIONS, device="cpu")
    finish(learning.journal, record, learning.schedule._publish, review=True)
    learning.call("POST", "selfdistill/pin", version=1)
    status, body = learning.call("POST", "selfdistill/approve", update=1)
    assert (status, "version 1; update 1 still waits" in body["error"]["message"]) == (409, True)
    learning.call("POST", "selfdistill/pin", version=None)
    assert learning.call("POST", "selfdistill/approve", update=1)[1]["state"] == "accepted"


@pytest.mark.parametrize(("path", "body", "why"), [
    ("pause", {"paused": True}, "learning is paused"),
    ("pin", {"version": 1}, "version 1 is pinned"),
    ("undo", {}, "version 1 is served now"),
])  # fmt: skip
def test_an_update_that_would_not_be_served_any_more_ends_at_once(
    learning: Learning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], why: str
) -> None:
    if path == "undo":
        learning.service.publish(str(toy_user_dir()), parent=1)
    begun = tmp_path / "begun"
    (tmp_path / "child").write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 60\n")
    (tmp_path / "child").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "child"))
    learning.schedule.options = replace(OPTIONS, trigger="now")
    number = learning.schedule.request().id
    learning.schedule.start()
    assert soon(begun.exists, 30)
    time.sleep(0.3)  # the version from which it trains is read after its process has begun
    assert learning.call("POST", f"selfdistill/{path}", **body)[0] == 200
    found = learning.ended(number, "failed", seconds=20)
    assert found["reason"] == f"{why}; its lessons wait for the next update"
    assert soon(lambda: not learning.schedule._tried)  # so that they are learned once nothing stands in the way


def test_a_process_that_cannot_begin_or_a_candidate_that_does_not_fit_ends_the_update_alone(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    learning.schedule.options = replace(OPTIONS, trigger="now")
    first = learning.schedule.request()
    learning.schedule.start()
    assert "could not begin" in learning.ended(first.id, "failed")["reason"]
    assert learning.schedule._thread.is_alive()

    def full(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(weights_module, "with_adapter", full)
    (Path(learning.journal.database.path).parent / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not fit"):
        learning.service.publish(str(learning.journal.database.path.parent), parent=1)
    assert learning.service.version.id == 1


def test_why_shows_the_log_ratio_of_every_token_of_our_answer(learning: Learning) -> None:
    exchange, *_, last = learning.journal.exchanges()
    status, body = learning.call("POST", "selfdistill/why", receipt=exchange.receipt)
    assert (status, body["receipt"], body["context"]) == (200, exchange.receipt, COMPLAINT)
    assert len(body["tokens"]) == len(exchange.sampled_ids)
    assert all(isinstance(token["log_ratio"], float) for token in body["tokens"])
    assert learning.call("POST", "selfdistill/why", receipt=last.receipt)[1]["error"]["code"] == "nothing_came_back"
    assert learning.call("POST", "selfdistill/why", receipt="unknown")[0] == 404
    assert learning.call("POST", "selfdistill/why")[0] == 400


def test_triggers_begin_an_update_when_they_should(learning: Learning) -> None:
    schedule = learning.schedule
    schedule.options = replace(OPTIONS, trigger="now")
    assert schedule._due() is None
    schedule.options = replace(OPTIONS, trigger="pending", pending=3)
    assert schedule._due() is None
    schedule.options = replace(OPTIONS, trigger="idle", idle_s=3600)
    assert schedule._due() is None
    third = list(learning.journal.exchanges())[2]
    learning.journal.add_feedback(Feedback(third.receipt, text=COMPLAINT))
    schedule.options = replace(OPTIONS, trigger="pending", pending=3)
    record = schedule._due()
    assert record is not None
    assert (record.state, record.trigger) == ("queued", "pending")
    Updates(learning.journal.database).change(record.id, "rejected", only_from=["queued"])
    schedule._tried = set(schedule._waiting)
    assert schedule._due() is None  # not again before something new came back


def test_a_process_that_ends_fails_its_update_and_leaves_the_lessons(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    learning.schedule.start()
    found = learning.ended(1, "failed")
    assert found["reason"] == "its process ended with status 1; its lessons wait for the next update"
    assert found["lessons"] == 0
    assert soon(lambda: learning.lines)  # the journal is written first
    assert learning.lines == [f"update 1 failed: {found['reason']}"]


def test_an_update_whose_server_was_killed_ends_and_is_found_by_the_next_one(learning: Learning) -> None:
    child = os.fork()
    if child == 0:
        os.environ[PARENT] = str(os.getpid())  # no process is its own parent: the server is gone
        watch_parent(lambda: os._exit(1))
        time.sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    updates = Updates(learning.journal.database)
    left = updates.queue("now")
    updates.change(left.id, "training", only_from=["queued"], process=f"{child} long ago")
    learning.schedule.options = replace(OPTIONS, trigger="now")
    assert learning.schedule._due() is None
    assert updates.get(left.id).state == "failed"


def test_settings_of_learning_are_read_from_the_command_line() -> None:
    assert read_learning(None) is None
    found = read_learning("idle", ["pending=2", "lora.rank=8", "lr=1e-4"])
    assert found is not None
    assert (found.trigger, found.pending, found.lora.rank, found.lr) == ("idle", 2, 8, 1e-4)
    with pytest.raises(ConfigError, match="did you mean 'pending'"):
        read_learning("idle", ["pendin=2"])
    with pytest.raises(ConfigError, match="trigger"):
        read_learning("sometimes")
    with pytest.raises(ConfigError, match="no --learn"):
        read_learning(None, ["pending=2"])


def test_a_candidate_that_does_not_fit_is_said_before_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    check_learning_fits(str(toy_user_dir()), OPTIONS, "cpu", "auto")
    monkeypatch.setattr(update_module, "device_memory", lambda _: 100_000.0)
    with pytest.raises(OutOfMemoryError):
        check_learning_fits(str(toy_user_dir()), OPTIONS, "cpu", "auto")
