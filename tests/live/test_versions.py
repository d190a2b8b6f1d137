"""Exactly one published version is served, through every change."""

import sqlite3
from pathlib import Path

import pytest

from live_parts import served
from selfdistill.errors import JournalError
from selfdistill.live.journal import Journal


def states(journal: Journal) -> str:
    """A letter for each version: served, published, undone; a capital for a pinned one."""
    return "".join(each.state[0].upper() if each.pinned else each.state[0] for each in journal.versions.all)


def test_versions_are_published_undone_and_pinned(tmp_path: Path):
    with served(tmp_path / "journal.db") as journal:
        versions = journal.versions
        assert states(journal) == "s"
        second = versions.publish("sapling", "adapters/2", parent=1)
        assert (second.id, second.parent, second.path, states(journal)) == (2, 1, "adapters/2", "ps")
        assert (versions.undo().id, states(journal)) == (1, "su")
        third = versions.publish("sapling", "adapters/3", parent=1)
        assert (third.id, states(journal)) == (3, "pus"), "a number is used once"
        with pytest.raises(JournalError, match="does not follow the served one"):
            versions.publish("sapling", "adapters/4", parent=1)
        assert (versions.pin(1).id, states(journal)) == (1, "Sup")
        for change in (lambda: versions.publish("sapling", "adapters/4", parent=1), versions.undo):
            with pytest.raises(JournalError, match=r"is pinned|go back to"):
                change()
        assert (versions.unpin().id, states(journal)) == (1, "sup")
        with pytest.raises(JournalError, match="no version to go back to"):
            versions.undo()
        with pytest.raises(JournalError, match="no such version"):
            versions.pin(9)
        versions.publish("sapling", "adapters/4", parent=1)
        assert states(journal) == "pups"
        assert (versions.undo().id, states(journal)) == (1, "supu")
        versions.pin(4)
        versions.unpin()
        versions.publish("sapling", "adapters/5", parent=4)
        versions.undo()
        assert (versions.undo().id, states(journal)) == (1, "supuu"), "over those that were undone"
    with Journal.serve(tmp_path / "journal.db") as again:
        assert (again.versions.served or again.versions.all[-1]).id == 1
        with pytest.raises(sqlite3.IntegrityError), again.database.transaction() as connection:
            connection.execute("UPDATE versions SET state = 'served'")


def test_without_a_version_there_is_nothing_to_change(tmp_path: Path):
    with Journal.serve(tmp_path / "journal.db") as journal:
        assert journal.versions.served is None
        for change in (journal.versions.undo, journal.versions.unpin):
            with pytest.raises(JournalError, match="no version"):
                change()
