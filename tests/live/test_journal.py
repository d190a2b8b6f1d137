"""What a journal stores is what was exchanged, once, in order, and gone when it is deleted."""

import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from kill_journal import compare, kill

from live_parts import IDS, LOGPROBS, answered, ask, assistant, request, served, user
from selfdistill.errors import DataError, JournalError, JournalFullError, UnknownReceiptError
from selfdistill.live import journal as module
from selfdistill.live.conversations import locate, new_receipt
from selfdistill.live.exchange import Feedback, FeedbackResult, read_feedback
from selfdistill.live.journal import Journal
from selfdistill.live.recover import recover
from selfdistill.live.retention import Retention
from selfdistill.types import Message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.db"


def test_an_exchange_is_read_back_as_it_was(path: Path):
    with served(path) as journal:
        found = ask(journal, user("Hello"), answer="Hi  there.\n", headers={"Authorization": "x", "User-Agent": "a/1"})
        assert (found.prompt_ids, found.sampled_ids, found.logprobs) == ((5, 6), IDS, LOGPROBS)
        assert found.request == {"model": "m", "messages": [user("Hello")]}
        assert (found.text, found.reply) == ("Hi  there.\n", {"role": "assistant", "content": "Hi  there."})
        assert (found.headers, found.version, found.kind, found.stop) == ({"user-agent": "a/1"}, 1, "main", "end")
        later = ask(journal, user("Hello"), assistant("Hi there."), user("Too long."), answer="Hi.")
        assert later.conversation == found.conversation
        assert [lesson.messages for lesson in journal.lessons()] == [(Message("user", "Too long."),)]
        with Journal.open(path) as reader:
            assert [each.receipt for each in reader.exchanges()] == [found.receipt, later.receipt]


def test_plain_sqlite_reads_it(path: Path):
    with served(path) as journal:
        receipt = ask(journal, user("Hello")).receipt
    plain = sqlite3.connect(path)
    query = (
        "SELECT e.receipt, i.value, l.value FROM exchanges AS e, json_each(e.sampled_ids) AS i, "
        "json_each(e.logprobs) AS l WHERE l.key = i.key AND json_extract(e.request, '$.model') = 'm' ORDER BY i.key"
    )
    assert plain.execute(query).fetchall() == [(receipt, *pair) for pair in zip(IDS, LOGPROBS, strict=True)]
    assert path.stat().st_mode & 0o077 == 0, "for its owner alone"
    plain.close()


def test_all_of_a_record_is_there_or_none(path: Path):
    with served(path) as journal:
        first = ask(journal, user("Hello"))
        with pytest.raises(JournalError, match="cannot be recorded"):
            journal.record(replace(first, receipt="new"), first)
        with pytest.raises(JournalError, match="cannot be recorded"):
            journal.record(replace(first, receipt="new", version=7))
        journal.record(replace(first, receipt="n-0"), replace(first, receipt="n-1"))
        assert [each.receipt for each in journal.exchanges()] == [first.receipt, "n-0", "n-1"]


def test_threads_record_at_once(path: Path):
    with served(path) as journal:
        first = ask(journal, user("Hello"))
        threads = [
            threading.Thread(target=journal.record, args=(replace(first, receipt=f"r{place}"),)) for place in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {each.receipt for each in journal.exchanges()} == {first.receipt, *(f"r{place}" for place in range(8))}


def test_feedback_counts_once(path: Path):
    with served(path) as journal:
        found = ask(journal, user("Hello"))
        shorter = Feedback(found.receipt, text="Shorter.", rating=0.0)
        assert journal.add_feedback(shorter) == FeedbackResult(new=2, total=2)
        assert journal.add_feedback(shorter) == FeedbackResult(new=0, total=2)
        assert journal.add_feedback(Feedback(f"chatcmpl-{found.receipt}", solution="Hi.")) == FeedbackResult(1, 3)
        assert journal.feedback(found.seq) == [("text", "Shorter."), ("rating", "0"), ("solution", "Hi.")]
        with pytest.raises(UnknownReceiptError, match="no exchange has this receipt"):
            journal.add_feedback(Feedback("never", text="Shorter."))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"receipt": "r"}, "without content"),
        ({"receipt": "r", "text": " "}, "without content"),
        ({"text": "Shorter."}, "names no receipt"),
        ({"receipt": "r", "rating": 5}, "from 0"),
        ({"receipt": "r", "rating": "good"}, "wrong type"),
        ({"receipt": "r", "rateing": 1}, "did you mean 'rating'"),
    ],
)
def test_feedback_that_cannot_be_used(body: dict[str, object], match: str):
    with pytest.raises(DataError, match=match):
        read_feedback(body)
    assert read_feedback({"receipt": "r", "rating": True, "text": None}) == Feedback("r", rating=1.0)


