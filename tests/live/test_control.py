"""Versions at run time: an adapter is served, undone and pinned while answers are in progress."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from live_parts import user
from selfdistill.errors import JournalError, ModelError, VersionError
from selfdistill.live.batch import Generation
from selfdistill.live.engine import Engine
from selfdistill.live.exchange import Feedback
from selfdistill.live.journal import Journal
from selfdistill.live.server import Server
from selfdistill.live.service import Call, Service
from selfdistill.live.weights import Weights
from selfdistill.models import planning
from selfdistill.models.adapter import LoraOptions
from selfdistill.models.load import load_policy
from selfdistill.models.sampler import SamplingOptions, sample
from tiny_models import tiny_policy_dir

BODY = {"messages": [user("Say yes or no, smallest first, largest last.")], "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, two adapters of it (1 and 2), and another model."""
    directory = tmp_path_factory.mktemp("models")
    tiny_policy_dir(directory).rename(directory / "base")
    tiny_policy_dir(directory, seed=1).rename(directory / "other")
    for number in (1, 2):
        policy = load_policy(str(directory / "base"), device="cpu", lora=LoraOptions(rank=2 * number))
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for value in policy.trainable().values():
                value.copy_(torch.randn(value.shape, generator=draw))
        policy.model.save_pretrained(str(directory / f"adapter-{number}"))  # type: ignore[operator]
    return directory


class Running:
    """A service with its journal, as `serve` starts it."""

    def __init__(self, journal: Path, model: Path) -> None:
        self.journal = Journal.serve(journal)
        weights = Weights(self.journal, device="cpu")
        try:
            version, policy = weights.start(str(model))
        except BaseException:
            self.journal.close()
            raise
        self.engine = Engine(policy)
        self.service = Service(policy, self.engine, self.journal, version, name="tiny", weights=weights)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.engine.join()
        self.journal.close()

    def begin(self, **body: Any) -> tuple[Call, list[Any]]:
        call, pieces = self.service.chat(json.dumps({**BODY, **body}).encode(), {}), list[Any]()
        self.service.start(call, lambda answer, piece: (answer.add(piece), pieces.append(piece)))
        return call, pieces

    def end(self, call: Call) -> tuple[int, tuple[int, ...]]:
        """The version and the tokens of an answer, once it is recorded."""
        while not call.answers[0].ended:
            time.sleep(0.002)
        self.service.record(call)
        exchange = self.journal.exchange(call.receipts[0])
        return exchange.version, exchange.sampled_ids

    def ask(self, **body: Any) -> tuple[int, tuple[int, ...]]:
        return self.end(self.begin(**body)[0])


@pytest.fixture
def running(models: Path, tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "journal.db", models / "base") as found:
        yield found


def alone(directory: Path, generation: Generation | None) -> tuple[int, ...]:
    """What a model of its own, with no server around it, answers."""
    policy = load_policy(str(directory), device="cpu", trained=False)
    assert generation
    (found,) = sample(policy, [generation.prompt], SamplingOptions(24, 0.0), seed=0, uids=["0"], version=0)
    return found.token_ids


def test_an_adapter_is_served_undone_and_served_again_by_the_next_server(models: Path, running: Running):
    service, adapter = running.service, str(models / "adapter-1")
    call, _ = running.begin()
    before = running.end(call)
    assert before == (1, alone(models / "base", call.answers[0].generation))
    long, pieces = running.begin(max_tokens=120)
    while not pieces:
        time.sleep(0.002)
    assert service.publish(adapter, parent=1).id == 2
    during = running.ask()
    assert during == (2, alone(models / "adapter-1", call.answers[0].generation))
    assert during[1] != before[1]
    version, tokens = running.end(long)
    assert (version, tokens[:24][: len(before[1])]) == (1, before[1]), "an answer in progress ends with its version"
    assert service.publish(str(models / "adapter-2"), parent=2).id == 3
    third = running.ask()
    assert third[1] not in (before[1], during[1])

    assert service.undo().id == 2
    assert running.ask() == during
    assert service.undo().id == 1
    assert running.ask() == before, "token for token as before"
    assert service.pin(3).id == 3
    assert running.ask() == third
    with pytest.raises(VersionError, match="is pinned"):
        service.undo()
    with pytest.raises(VersionError, match="is pinned"):
        service.publish(adapter, parent=3)
    path = running.journal.database.path
    running.__exit__()
    with Running(path, models / "base") as again:
        assert again.service.version.pinned
        assert again.ask() == third, "the next server serves what the journal says"
        again.service.pin(None)
        again.service.undo()
        assert again.ask() == before, "over the one that was undone"


