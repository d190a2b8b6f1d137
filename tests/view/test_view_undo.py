"""Undo from the pages: the server that has the journal does it, and no other."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from live_parts import served
from selfdistill.errors import RunError
from selfdistill.view.site.journal import journal_of
from selfdistill.view.site.library import Library
from selfdistill.view.site.undo import undo

TOKEN = "the token"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    with served(path) as opened:
        opened.versions.publish("sapling", "adapter-2", parent=1)
    return path


@pytest.fixture
def server(journal: Path) -> Iterator[tuple[str, list[str]]]:
    """The versions of a journal over HTTP, and the paths that were called."""
    called: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"served": 2, "data": journal_of(journal, "")["versions"]})

        def do_POST(self) -> None:
            self.reply({"served": 1, "data": []})

        def reply(self, value: Mapping[str, Any]) -> None:
            called.append(f"{self.command} {self.path}")
            right = self.headers["Authorization"] == f"Bearer {TOKEN}"
            body = json.dumps(value if right else {"error": {"message": "the token is missing or wrong"}}).encode()
            self.send_response(200 if right else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1", called
        http.shutdown()
        thread.join()


def test_the_server_of_the_journal_undoes(journal: Path, server: tuple[str, list[str]]) -> None:
    url, called = server
    assert undo(journal, {"url": url, "token": TOKEN, "version": 2})["served"] == 1
    assert called == ["GET /v1/selfdistill/versions", "POST /v1/selfdistill/undo"]


def test_the_journal_of_a_running_server_is_found(tmp_path: Path) -> None:
    with served(tmp_path / "journal.db"):  # what it holds stands in the write-ahead log
        for path in (tmp_path, tmp_path / "journal.db"):
            (line,) = Library([path]).look()
            assert line.kind == "journal"
            assert [one["state"] for one in journal_of(line.path, "")["versions"]] == ["served"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.db").write_bytes(b"no database")
    assert len(Library([tmp_path]).look()) == 1


def test_everything_else_is_refused_before_anything_is_undone(
    journal: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, called = server
    with served(tmp_path / "other.db"):
        pass
    right = {"url": url, "token": TOKEN, "version": 2}
    for path, change, what in (
        (journal, {"url": "http://example.com/v1"}, "one of this machine"),
        (journal, {"url": "file:///etc/passwd"}, "one of this machine"),
        (journal, {"url": "http://127.0.0.1@example.com/v1"}, "one of this machine"),
        (journal, {"url": "http://127.0.0.1:1/v1"}, "does not answer"),
        (journal, {"token": "another"}, "the token is missing or wrong"),
        (journal, {"version": 1}, "has changed meanwhile"),
        (tmp_path / "other.db", {}, "has another journal"),
    ):
        with pytest.raises(RunError, match=what):
            undo(path, right | change)
    assert "POST /v1/selfdistill/undo" not in called
