"""What a journal stores is what was exchanged, once, in order, and gone when it is deleted."""

from pathlib import Path

from live_parts import IDS, LOGPROBS, ask, assistant, served, user

from selfdistill.live.journal import Journal
from selfdistill.types import Message


def test_an_exchange_is_read_back_as_it_was(tmp_path: Path):
    with served(tmp_path / "new" / "journal.db") as journal:
        found = ask(journal, user("Hello"), answer="Hi  there.\n", headers={"Authorization": "x", "User-Agent": "a/1"})
        assert (found.prompt_ids, found.sampled_ids, found.logprobs) == ((5, 6), IDS, LOGPROBS)
        assert found.request == {"model": "m", "messages": [user("Hello")]}
        assert (found.text, found.reply) == ("Hi  there.\n", {"role": "assistant", "content": "Hi  there."})
        assert (found.headers, found.version, found.kind, found.stop) == ({"user-agent": "a/1"}, 1, "main", "end")
        later = ask(journal, user("Hello"), assistant("Hi there."), user("Too long."), answer="Hi.")
        assert later.conversation == found.conversation
        assert [lesson.messages for lesson in journal.lessons()] == [(Message("user", "Too long."),)]
        with Journal.open(tmp_path / "new" / "journal.db") as reader:
            assert [each.receipt for each in reader.exchanges()] == [found.receipt, later.receipt]