def test_what_cannot_be_loaded_changes_nothing(models: Path, running: Running, tmp_path: Path):
    service = running.service
    before = running.ask()
    halved = tmp_path / "halved"
    shutil.copytree(models / "adapter-1", halved)
    (halved / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    for path in (halved, tmp_path / "missing"):
        with pytest.raises(ModelError, match=r"cannot be loaded|no such model"):
            service.publish(str(path), parent=1)
    with pytest.raises(VersionError, match="no version to go back to"):
        service.undo()
    assert [version.id for version in running.journal.versions.all] == [1]
    assert running.ask() == before


def test_whole_weights_follow_and_are_pinned(models: Path, running: Running, monkeypatch: pytest.MonkeyPatch):
    """Of a checkpoint, beside those that are served; where both do not fit, it is refused."""
    before = running.ask()
    assert running.service.publish(str(models / "other"), parent=1).id == 2
    other = running.ask()
    assert other[1] != before[1]
    assert running.service.pin(1).id == 1
    assert running.ask() == before
    assert running.service.pin(2).id == 2
    assert running.ask() == other
    monkeypatch.setattr("selfdistill.live.weights.device_memory", lambda _: 1e4)
    assert planning.model_shape(str(models / "base"), None).parameters * 4 > 1e4
    with pytest.raises(ModelError, match="the model does not fit"):
        running.service.pin(1)
    assert running.ask() == other


def test_another_model_begins_a_line_of_its_own(models: Path, tmp_path: Path):
    path = tmp_path / "journal.db"
    with Running(path, models / "base") as first:
        first.service.publish(str(models / "adapter-1"), parent=1)
    with Running(path, models / "other") as second:
        assert (second.service.version.id, second.service.version.parent) == (3, None)
    with Running(path, models / "base") as third:
        assert third.service.version.id == 4
        third.service.pin(2)
        adapted = third.ask()
    with pytest.raises(VersionError, match="is pinned"), Running(path, models / "other"):
        pass
    with Running(path, models / "base") as fourth:
        assert fourth.ask() == adapted


def test_a_start_that_fails_leaves_no_journal(tmp_path: Path):
    for _ in range(2):
        with pytest.raises(ModelError, match="no such model"), Running(tmp_path / "journal.db", tmp_path / "missing"):
            pass
        assert not (tmp_path / "journal.db").exists()
    with Journal.serve(tmp_path / "journal.db") as journal:
        journal.versions.publish("m")
        journal.pause(True)
    with Journal.serve(tmp_path / "journal.db") as journal:
        assert journal.paused


def test_records_of_an_undone_version_are_no_lessons(running: Running, models: Path):
    call, _ = running.begin()
    running.end(call)
    running.service.publish(str(models / "adapter-1"), parent=1)
    second, _ = running.begin()
    running.end(second)
    for each in (call, second):
        running.journal.add_feedback(Feedback(each.receipts[0], text="Shorter."))

    def lessons() -> list[int]:
        return [lesson.exchange.version for lesson in running.journal.lessons()]

    assert lessons() == [1, 2]
    running.service.undo()
    assert lessons() == [1]
    assert running.journal.unlearned() == {"of an undone version": 1}
    running.service.pin(2)
    assert lessons() == [1, 2]


def test_a_journal_of_the_first_schema_is_brought_up_to_date(tmp_path: Path):
    path = tmp_path / "journal.db"
    with Journal.serve(path) as journal:
        journal.versions.publish("m")
        with journal.database.transaction() as connection:
            connection.execute("DROP TABLE settings")
            connection.execute("DROP TABLE updates")
            connection.execute("PRAGMA user_version = 1")
    with Journal.open(path) as beside, pytest.raises(JournalError, match="no such table"):
        assert beside.paused
    with Journal.serve(path) as journal:
        assert not journal.paused
        assert journal.versions.served


def test_versions_over_http(running: Running, models: Path):
    pytest.importorskip("starlette", reason="needs the extra serve")
    client = pytest.importorskip("starlette.testclient").TestClient(
        Server(running.service).app(), base_url="http://localhost"
    )

    def post(name: str, **body: Any) -> tuple[int, Any]:
        answer = client.post(f"/v1/selfdistill/{name}", json=body)
        return answer.status_code, answer.json()

    status, body = post("undo")
    assert (status, body["error"]["code"]) == (409, "not_possible")
    assert "no version to go back to" in body["error"]["message"]
    running.service.publish(str(models / "adapter-1"), parent=1)
    running.service.publish(str(models / "adapter-2"), parent=2)
    status, body = post("undo", versions=2)
    assert (status, body["served"], [each["state"] for each in body["data"]]) == (
        200,
        1,
        ["served", "undone", "undone"],
    )
    status, body = post("pin", version=3)
    assert (status, body["served"], body["data"][2]["pinned"]) == (200, 3, True)
    assert post("pin", version=9)[0] == 409
    assert post("pin", version=None)[1]["data"][2] == {**body["data"][2], "pinned": False}
    for name, wrong in (("undo", {"versions": 0}), ("undo", {"versions": True}), ("pin", {}), ("pause", {"pause": 1})):
        assert post(name, **wrong)[0] == 400, wrong
    assert post("pause", paused=True) == (200, {"paused": True})
    assert client.get("/v1/selfdistill/status").json()["paused"] is True
    assert running.journal.paused
