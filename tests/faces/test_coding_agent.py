"""The coding agent with a scripted server: in a terminal, and with typed lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from face_parts import Call, Scripted, Session, messages, scripted
from selfdistill.cli import app
from selfdistill.faces.client import Answer
from selfdistill.faces.code import SYSTEM

BEFORE = "def f(x):\n    return x - 1\n"
EDIT: Call = ("edit", {"path": "a.py", "old": "x - 1", "new": "x + 2"})
READ: Call = ("read", {"path": "a.py"})
ACCEPTED, REJECTED = {"state": "accepted", "version": 2}, {"state": "rejected", "reason": "it did not move"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.py").write_text(BEFORE)
    return tmp_path / "work"


@pytest.fixture
def editor(tmp_path: Path) -> str:
    """An editor that replaces 2 by 1 in what it is given."""
    file = tmp_path / "editor.py"
    file.write_text(
        "import sys, pathlib\np = pathlib.Path(sys.argv[1])\np.write_text(p.read_text().replace('2', '1'))\n"
    )
    return f"{sys.executable} {file}"


def code(server: Scripted, folder: Path, *lines: str, words: tuple[str, ...] = (), code: int = 0) -> str:
    """What the agent prints without a terminal; each line answers a question or is an instruction."""
    typed = "".join(f"{line}\n" for line in lines)
    result = CliRunner().invoke(app, ["code", str(folder), "--url", server.url, *words], input=typed)
    assert result.exit_code == code, result.output
    return result.output


def last(server: Scripted, count: int = 1) -> list[Any]:
    """The last messages of the last request."""
    return [message["content"] for message in messages(server, -1)][-count:]


def test_a_session_in_a_terminal(folder: Path, editor: str):
    """A denial with words and new weights: the same turn again. An edited change: the change as edited is the solution.
    Tests that fail: feedback on the turn that made the change. Ctrl-C at a question ends the work."""
    command: Call = ("run_command", {"command": "echo \x1b[2Jran > made"})
    outside: Call = ("read", {"path": "../editor.py"})
    with scripted(outside, command, READ, EDIT, "Done.", command, "Well.") as server:
        server.learns(ACCEPTED, REJECTED, REJECTED)
        words = ("code", folder, "--url", server.url, "--test", "grep -q 'x + 3' a.py || (echo failing; exit 1)")
        person = Session(*words, cwd=folder, env={"EDITOR": editor})
        shown = person.say("> ", "Mend f")
        assert "runs with your rights" in shown
        shown = person.say("lways: ", "n read the file first")
        assert "is outside of the directory" in shown
        assert "│ echo ␛[2Jran > made" in shown
        assert "version 2 answers now" in person.until("the turn is tried again")
        assert "+    return x + 2" in person.say("lways: ", "e")
        assert "+    return x + 1" in person.say("lways: ", "y")
        shown = person.until("lways: ")
        assert "failing" in shown
        assert (folder / "a.py").read_text() == BEFORE.replace("- 1", "+ 1")
        person.interrupt()
        person.until("stopped")
        person.say("> ", "What now?")
        person.until("Well.")
        person.until("> ")
        person.type("\x04")
        assert person.end() == 0
        assert not (folder / "made").exists()
        denied, edited, failed = server.bodies("/feedback")
        assert denied == {"receipt": "r-2", "text": "read the file first"}
        assert (edited["receipt"], failed["receipt"]) == ("r-4", "r-4")
        assert "-x + 2" in edited["text"]
        approved = {**EDIT[1], "new": "x + 1"}
        assert json.dumps({"name": "edit", "arguments": approved}) in edited["solution"]
        assert "exit code 1:\nfailing" in failed["text"]
        assert messages(server, 1) == messages(server, 2)  # the retry
        assert json.loads(messages(server, 4)[-2]["tool_calls"][0]["function"]["arguments"]) == approved
        assert last(server, 2) == ["Stopped by the user.", "What now?"]


def test_a_denial_that_taught_nothing_stays_in_the_conversation(folder: Path):
    with scripted([READ, EDIT, READ], "Fine.") as server:
        server.learns(REJECTED)
        code(server, folder, "Mend f", "maybe", "n", "use y")
        assert server.bodies("/feedback") == [{"receipt": "r-1", "text": "use y"}]
        assert last(server, 3) == [BEFORE, "Error: Denied: the user does not want this: use y", "Not run."]
    with scripted(EDIT, "Fine.") as server:  # without words, and with a server that does not learn
        code(server, folder, "Mend f", "n", "")
        assert "/v1/feedback" not in [path for path, _ in server.got]
        assert last(server) == ["Error: Denied: the user does not want this"]
    with scripted(EDIT, EDIT, "Fine.") as server:
        server.routes["/v1/feedback"] = {"new": 1}
        shown = code(server, folder, "Mend f", "n no", "n no again")
        assert shown.count("this server does not learn") == 1
        assert len(server.bodies("/selfdistill/learn")) == 1
        assert len(server.bodies("/feedback")) == 2
    assert (folder / "a.py").read_text() == BEFORE


def test_the_same_call_after_the_retry_is_denied_by_itself(folder: Path):
    with scripted(EDIT, EDIT, "Fine.") as server:
        server.learns(ACCEPTED)
        shown = code(server, folder, "Mend f", "n use y")
        assert "this was denied just now" in shown
        assert len(server.bodies("/feedback")) == 1
        assert last(server) == ["Error: Denied: the user does not want this: use y"]


def test_what_is_always_approved(folder: Path):
    """All changes; one command, as long as every change was approved by itself."""
    ran: Call = ("run_command", {"command": "echo x >> ran"})
    with scripted(ran, ran, EDIT, ran, ("write", {"path": "b.py", "content": "1\n"}), ran, "Done.") as server:
        shown = code(server, folder, "Go", "a", "a", "n", "", "n", words=("--test", "touch tested"))
        assert (folder / "ran").read_text() == "x\nx\nx\n"
        assert (folder / "b.py").read_text() == "1\n"
        assert shown.count("lways: ") == 3
        assert "+1" in shown
        assert "did not approve one by one" in shown
        assert not (folder / "tested").exists()
        assert last(server)[0].startswith("Error: Denied")
    with scripted(EDIT, ("write", {"path": "b.py", "content": "1\n"}), "Done.") as server:
        (folder / "a.py").write_text(BEFORE)
        shown = code(server, folder, "Go", "y", words=("--test", "touch tested"))
        assert "holds that already" in shown
        assert "the tests pass" in shown
        assert (folder / "tested").exists()


WRONG: list[tuple[Call, str]] = [
    (("reed", {"path": "a.py"}), "did you mean 'read'?"),
    (("read", {"file": "a.py"}), "wrong arguments of read, which takes path, first_line"),
    (("read", {"path": "folder-that-is-not-there/a.py"}), "No such file"),
    (("edit", {"path": "a.py", "old": "y", "new": "z"}), "occurs 0 times"),
    (("edit", {"path": "a.py", "old": "x", "new": "z"}), "occurs 2 times"),
    (("edit", {"path": "b.py", "old": "x", "new": "z"}), "there is no such file"),
    (("write", {"path": ".git/config", "content": "x"}), "git's own files"),
    (("write", {"path": "/etc/x", "content": "x"}), "outside of the directory"),
    (("search", {"text": "lambda"}), "Nothing was found."),
    (("list_files", {"folder": ".."}), "outside of the directory"),
]  # fmt: skip


def test_calls_that_cannot_be_done_are_results(folder: Path):
    with scripted([call for call, _ in WRONG], "Sorry.") as server:
        code(server, folder, "Go")
        results = last(server, len(WRONG))
        assert [text in result for (_, text), result in zip(WRONG, results, strict=True)] == [True] * len(WRONG)
        assert messages(server, 0)[0]["content"] == SYSTEM.format(name="work")


def test_arguments_that_are_no_object(folder: Path, monkeypatch: pytest.MonkeyPatch):
    texts = ["null", "[1]", "{"]
    monkeypatch.setattr(Answer, "message", property(lambda self: {"role": "assistant", "content": "calls"}))
    add = Answer.add

    def spoiled(self: Answer, chunk: Any) -> str:
        text = add(self, chunk)
        for call, given in zip(self.calls, texts, strict=False):
            call["function"]["arguments"] = given
        return text

    monkeypatch.setattr(Answer, "add", spoiled)
    with scripted([READ] * 3, "Sorry.") as server:
        code(server, folder, "Go")
        results = last(server, 3)
    assert results[:2] == ["Error: give an object"] * 2
    assert results[2].startswith("Error: the arguments are no JSON")


def test_turns_results_and_time_are_bounded(folder: Path):
    (folder / "long.txt").write_text("line\n" * 1000)
    calls = [("read", {"path": "long.txt", "first_line": 3}), ("run_command", {"command": "sleep 60"}), READ]
    with scripted(*calls) as server:
        shown = code(server, folder, "Go", "y", words=("--turns", "3", "--time-limit", "0.2"))
        assert "stopped after 3 turns" in shown
        results = [message["content"] for message in messages(server, 2) if message["role"] == "tool"]
        assert "(799 more lines)" in results[0]
        assert "it was stopped: it took 0.2 s" in results[1]


@pytest.mark.parametrize("editor", ["false", "/nowhere/editor"])
def test_an_editor_that_fails_and_the_end_of_the_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, editor: str):
    monkeypatch.setenv("VISUAL", editor)
    with scripted(EDIT) as server:
        shown = code(server, folder, "Mend f", "e")
        assert "the editor did not work" in shown
    assert (folder / "a.py").read_text() == BEFORE


def test_the_lines_end_at_the_question_about_the_tests(folder: Path):
    with scripted(EDIT, ("write", {"path": "b.py", "content": "1\n"}), "Done.") as server:
        shown = code(server, folder, "Go", "a", words=("--test", "touch tested"))
        assert "did not approve one by one" in shown
    assert not (folder / "tested").exists()


def test_a_server_that_ends_in_the_middle(folder: Path):
    with scripted(EDIT, "Done.") as server:
        server.learns(REJECTED)
        server.routes["/v1/selfdistill/learn"] = (503, {"error": {"message": "the server is ending"}})
        assert "the server is ending" in code(server, folder, "Mend f", "n no")
        server.answers.append("cut")
        server.cut_after = 1
        assert "cut off" in code(server, folder, "Mend f", code=1)


def test_a_receipt_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    add: Callable[..., str] = Answer.add
    monkeypatch.setattr(Answer, "add", lambda self, chunk: add(self, {**chunk, "selfdistill": None}))
    with scripted(EDIT, "Fine.") as server:
        assert "has no receipt" in code(server, folder, "Mend f", "n no")
        assert not server.bodies("/feedback")
