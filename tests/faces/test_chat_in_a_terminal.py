"""A conversation in a terminal, and without one, with a scripted server; one with the real server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from face_parts import Scripted, Session, messages, scripted
from selfdistill.cli import app
from selfdistill.errors import ConfigError, EndpointError
from selfdistill.faces.chat import about_update
from selfdistill.faces.client import Answer, Client
from selfdistill.faces.own_server import own_server
from selfdistill.faces.terminal import plain

REJECTED = {"state": "rejected", "reason": "the context gained nothing", "numbers": {"gain": -0.25, "each": [1]}}
ACCEPTED = {"state": "accepted", "version": 2}
WHY = {"context": "Shorter.", "tokens": [{"text": "Long", "log_ratio": -2.5}, {"text": " end", "log_ratio": 0.75}]}


def chat(server: Scripted, *lines: str, code: int = 0, words: tuple[str, ...] = ()) -> str:
    """What a chat without a terminal prints, errors and notes included."""
    typed = "".join(f"{line}\n" for line in lines)
    result = CliRunner().invoke(app, ["chat", "--url", server.url, *words], input=typed)
    assert result.exit_code == code, result.output
    return result.output


def test_a_conversation_in_a_terminal(tmp_path: Path):
    with scripted("Say \x1b[31mred\x1b[0m", "A long answer. " * 20, "Short.") as server:
        server.learns(REJECTED)
        server.routes["/v1/selfdistill/why"] = WHY
        person = Session("chat", "--url", server.url, cwd=tmp_path)
        person.say("> ", "Hello")
        assert "Say ␛[31mred␛[0m" in person.say("> ", "/learn")
        server.pause_s = 0.05
        assert "why: the context gained nothing" in person.say("> ", "Two \\", "lines")
        person.until("A long answer. ")
        person.type("\x03")
        person.until("stopped")
        server.pause_s = 0
        person.say("> ", "/why")
        shown = person.say("> ", '"""', "one", "two", '"""')
        assert "Long" in shown
        assert "\x1b[30;48;" in shown  # a colour
        person.until("Short.")
        person.until("> ")
        person.interrupt()
        person.until("Ctrl-C once more")
        person.until("> ")
        person.interrupt()
        assert person.end() == 0
        assert ("gone", "r-2") in server.got
        told = [message["content"] for message in messages(server, 2)]
        assert told[:3] == ["Hello", "Say \x1b[31mred\x1b[0m", "Two \nlines"]
        assert (told[3][:14], told[4]) == ("A long answer.", "one\ntwo")
        assert server.bodies("/selfdistill/why") == [{"receipt": "r-1"}]  # the stopped answer was not replied to yet


def test_commands_without_a_terminal():
    with scripted("One.", "Two.", "Three.") as server:
        server.learns(REJECTED, ACCEPTED)
        server.routes |= {
            "/v1/selfdistill/why": WHY, "/v1/selfdistill/undo": {}, "/v1/selfdistill/pause": {},
            "/v1/selfdistill/status": {"model": "scripted", "learning": True},
            "/v1/selfdistill/versions": {"data": [{"id": 1, "state": "served", "pinned": True, "model": "m"}]},
        }  # fmt: skip
        lines = (
            "/good",
            "/why",
            "Hi",
            "/bad too long",
            "/feedback",
            "/good",
            "/why",
            "/learn",
            "/learn",
            "/versions",
            "/status",
        )
        shown = chat(server, *lines, "/undo 2", "/undo x", "/pause", "/pause off", "/new", "Again", "/help")
        assert "there is no answer yet" in shown
        assert "nothing came back for an answer yet" in shown
        assert "[-Long-]{+ end+}" in shown
        assert "lowest: Long -2.50" in shown
        assert "update 1, 1 lessons: rejected" in shown
        assert "gain -0.25" in shown
        assert "update 2, 1 lessons: accepted: version 2 answers now" in shown
        assert "1        served, pinned" in shown
        assert "learning  True" in shown
        assert "/undo, or /undo 2" in shown
        assert "/feedback  Give feedback" in shown
        feedback = server.bodies("/feedback")
        assert feedback == [{"receipt": "r-1", "rating": 0.0, "text": "too long"}, {"receipt": "r-1", "rating": 1.0}]
        assert server.bodies("/selfdistill/undo") == [{"versions": 2}]
        assert server.bodies("/selfdistill/pause") == [{"paused": True}, {"paused": False}]
        assert [message["content"] for message in messages(server, 1)] == ["Again"]
        assert "did you mean 'undo'?" in chat(server, "/undoo", code=1)
        settings = ("--system", "Be brief.", "--temperature", "0.5", "--max-tokens", "7")
        assert "Three." in chat(server, "Hi", "/quit", "never sent", words=settings)
        sent = server.bodies("/chat/completions")[-1]
        assert (sent["temperature"], sent["max_tokens"], sent["messages"][0]["content"]) == (0.5, 7, "Be brief.")
        assert not server.answers


def test_a_person_decides_about_an_update():
    with scripted() as server:
        review = {"state": "review"}
        server.learns(review)
        server.routes["/v1/selfdistill/learn"]()
        (update,) = server.routes["/v1/selfdistill/updates"]()["updates"]
        server.routes["/v1/selfdistill/approve"] = lambda: update.update(ACCEPTED) or {"update": 1}
        shown = chat(server, "/approve", "/reject")
    assert "update 1, 1 lessons: accepted: version 2 answers now" in shown
    assert "no update waits for a person" in shown


def test_updates_that_happen_meanwhile_are_shown():
    with scripted("One.") as server:
        server.learns(ACCEPTED, {"state": "queued"}, REJECTED)
        begun = [server.routes["/v1/selfdistill/learn"]() for _ in range(2)]
        assert begun[1] == {"update": 2, "state": "queued"}

        def models() -> Any:
            server.routes["/v1/selfdistill/learn"]()
            return {"data": []}

        server.routes["/v1/selfdistill/status"] = models
        shown = chat(server, "Hi", "/status")
        assert [f"update {n}," in shown for n in (1, 2, 3)] == [False, False, True]
    assert about_update({"id": 1, "state": "undone", "version": 2}) == ["update 1, 0 lessons: undone"]


def test_what_a_server_does_not_do_is_said():
    with scripted("One.", "Two.") as server:
        shown = chat(server, "Hi", "/learn", "/undo", "/pause", "/versions", "/good", "So?", "/why", code=1)
    for what in ("learn", "undo versions", "pause its learning", "have versions", "take feedback", "show the credit"):
        assert f"this server does not {what}" in shown


def test_errors_of_a_client():
    with scripted() as server:
        client = Client(server.url)
        server.routes["/v1/models"] = (401, {"error": {"message": "the token is missing", "code": "invalid_api_key"}})
        with pytest.raises(EndpointError, match="SELFDISTILL_TOKEN"):
            client.model()
        server.routes["/v1/feedback"] = (404, {"error": {"message": "no exchange x", "code": "unknown_receipt"}})
        with pytest.raises(EndpointError, match="no exchange x"):
            client.feedback("x", text="a")
        server.routes["/v1/feedback"] = ["no", "object"]
        with pytest.raises(EndpointError, match="cannot be read"):
            client.feedback("x", text="a")
        server.routes["/v1/selfdistill/updates"] = {"updates": []}
        with pytest.raises(EndpointError, match="does not know the update"):
            client.wait(3)
    with pytest.raises(EndpointError, match="selfdistill serve"):
        list(client.stream(Answer(), [{"role": "user", "content": "Hi"}], session="s"))
    for wrong in ("ftp://x", "http://", "http://x:port", "http://[::1"):
        with pytest.raises(ConfigError, match="should be a URL"):
            Client(wrong)


def test_an_answer_that_is_cut_off():
    with scripted("A text that ends too early") as server:
        server.cut_after = 3
        answer = Answer()
        with pytest.raises(EndpointError, match="cut off"):
            list(Client(server.url).stream(answer, [{"role": "user", "content": "Hi"}], session="s"))
        assert (answer.text, answer.finish, answer.receipt) == ("A text that end", "", "")


def test_answers_of_other_servers_are_read():
    """Calls in pieces, no receipt."""
    answer = Answer()
    for arguments in ('{"a"', ": 1}"):
        part = {"index": 0, "function": {"name": "f" if "a" in arguments else None, "arguments": arguments}}
        assert answer.add({"choices": [{"delta": {"content": None, "tool_calls": [part]}}]}) == ""
    answer.add({"choices": []})
    assert answer.message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_nothing_that_orders_or_hides_reaches_a_terminal():
    hidden = "a\x1b]0;t\x07\x9b2J\u202eb\u200b\ufeff\U000e0041\ud800\r\n\tc"
    assert plain(hidden) == "a␛]0;t␇⟨9b⟩2J⟨202e⟩b⟨200b⟩⟨feff⟩⟨e0041⟩⟨d800⟩␍\n\tc"


def test_bytes_that_are_no_letters_are_read_as_unknown_ones():
    with scripted("Hello.", "Again.") as server:
        result = CliRunner().invoke(app, ["chat", "--url", server.url], input=b"caf\xe9\nnext\n")
        assert result.exit_code == 0, result.output
        assert [message["content"] for message in messages(server, 1)[::2]] == ["caf\ufffd", "next"]


def test_options_that_do_not_fit():
    for words, what in (
        (["--url", "http://x", "--model", "sapling"], "its own"),
        (["--", "--rows", "3"], "need one to start"),
    ):
        result = CliRunner().invoke(app, ["chat", *words])
        assert (result.exit_code, what in result.output) == (2, True)


def test_a_reply_is_recorded_by_the_real_server(tmp_path: Path):
    """Only what the model writes is planned."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from live.agents import served

    with served(tmp_path, lambda prompt: "Short." if "Shorter" in prompt else "A long answer.") as (url, journal):
        lines = "Write f(n).\nShorter, please.\n/good\n/versions\n"
        result = CliRunner().invoke(app, ["chat", "--url", url, "--max-tokens", "80"], input=lines)
        assert result.exit_code == 0, result.output
        assert "1        served" in result.output
        first, second = journal.exchanges(journal.conversations()[0].id)
        assert (first.kind, first.new_text, second.text) == ("main", "Write f(n).", "Short.")
        assert second.follow_up
        assert (second.follow_up.receipt, second.follow_up.messages[0].content) == (first.receipt, "Shorter, please.")
        assert journal.feedback(second.seq) == [("rating", "1")]


def test_a_server_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It learns, has the options that were given, answers when it is used, and ends with the conversation."""
    program, notes = tmp_path / "serve", list[str]()
    text = "echo $$; echo $@; echo serving m at http://127.0.0.1:9/v1, version 1; exec sleep 60"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with own_server("sapling", ["--rows", "3"], notes.append) as url:
        assert url == "http://127.0.0.1:9/v1"
        assert notes[1] == "-P -m selfdistill serve --model sapling --port 0 --rows 3"
    assert not Path(f"/proc/{notes[0]}").exists()
    result = CliRunner().invoke(app, ["chat", "--model", "m"], input="Hi\n")
    assert "serve --model m --port 0 --learn idle" in result.output
    program.write_text("#!/bin/sh\necho no such option; exit 2\n")
    with pytest.raises(EndpointError, match="exit code 2"), own_server("sapling", [], notes.append):
        pass
    assert notes[-1] == "no such option"
