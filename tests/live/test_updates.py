"""The rows of updates: what counts as learned, and what is made of what a process left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill.errors import JournalError
from selfdistill.live.journal import Journal
from selfdistill.live.updates import Updates, alive, this_process
from tests.live_parts import served


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return served(tmp_path / "journal.db")


def begun(journal: Journal, *lessons: str, process: str = "", path: str = "") -> int:
    updates = Updates(journal.database)
    number = updates.queue("now").id
    updates.change(
        number, "training", only_from=["queued"], process=process, parent=1, path=path, lessons=list(lessons)
    )
    return number


def test_an_update_waits_once_and_changes_as_it_may(journal: Journal) -> None:
    updates = Updates(journal.database)
    assert updates.all == []
    first = updates.queue("idle")
    assert updates.queue("now") == first
    assert (first.state, first.trigger, first.public()["lessons"]) == ("queued", "idle", 0)
    updates.change(first.id, "training", only_from=["queued"])
    with pytest.raises(JournalError, match="update 1 is training"):
        updates.change(first.id, "training", only_from=["queued"])
    done = updates.change(first.id, "rejected", only_from=["training"], reason="gain: none", numbers={"a": 1})
    assert (done.reason, done.numbers, bool(done.ended)) == ("gain: none", {"a": 1}, True)
    with pytest.raises(JournalError, match="no such update"):
        updates.get(7)


def test_only_accepted_updates_have_learned_their_lessons(journal: Journal) -> None:
    updates = Updates(journal.database)
    updates.change(begun(journal, "1.a", "2.b"), "accepted", only_from=["training"], version=1)
    for _ in range(2):
        updates.change(begun(journal, "3.c"), "rejected", only_from=["training"], numbers={"passed_over": {"4.d": -2}})
        undecided = {"undecided": True, "without_gain": ["7.g"]}
        updates.change(begun(journal, "6.f"), "rejected", only_from=["training"], numbers=undecided)
        lacking = {"without_gain": ["8.h"], "not_measured": ["9.i"]}
        updates.change(begun(journal, "6.f"), "accepted", only_from=["training"], numbers=lacking)
    updates.change(begun(journal, "5.e"), "failed", only_from=["training"])
    history = updates.history()
    assert list(history.learned) == ["1.a", "2.b", "6.f"]
    assert set(history.barred) == {"3.c", "4.d", "8.h"}  # tried twice; a reply that goes on; twice without a gain


def test_undoing_a_version_bars_its_lessons_but_not_those_of_versions_that_stay(journal: Journal) -> None:
    updates = Updates(journal.database)
    for lessons in (["1.a"], ["1.a", "2.b"]):
        version = journal.versions.publish("sapling", f"adapter-{len(lessons)}", parent=journal.versions.all[-1].id)
        updates.change(begun(journal, *lessons), "accepted", only_from=["training"], version=version.id)
    journal.versions.undo()
    assert [each.state for each in updates.all] == ["accepted", "undone"]
    assert (list(updates.history().learned), set(updates.history().barred)) == (["1.a"], {"2.b"})


def test_a_process_that_is_gone_leaves_its_lessons_and_one_that_published_is_completed(journal: Journal) -> None:
    updates = Updates(journal.database)
    gone, mine = begun(journal, "1.a", process="999999999 1"), begun(journal, "2.b", process=this_process())
    published = begun(journal, "3.c", process="999999999 1", path="/adapters/3")
    version = journal.versions.publish("sapling", "/adapters/3", parent=1)
    changed = {each.id: each for each in updates.repaired()}
    assert {number: each.state for number, each in changed.items()} == {gone: "failed", published: "accepted"}
    assert "its lessons wait" in changed[gone].reason
    assert changed[published].version == version.id
    assert updates.get(mine).state == "training"
    assert list(updates.history().learned) == ["3.c"]


def test_a_process_is_known_by_its_number_and_when_it_began() -> None:
    assert alive(this_process())
    assert not alive(f"{os.getpid()} 1")
    assert not alive("")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert not alive(f"{child.pid} 12345")
