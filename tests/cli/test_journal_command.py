import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from live_parts import ask, assistant, served, user
from selfdistill.cli import app
from selfdistill.live.exchange import Feedback
from selfdistill.live.export import TrainingRows

runner = CliRunner()


def run(*words: object, code: int = 0, answer: str = "") -> str:
    result = runner.invoke(app, ["journal", *map(str, words)], input=answer, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    with served(path) as journal:
        ask(journal, user("Hello"), answer="Hi there.", headers={"x-session-id": "s-1"})
        last = ask(
            journal, user("Hello"), assistant("Hi there."), user("Too [bold] long."), headers={"x-session-id": "s-1"}
        )
        ask(journal, user("### Task:\nTags"), answer="greeting", headers={"x-session-id": "s-2"})
        journal.add_feedback(Feedback(last.receipt, text="Better."))
    return path


def test_look_search_and_check(file: Path):
    text = run("look", file)
    assert "3 exchanges in 2 conversations; 1 were followed up, 1 times feedback" in text
    assert "served: version 1 of 1, sapling" in text
    assert ["s-1", "2", "0"] in [line.split()[:3] for line in text.splitlines()]
    text = run("look", file, "s-1")
    assert "request: Too [bold] long.\nanswer: An answer.\ntext: Better.\n" in text
    assert "side call (the user's turn begins as task)" in run("look", file, "s-2")
    assert "1 exchanges" in run("search", file, "too [BOLD]")
    assert "3 exchanges" in run("check", file)


def test_export_writes_once(file: Path, tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    text = run("export", file, out, "--conversation", "s-1")
    assert "2 rows" in text
    assert "left out: none" in text
    assert [json.loads(line)["user_reply"] for line in out.read_text().splitlines()] == ["Too [bold] long.", "Better."]
    assert "the file exists" in run("export", file, out, code=2)


def test_export_that_is_stopped_leaves_no_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(_: object) -> Iterator[dict[str, str]]:
        yield {"id": "1"}
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRows, "__iter__", stopped)
    assert "Stopped." in run("export", file, tmp_path / "rows.jsonl", code=130)
    assert not (tmp_path / "rows.jsonl").exists()


def test_long_texts_are_cut_in_lists(tmp_path: Path):
    with served(tmp_path / "journal.db") as journal:
        long = ask(journal, user("\x1b[2Jword " * 200), headers={"x-session-id": "s"})
    listed, whole = run("look", tmp_path / "journal.db", "s"), run("look", tmp_path / "journal.db", long.receipt)
    assert "more; look at the receipt shows all" in listed.replace("\n", " ")
    assert listed.count("word") < whole.count("word") == 200
    assert "\x1b" not in listed + whole


def test_delete_asks_first(file: Path):
    assert "Aborted" in run("delete", file, "s-1", code=1, answer="n\n")
    assert "3 exchanges in 2" in run("look", file)
    assert "2 exchanges deleted" in run("delete", file, "s-1", answer="y\n")
    assert "no such conversation" in run("delete", file, "s-1", "--yes", code=2)
    assert "nothing is as old" in run("delete", file, "--older-than", "1")
    assert "1 exchanges deleted" in run("delete", file, "--older-than", "0", "--yes")
    assert "give conversations or receipts, or --older-than" in run("delete", file, code=2)


def test_a_file_that_is_none(tmp_path: Path):
    assert "there is no journal" in run("look", tmp_path / "journal.db", code=2)
    served(tmp_path / "j.db").close()
    assert "no exchange has this receipt" in run("look", tmp_path / "j.db", "r", code=2)


def test_versions_are_shown_and_changed_while_no_server_runs(tmp_path: Path):
    path = tmp_path / "journal.db"
    with served(path) as journal:
        journal.versions.publish("sapling", "adapters/2", parent=1)
        assert "served             from 1       adapters/2" in run("versions", path)
        assert "another server has this journal" in run("versions", path, "--undo", "1", code=2)
    assert "undone             from 1" in run("versions", path, "--undo", "1")
    assert "served, pinned     from 1" in run("versions", path, "--pin", "2")
    assert "pinned" not in run("versions", path, "--unpin")
    assert "one change each" in run("versions", path, "--unpin", "--pin", "1", code=2)
    assert "there is no such version" in run("versions", path, "--pin", "9", code=2)
