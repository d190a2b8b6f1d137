"""What the pages of `selfdistill view` are given, and one page in a file."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from site_runs import HOSTILE, add_step, make_run, row

from selfdistill import read_run
from selfdistill.errors import ConfigError, RunError
from selfdistill.runs import RunDir
from selfdistill.runs.credit import Alternative, AnswerCredit, TokenCredit
from selfdistill.runs.store import METRICS, ROLLOUTS
from selfdistill.types import Context
from selfdistill.view.site import answers as pages
from selfdistill.view.site import journal
from selfdistill.view.site.answers import Answers, in_short
from selfdistill.view.site.app import SCRIPTS, application, static
from selfdistill.view.site.export import export
from selfdistill.view.site.library import Library
from selfdistill.view.site.prompts import compared


@pytest.fixture(scope="module")
def answers(site: Path) -> Answers:
    return Answers(Library([site]))


def ask(answers: Answers, question: str, /, **query: str) -> Any:
    return json.loads(answers(question, query))


def recompute(run: Path, uid: str) -> AnswerCredit:
    """The credit that a checkpoint would compute."""
    if uid != "1-0-1":
        raise RunError("the run has no rollout of this uid", got=uid)
    token = TokenCredit("def", -1.0, -2.0, (Alternative("class", 0.5, float("nan")),))
    return AnswerCredit(run.name, (), Context("solution"), (token,), False, None)


def get(
    answers: Answers, path: str, query: str = "", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request to the application, without a socket."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope |= {"headers": encoded, "http_version": "1.1", "root_path": ""}
    asyncio.run(application(answers, recompute)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def test_the_table_lists_runs_of_any_version_searches_and_journals(answers: Answers) -> None:
    lines = {line["id"]: line for line in ask(answers, "runs")["entries"]}
    assert {name: line["kind"] for name, line in lines.items()} == {
        "new": "run", "old": "run", "search": "search", "search/000-task-0": "run", "search/001-task-1": "run",
        "journal.db": "journal",
    }  # fmt: skip
    assert lines["new"]["status"] == "finished"
    assert lines["new"]["guard"] == "warn"
    before, after = lines["new"]["accuracy"]["train"]
    assert (before["value"], after["value"]) == (0.1, 0.8)
    assert (lines["old"]["method"], lines["old"]["env"], lines["old"]["completions"]) == ("sdpo", "verbs", 1)


def test_a_run_has_every_number_of_every_step(answers: Answers) -> None:
    run = ask(answers, "run", id="new")
    assert run["steps"] == [1, 2, 3]
    assert run["numbers"]["extra/entropy"] == [1.0, 0.5, 1 / 3]
    assert run["numbers"]["dropped/only_success"] == [2, 2, 2]
    assert run["rows"] | {"bytes": 0} == {
        "rows": 24,
        "void": 0,
        "unreadable": 0,
        "torn": False,
        "bytes": 0,
        "sampled": 24,
    }


def test_rows_are_short_filtered_by_text_and_show_where_grpo_differs(answers: Answers) -> None:
    rows = {line["uid"]: line for line in ask(answers, "rows", id="new", steps="2")["rows"]}
    assert len(rows) == 8
    assert rows["2-0-0"]["grpo"] == 0.75
    assert rows["2-0-0"]["against"] is None, "it was not distilled"
    assert rows["2-0-2"]["grpo"] == -0.25
    assert rows["2-0-2"]["largest"] == pytest.approx(7.0)
    assert rows["2-0-2"]["against"] == pytest.approx(1.8), "the largest that the teacher makes likelier"
    assert [line["uid"] for line in ask(answers, "rows", id="new", steps="", q="got 3")["rows"]][:2] == [
        "1-0-3",
        "1-1-3",
    ]
    assert not ask(answers, "rows", id="new", steps="1", q="onerror")["rows"]
    assert [line["uid"] for line in ask(answers, "rows", id="new", steps="", q="onerror")["rows"]] == ["2-1-1"]
    assert len(ask(answers, "rows", id="new", steps="2-3")["rows"]) == 16


@pytest.mark.parametrize(
    ("written", "searched"),
    [("Straße 12", "STRASSE"), ("Ὀδυσσεύς", "ὈΔΥΣΣΕΎΣ"), ('Say "No\\Yes"\n\tÄrger', '"no\\yes"\n\tä'), ("K", "k")],
)
def test_text_is_found_in_upper_and_lower_case(tmp_path: Path, written: str, searched: str) -> None:
    with RunDir.create(tmp_path / "run", {"settings": {}}) as run:
        run.append(row(1, 0, 1, completion=f"x{written}"), row(1, 0, 2, feedback=written), row(1, 0, 3))
    lines = ask(Answers(Library([tmp_path])), "rows", id="run", q=searched)["rows"]
    assert [line["uid"] for line in lines] == ["1-0-1", "1-0-2"]
    assert [line["grpo"] for line in lines] == [0, 0], "the advantage is that of the whole group"


def test_a_long_table_is_sorted_and_filtered_over_all_of_its_pages(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(answers, "rows", id="new")["rows"]
    monkeypatch.setattr(pages, "MOST_ROWS", 5)
    first, last = (ask(answers, "rows", id="new", order=f"page={page}") for page in (0, 4))
    assert [line["uid"] for line in first["rows"]] == [line["uid"] for line in whole[:5]]
    assert (first["first"], first["more"], first["of"]) == (0, True, 24)
    assert ([line["uid"] for line in last["rows"]], last["more"]) == ([line["uid"] for line in whole[20:]], False)
    found = [ask(answers, "rows", id="new", order=f"sort=-against&page={page}")["rows"] for page in range(4)]
    sizes = [line["against"] for rows in found for line in rows]
    assert sizes[:18] == sorted((size for size in sizes if size is not None), reverse=True)
    assert sizes[18:] == [None, None], "rows that were not distilled come last"
    assert all(line["grpo"] == (0.75 if line["uid"].endswith("0") else -0.25) for rows in found for line in rows)
    for order, count in (
        ("outcome=solved", 6), ("outcome=unscored", 0), ("drop=trained", 18), ("kind=solution&sort=reward", 18),
        ("task=task-1", 11), ("group=2-1", 4), ("min=10", 0), ("max=9&outcome=unsolved", 18),
    ):  # fmt: skip
        assert ask(answers, "rows", id="new", order=order)["found"] == count, order
    assert ask(answers, "rows", id="new", order="sort=sum")["labels"] == {
        "kind": ["none", "solution"], "drop": ["only_success", "trained"]
    }  # fmt: skip
    second = ask(answers, "rows", id="new", q="GOT", order="page=1")
    assert [line["uid"] for line in second["rows"]] == ["1-1-3", "2-0-1", "2-0-2", "2-0-3", "2-1-2"]
    assert second["more"]


def test_a_comparison_shows_the_rollouts_and_the_tasks_that_differ_most(answers: Answers) -> None:
    found = ask(answers, "differences", ids="new|search/000-task-0|old")
    new, _, old = found["runs"]
    assert [line["uid"] for line in new["top"]] == ["1-0-3", "1-1-3", "2-0-3", "2-1-3", "3-0-3"]
    assert (new["top"][0]["token"], new["top"][0]["u"], new["top"][0]["grpo"]) == ("):", pytest.approx(2.7), -0.25)
    assert (old["top"][0]["u"], old["top"][0]["token"]) == (-1.5, None), "it recorded no texts of tokens"
    assert found["of"] == 1
    means = [{"mean": 0.25, "n": 12}, {"mean": 0.25, "n": 4}, None]
    assert found["tasks"][0] == {"task": "task-0", "spread": 0, "means": means}


def test_a_resumed_run_is_sorted_without_what_was_taken_back(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", finished=False)
    answers = Answers(Library([tmp_path]))
    assert len(ask(answers, "rows", id="run", order="sort=tokens")["rows"]) == 24
    with RunDir.resume(path, 1) as run:
        add_step(run, 2)
    assert len(ask(answers, "rows", id="run", order="sort=tokens")["rows"]) == 16


def test_a_reward_that_is_not_there_or_not_finite_stays_one() -> None:
    lines = in_short(
        [row(1, 0, 1, reward=None, drop="env_raised"), row(1, 0, 2, reward=0.0), row(1, 0, 3, log_ratio=())]
    )
    assert [line["grpo"] for line in lines] == [None, 0.0, 0.0]
    assert lines[2]["largest"] is None
    assert lines[1]["same_as"] == ""


def test_an_attempt_that_was_made_before_is_named(answers: Answers) -> None:
    rows = ask(answers, "rows", id="search/000-task-0", steps="")["rows"]
    assert [line["same_as"] for line in rows] == ["", "", "", "1-0-2"]
    found = ask(answers, "search", id="search")["tasks"]
    assert [(task["result"]["task"], task["result"]["solved_at"]) for task in found] == [
        ("task-0", 2),
        ("task-1", None),
    ]


def test_a_rollout_comes_whole_with_its_group_and_its_neighbours(answers: Answers) -> None:
    found = ask(answers, "rollout", id="new", step="2", uid="2-1-1")
    assert found["row"]["completion"] == HOSTILE
    assert found["around"] == ["2-1-0", "2-1-2"]
    assert [line["uid"] for line in found["group"]] == [f"2-1-{number}" for number in range(4)]


def test_prompts_are_written_out_with_their_difference(answers: Answers) -> None:
    (turn,) = ask(answers, "prompts", id="new", step="1", uid="1-0-1")["turns"]
    assert (turn["student"], turn["teacher"]) == (7, 14)
    assert [who for who, _ in turn["parts"]] == ["same", "teacher", "same"]
    assert "Correct solution:" in turn["parts"][1][1]
    first, second = ask(answers, "prompts", id="new", step="2", uid="2-1-2")["turns"]
    assert (first["teacher"], second["teacher"]) == (14, 3)
    assert ask(answers, "prompts", id="old", step="1", uid="1-0-0") == {
        "tokenizer": False, "turns": [{"student": 0, "teacher": 0, "parts": []}],
    }  # fmt: skip


def test_parts_of_two_prompts() -> None:
    def decode(ids: Any) -> str:
        return "".join(map(chr, ids))

    def parts(student: str, teacher: str) -> list[tuple[str, str]]:
        return compared(list(map(ord, student)), list(map(ord, teacher)), decode)

    assert parts("abcd", "abXcd") == [("same", "ab"), ("teacher", "X"), ("same", "cd")]
    apart = [("student", "b"), ("teacher", "X"), ("same", "c"), ("student", "d"), ("teacher", "Y")]
    assert parts("abcde", "aXcYe") == [("same", "a"), *apart, ("same", "e")]
    assert parts("aa", "aaa") == [("same", "aa"), ("teacher", "a")]
    assert parts("ab", "ab") == [("same", "ab")]
    assert parts("a" + "x" * 3000, "b" + "y" * 3000) == [("student", "a" + "x" * 3000), ("teacher", "b" + "y" * 3000)]


def test_a_journal_is_read_and_searched(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(answers, "journal", id="journal.db")
    assert found["counts"]["exchanges"] == 2
    assert [version["state"] for version in found["versions"]] == ["served"]
    names = [line["name"] for line in found["conversations"]]
    assert names[0] == "c-hostile"
    assert [line["name"] for line in ask(answers, "journal", id="journal.db", q="BLUE")["conversations"]] == names[1:]
    monkeypatch.setattr(journal, "MOST", 1)
    for page, more in enumerate((True, False)):
        part = ask(answers, "journal", id="journal.db", page=str(page))
        assert ([line["name"] for line in part["conversations"]], part["more"]) == ([names[page]], more)
    (exchange,) = ask(answers, "conversation", id="journal.db", name=names[1])["exchanges"]
    assert (exchange["text"], exchange["feedback"]) == (
        "It scatters blue light.",
        [{"kind": "text", "value": "Shorter, please."}],
    )


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("run", {"id": "../new"}), ("run", {"id": "nwe"}), ("run", {"id": "journal.db"}), ("steps", {"id": "new"}),
        ("rollout", {"id": "new", "step": "1", "uid": "9"}), ("rollout", {"id": "new", "step": "x", "uid": "1-0-0"}),
        ("rows", {"id": "new", "steps": "-"}), ("conversation", {"id": "journal.db", "name": "c-none"}),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(answers: Answers, name: str, query: Mapping[str, str]) -> None:
    with pytest.raises(RunError):
        answers(name, query)


def test_a_damaged_run_is_a_line_with_its_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / METRICS).read_text().splitlines()
    (run / METRICS).write_text("\n".join([lines[0], "{damaged", *lines[1:]]) + "\n")
    (line,) = ask(Answers(Library([run])), "runs")["entries"]
    assert "line 2" in line["error"]


def test_a_run_that_grows_is_seen_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2, finished=False)
    answers = Answers(Library([run]))
    assert ask(answers, "run", id="run")["status"] == "writing"
    with (run / METRICS).open("a") as metrics, (run / ROLLOUTS).open("a") as rollouts:
        metrics.write((run / METRICS).read_text().splitlines()[-1].replace('"step":2', '"step":3') + "\n")
        rollouts.write('{"step":3,"uid":"3-0')
    found = ask(answers, "run", id="run")
    assert found["steps"] == [1, 2, 3]
    assert found["rows"]["torn"]


def test_a_run_that_is_removed_is_an_error_and_no_crash(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    answers = Answers(Library([tmp_path]))
    ask(answers, "rows", id="run", steps="1")
    for file in (ROLLOUTS, METRICS, "config.json", "summary.json"):
        (run / file).unlink()
        assert [get(answers, f"/api/{name}", "id=run&step=1&uid=1-0-0")[0] for name in ("rollout", "runs")] == [
            404,
            200,
        ]
    assert get(answers, "/api/run", "id=run")[0] == 404


def test_nothing_to_view_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError):
            Library([path])


def test_links_out_of_the_directory_are_not_followed(tmp_path: Path, site: Path) -> None:
    make_run(tmp_path / "named" / "run")
    (tmp_path / "named" / "link").symlink_to(site)
    assert [line["id"] for line in ask(Answers(Library([tmp_path / "named"])), "runs")["entries"]] == ["run"]


def test_pages_may_load_nothing_and_other_sites_get_nothing(answers: Answers) -> None:
    status, headers, body = get(answers, "/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert b"<script>" not in body
    status, headers, body = get(answers, "/api/rollout", "id=new&step=2&uid=2-1-1")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert get(answers, "/api/rollout", "id=new&step=2&uid=2-1-1", if_none_match=headers["etag"])[0] == 304
    assert get(answers, "/api/run", "id=../../etc")[0] == 404
    assert get(answers, "/../pyproject.toml")[0] == 404
    assert get(answers, "/", host="evil.example")[0] == 403
    assert get(answers, "/", origin="http://evil.example")[0] == 403
    assert get(answers, "/", origin="http://127.0.0.1:9999")[0] == 403
    assert get(answers, "/api/runs", sec_fetch_site="cross-site")[0] == 403
    assert get(answers, "/api/runs", sec_fetch_site="same-origin", origin="http://127.0.0.1:8000")[0] == 200
    assert get(answers, "/api/runs", method="POST")[0] == 405


def test_credit_is_computed_and_versions_undone_only_for_pages_of_this_program(answers: Answers) -> None:
    status, _, body = get(answers, "/api/credit", "id=new&uid=1-0-1", "POST", origin="http://127.0.0.1:8000")
    found = json.loads(body)
    assert (status, found["model"]) == (200, "new")
    assert found["tokens"][0]["alternatives"] == [{"text": "class", "student": 0.5, "teacher": "NaN"}]
    assert get(answers, "/api/credit", "id=new&uid=9", "POST")[0] == 400
    assert get(answers, "/api/credit", "id=old&uid=1-0-1")[0] == 404, "GET computes nothing"
    for path in ("/api/credit", "/api/undo"):
        assert get(answers, path, "id=new&uid=1-0-1", "POST", origin="http://evil.example")[0] == 403
        assert get(answers, path, "id=new&uid=1-0-1", "POST", sec_fetch_site="cross-site")[0] == 403
    status, _, body = get(answers, "/api/undo", "id=journal.db", "POST")
    assert (status, "one of this machine" in json.loads(body)["error"]) == (400, True)


def test_scripts_are_small_and_never_write_markup() -> None:
    assert len(static(*SCRIPTS)) <= 150_000
    own = static(*(name for name in SCRIPTS if not re.search(r"\d", name)))
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!127\.0\.0\.1)", own)


def test_a_page_in_a_file_holds_the_chosen_steps(tmp_path: Path, site: Path) -> None:
    file = tmp_path / "page.html"
    size = export(site / "new", file, [2])
    text = file.read_text(encoding="utf-8")
    assert size == len(text.encode())
    keys = re.findall(r'data-key="([^"]*)"', text)
    assert keys[:2] == ["run\nnew", "rows\nnew\n2\n\n"]
    assert len(keys) == 2 + 2 * 8
    assert "<img src=x" not in text
    assert "script-src 'sha256-" in text
    with pytest.raises(RunError, match="exists"):
        export(site / "new", file)
    with pytest.raises(RunError, match="no rollouts of this step"):
        export(site / "new", tmp_path / "other.html", [7])


def test_frames_have_the_names_of_the_files(site: Path) -> None:
    run = read_run(site / "new")
    with pytest.raises(ConfigError, match="steps, evals, guards, rollouts"):
        run.frame("step")  # type: ignore[arg-type]
    for library in ("pandas", "polars"):
        module = pytest.importorskip(library)
        assert isinstance(run.frame("steps", library), module.DataFrame)  # type: ignore[arg-type]
        assert list(run.frame("steps", library)["extra/entropy"]) == [1.0, 0.5, 1 / 3]  # type: ignore[arg-type]
        assert [run.frame(t, library).shape[0] for t in ("evals", "guards", "rollouts")] == [4, 1, 24]  # type: ignore[arg-type]
