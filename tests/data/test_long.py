"""Long data sets: rows that stay in their file, checked when they are drawn; and how rows become tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.api import run_config
from selfdistill.config import load_config
from selfdistill.data import lines
from selfdistill.data.lines import FileLines
from selfdistill.data.reading import BadRow, LazyTasks
from selfdistill.data.tasks import bad_rows, described_tasks, draw_tasks, fitting_tasks, too_long, wanted_answers
from selfdistill.errors import DataError
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts
from selfdistill.types import Task
from tiny_models import tiny_tokenizer

ROWS = [{"id": f"r{n}", "prompt": f"{n} + {n}?", "answer": 2 * n} for n in range(8)]
CODE = {"prompt": "Square it.", "test_list": ["assert g(2) == 4"]}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than four rows are many, the first two are checked."""
    monkeypatch.setattr(lines, "CHECKED_ROWS", 4)
    monkeypatch.setattr(lines, "FIRST_ROWS", 2)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_lines_are_found_by_their_place_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \t\n{"a": "\xc3\xa9\xe2\x80\xa8"}\n{"a": 3}')
    found = FileLines(path)
    assert list(found) == [(1, b'{"a": 1}\r\n'), (4, b'{"a": "\xc3\xa9\xe2\x80\xa8"}\n'), (5, b'{"a": 3}')]
    assert found[-1] == found[1:][1] == (5, b'{"a": 3}')
    assert len(FileLines(path, limit=2)) == 2
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(DataError, match="the data file cannot be read"):
        FileLines(tmp_path / "none.jsonl")


def test_a_long_set_holds_the_tasks_of_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "rows.jsonl", *ROWS)
    sources: list[Any] = [path, ROWS, iter(ROWS), tuple(ROWS)]
    wanted = sd.load_data(ROWS)
    monkeypatch.setattr(lines, "CHECKED_ROWS", 4)
    for source in sources:
        tasks = sd.load_data(source)
        assert isinstance(tasks, LazyTasks)
        assert [task.messages for task in tasks] == [task.messages for task in wanted]
        assert (tasks[-1].id, [task["answer"] for task in tasks[1:3]], len(tasks)) == ("r7", [2, 4], 8)
    again = sd.load_data(tasks)  # tasks pass through
    assert isinstance(again, LazyTasks)
    assert list(again) == list(wanted)
    assert described_tasks(tasks).startswith("8 tasks, sha256 ")
    assert described_tasks(tasks) == described_tasks(again) != described_tasks(sd.load_data(ROWS[1:]))
    monkeypatch.setattr(lines, "CHECKED_ROWS", 7)
    other = sd.load_data([*ROWS[:-1], {**ROWS[-1], "answer": 0}])
    assert described_tasks(tasks) != described_tasks(other)
    assert isinstance(sd.load_data(path, limit=3), list)
    pictures = [{**row, "image": object()} for row in ROWS]
    assert "image" not in sd.load_data(pictures, image=None)[5].spec


@pytest.mark.usefixtures("short")
def test_bad_rows_among_the_first_are_refused_and_later_ones_when_they_are_drawn(tmp_path: Path, recorder) -> None:
    bad: list[object] = [
        '{"id": ',
        {"id": "x", "answer": 1},
        {"id": "y", "prompt": 3},
        {"id": "z", "prompt": "z" * 400},
    ]
    path = jsonl(tmp_path / "rows.jsonl", *ROWS[:3], *bad)
    config = load_config(None, [f"data={path}", "env=text"])
    env = config.make_env()
    tasks = config.tasks_of(env)
    reasons = bad_rows(env, tasks)
    assert [(name, why.partition("\n")[0]) for name, why in reasons.items()] == [
        ("rows-4", f"{path}:4: not JSON"),
        ("rows-5", f"{path}:5: there is no column 'prompt'"),
        ("rows-6", f"{path}:6: question row: field 'prompt': expected a statement, as text or as a list of messages"),
        ("z", f"task 'z': there is no column 'answer', got columns id, prompt; {reasons['z'].split('; ', 1)[1]}"),
    ]
    assert isinstance(tasks[3], BadRow)
    renderer = Renderer(tiny_tokenizer(), context_length=200, max_teacher_tokens=100)
    assert fitting_tasks(tasks, renderer, 150, recorder) is tasks
    assert recorder.notes == ["7 tasks: those behind the first 2 are checked when drawn"]
    (reason,) = too_long(tasks, renderer, 150).items()
    assert reason[0] == "z"
    assert "more than 150" in reason[1]
    with pytest.raises(DataError, match="no question fits the model"):
        fitting_tasks(tasks, renderer, 3, recorder)
    jsonl(path, ROWS[0], '{"id": ', *ROWS[2:])
    with pytest.raises(DataError, match=r"rows.jsonl:2: not JSON"):
        config.tasks_of(env)
    path.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"prompt": "\xff"}\n' + b"\n{}" * 9)
    with pytest.raises(DataError, match=r"rows.jsonl:2: the line cannot be read\n  got  the byte 0xff"):
        config.tasks_of(env)