def test_a_clock_that_jumps_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    times = iter(["2031-01-01T00:00:00.000+00:00", "1970-01-01T00:00:00.000+00:00"])
    with served(path) as journal:
        monkeypatch.setattr(module, "utc_now", lambda: next(times))
        receipts = [ask(journal, user("First"), answer="One.").receipt]
        receipts += [ask(journal, user("First"), assistant("One."), user("Next"), answer="Two.").receipt]
        assert [each.receipt for each in journal.exchanges()] == receipts
        assert [each.begins for each in journal.conversations()] == ["First"]
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 1e9)
        with pytest.raises(JournalError, match="the clock jumped"):
            journal.expire(30)
        assert journal.counts()["exchanges"] == 2


def test_what_is_old_expires(path: Path, monkeypatch: pytest.MonkeyPatch):
    with served(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(module, "utc_now", lambda: "2020-01-01T00:00:00.000+00:00")
            ask(journal, user("Old"), answer="One.")
            ask(journal, user("Old, and goes on"), answer="Two.", headers={"x-session-id": "s"})
        kept = ask(journal, user("New"), answer="Three.", headers={"x-session-id": "s"})
        assert journal.expire(30).exchanges == 1
        assert journal.expire(30).exchanges == 0
        assert [each.conversation for each in journal.exchanges()] == ["s", "s"]
        assert list(journal.exchanges(after=kept.seq - 1)) == [kept]


def test_a_server_deletes_what_is_older_than_it_keeps(path: Path):
    lines: list[str] = []
    with served(path) as journal:
        ask(journal, user("Hello"))
        time.sleep(0.005)  # times are kept in milliseconds
        with Retention(journal, 1e-9, lines.append):
            limit = time.monotonic() + 10
            while not lines and time.monotonic() < limit:
                time.sleep(0.005)
        assert not list(journal.exchanges())
        assert lines == ["1 exchanges are older than 1e-09 days: deleted"]
        with Retention(journal, 1.0, lines.append):
            ask(journal, user("Hello"))
        assert (len(list(journal.exchanges())), len(lines)) == (1, 1)


def test_deleted_words_are_in_no_file(path: Path):
    secret = "my secret word " * 1000
    with served(path) as journal:
        kept = ask(journal, user("Something else"), answer="Kept.")
        first = ask(journal, user("Hello"), answer="A secret word of mine.")
        ask(journal, user("Hello"), assistant("A secret word of mine."), user(secret))
        journal.add_feedback(Feedback(first.receipt, text=secret))
        assert journal.counts()["follow_ups"] == 1
        with pytest.raises(UnknownReceiptError, match="no such conversation"):
            journal.delete(first.conversation, "another")
        assert journal.delete(first.conversation) == (2, True)
        assert [each.receipt for each in journal.exchanges()] == [kept.receipt]
        counts = journal.counts()
        assert (counts["follow_ups"], counts["feedback"]) == (0, 0)
        files = list(path.parent.iterdir())
        assert not [file for file in files if b"secret word" in file.read_bytes()]
        journal.delete(kept.receipt)
    assert journal.database.path.stat().st_size < 100_000, "its pages are given back"


def test_search_finds_turns_and_answers(path: Path):
    with served(path) as journal:
        ask(journal, user("Wie groß ist die Erde?"), answer="Sehr groß.")
        ask(journal, user("And the moon, 50%?"), answer="Small.")
        assert [each.text for each in journal.search("GROSS IST")] == ["Sehr groß."]
        assert [each.text for each in journal.search("50%")] == ["Small."]
        assert [each.text for each in journal.search("", limit=1)] == ["Small."]
        assert not list(journal.search("mars"))


def test_a_full_disk_is_said_and_nothing_is_half_there(path: Path):
    with served(path) as journal:
        kept = ask(journal, user("Hello"))
        journal.database.rows(f"PRAGMA max_page_count = {kept.seq}")  # the least is what there is already
        asked = request(user("long " * 20_000))
        with pytest.raises(JournalFullError, match="the disk of the journal is full"):
            answered(journal, locate(journal, asked, {}), asked, "An answer.")
        assert [each.receipt for each in journal.exchanges()] == [kept.receipt]
        journal.database.rows("PRAGMA max_page_count = 100000")
        assert answered(journal, locate(journal, asked, {}), asked, "An answer.").seq == kept.seq + 1


def test_a_removed_file_takes_no_records(path: Path):
    with served(path) as journal:
        first = ask(journal, user("Hello"))
        path.rename(path.with_suffix(".old"))
        with pytest.raises(JournalError, match="removed or replaced"):
            journal.record(replace(first, receipt=new_receipt()))


def test_a_second_server_is_refused_and_readers_are_not(path: Path):
    with served(path) as journal:
        with pytest.raises(JournalError, match="another server has this journal"):
            Journal.serve(path)
        with Journal.open(path) as reader:
            ask(journal, user("Hello"))
            assert len(list(reader.exchanges())) == 1
    Journal.serve(path).close()


def damage(path: Path, kind: str) -> None:
    """A file that is wrong in one way."""
    if kind == "text":
        path.write_text("no database at all, " * 100)
    elif kind == "other":
        sqlite3.connect(path).executescript("CREATE TABLE t(x);").close()
    elif kind != "missing":
        with served(path) as journal:
            for place in range(20):
                ask(journal, user(f"{place} " * 2000))
            if kind == "newer":
                journal.database.rows("PRAGMA user_version = 99")
        size = path.stat().st_size
        with path.open("r+b") as file:
            if kind == "page":
                file.seek(size // 3 // 4096 * 4096)
                file.write(b"\xff" * 8192)
            elif kind == "cut":
                file.truncate(size // 2)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", "there is no journal"),
        ("text", "no SQLite database"),
        ("other", "a database of another program"),
        ("newer", "schema 99"),
        ("page", r"the journal is damaged(.|\n)*journal recover"),
        ("cut", "the journal is damaged"),
    ],
)
def test_a_file_that_is_no_whole_journal(tmp_path: Path, kind: str, match: str):
    path = tmp_path / "journal.db"
    damage(path, kind)
    with pytest.raises(JournalError, match=match), Journal.open(path) as reader:
        reader.database.check()
    if kind != "missing":
        before = path.read_bytes()
        with pytest.raises(JournalError, match=match):
            Journal.serve(path)
        assert path.read_bytes() == before


def test_what_can_be_read_of_a_damaged_journal_is_recovered(tmp_path: Path):
    damage(tmp_path / "journal.db", "page")
    copied, lost = recover(tmp_path / "journal.db", tmp_path / "new.db")
    assert copied["exchanges"] + lost["exchanges"] == 20
    assert copied["exchanges"] >= 10
    assert (copied["versions"], lost["versions"]) == (1, 0)
    with Journal.serve(tmp_path / "new.db") as journal:
        kept = list(journal.exchanges())
        assert all(each.new_text == f"{each.seq - 1} " * 2000 for each in kept)
        assert ask(journal, user("Hello")).seq > max(each.seq for each in kept)
    with pytest.raises(JournalError, match="the file exists"):
        recover(tmp_path / "journal.db", tmp_path / "new.db")


def test_a_killed_server_loses_nothing_acknowledged(tmp_path: Path):
    lines: list[str] = []
    for _ in range(5):
        lines += kill(tmp_path / "journal.db")
        compare(tmp_path / "journal.db", lines)
    assert any(line.startswith("exchange") for line in lines)