def test_passes_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of every version draw the same tasks from one seed, whatever holds them."""
    order = list(range(8))
    random.Random("7 1").shuffle(order)
    listed = sd.load_data(ROWS)
    assert [task.id for task in draw_tasks(listed, 4, 2, seed=7)] == [f"r{n}" for n in order[:4]]
    monkeypatch.setattr(lines, "CHECKED_ROWS", 4)
    tasks = sd.load_data(ROWS)
    for step in range(6):
        assert draw_tasks(tasks, 3, step, seed=7) == draw_tasks(listed, 3, step, seed=7)
    assert wanted_answers(tasks, (Attempts(),), 4, 100, seed=7) == (400, 0)


@pytest.mark.usefixtures("short")
def test_a_long_log_is_counted_once_and_read_when_it_is_used() -> None:
    talk = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(5)]
    log = [{"messages": talk[: 2 + n % 4]} for n in range(6)]
    tasks = sd.load_chats(log)
    assert isinstance(tasks, LazyTasks)
    assert [(task.id, task.user_reply) for task in tasks][:3] == [
        ("row-2-1", "turn 2"),
        ("row-3-1", "turn 2"),
        ("row-4-1", "turn 2"),
    ]
    assert (len(tasks), tasks.left_out) == (5, {"no_next_turn": 3})
    assert tasks.summary.startswith("5 answers")


def test_one_place_decides_what_a_row_is() -> None:
    """By the environment, however it is named: rows of a program become what the lines of a file become."""
    log = [{"messages": [{"role": r, "content": r} for r in ("user", "assistant", "user")]}]
    for method in ("user_replies", "opcd"):
        config = run_config({}, method=method, data=log)
        (task,) = config.values.tasks
        assert (config.env.name, task.logged_answer, task.user_reply) == ("chats", "assistant", "user")
        assert config.tasks_of(config.make_env()) is config.values.tasks, "with the counts of what was left out"
    config = run_config({}, data=[CODE], settings={"env": {"name": "code", "turns": 3}})
    assert [task.spec["kind"] for task in config.tasks_of(config.make_env())] == ["assert"]

    class Own:
        name = "own"
        row_kind = "programs"

        def score(self, task: Task, completion: sd.Completion) -> float:
            return 0.0

    assert run_config({}, env=Own(), data=[CODE]).values.tasks[0].spec["kind"] == "assert"
    Own.row_kind = "program"
    with pytest.raises(
        sd.SelfDistillError, match="row_kind of the environment 'own' should be one of questions, programs"
    ):
        run_config({}, env=Own(), data=[CODE])


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.xlsx"])
def test_a_table_is_refused_with_how_to_convert_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("prompt,answer\n1 + 1?,2\n")
    with pytest.raises(DataError, match=rf"(?s)not read.*{name}.*JSONL.*Parquet.*pandas.read_\w+\('{name}'\).to_json"):
        sd.load_data(tmp_path / name)


def test_a_function_that_returns_none_and_an_inner_column_that_is_missing_say_so() -> None:
    with pytest.raises(DataError, match=r"(?s)row:1: the function of the column 'prompt' returns None.*'gold': 1"):
        sd.load_data([{"gold": 1}], prompt=lambda row: None)
    with pytest.raises(DataError, match=r"did you mean 'reward_model\.ground_truth'"):
        sd.load_data([{"prompt": "?", "reward_model": {"ground_truth": 1}}], answer="reward_model.groundtruth")
