from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from selfdistill.data.load import question_rows
from selfdistill.data.rows import row_to_task
from selfdistill.data.tasks import (
    bad_rows,
    data_tasks,
    draw_tasks,
    fitting_tasks,
    training_tasks,
    usable_tasks,
    wanted_answers,
)
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.rewards import FunctionEnvironment
from selfdistill.envs.tools import Tools, run_tests
from selfdistill.envs.turns import RepeatedAttempts
from selfdistill.envs.verbs.env import VerbsEnvironment
from selfdistill.errors import ConfigError, DataError
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts, DemonstrationCompletions, SecondAttempts
from selfdistill.types import Message, Outcome, Task
from tiny_models import tiny_tokenizer

TASKS = [Task(str(number), (Message("user", "?" * (number + 1)),)) for number in range(5)]


def names(tasks: list[Task]) -> list[str]:
    return [task.id for task in tasks]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_every_pass_asks_every_task_once_in_an_order_of_its_own(count: int) -> None:
    drawn = [name for step in range(5 * 4) for name in names(draw_tasks(TASKS, count, step, seed=1))]
    passes = [tuple(drawn[start : start + 5]) for start in range(0, len(drawn) - 4, 5)]
    assert len(passes) == 4 * count
    assert all(sorted(each) == ["0", "1", "2", "3", "4"] for each in passes)
    assert len(set(passes)) > 1


def test_what_a_step_asks_follows_from_its_number_and_the_seed() -> None:
    assert draw_tasks(TASKS, 3, 17, seed=1) == draw_tasks(TASKS, 3, 17, seed=1)
    steps = [[tuple(names(draw_tasks(TASKS, 3, step, seed))) for step in range(4)] for seed in (1, 2)]
    assert steps[0] != steps[1]


def test_more_tasks_a_step_than_there_are_are_drawn_again() -> None:
    assert Counter(names(draw_tasks(TASKS, 15, 3, seed=0))) == dict.fromkeys("01234", 3)


@pytest.mark.parametrize("draws", [0, 1, 4, 5, 6, 17])
def test_what_a_run_will_ask_and_be_given_is_counted_over_the_tasks_it_draws(draws: int) -> None:
    """Tasks 1 and 3 of five have a demonstration; those drawn are counted one by one."""
    tasks = [replace(task, demonstration="so" if task.id in ("1", "3") else "") for task in TASKS]
    drawn = [task for step in range(draws) for task in draw_tasks(tasks, 1, step, seed=1)]
    shown = sum(bool(task.demonstration) for task in drawn)
    assert wanted_answers(tasks, (DemonstrationCompletions(),), 8, draws, seed=1) == (0, shown)
    assert wanted_answers(tasks, (Attempts(), SecondAttempts()), 8, draws, seed=1) == (8 * draws, 0)
    assert wanted_answers(tasks, (), 8, draws, seed=1) == (0, 0)


def test_a_task_reads_its_columns_and_names_the_nearest_of_one_that_it_lacks() -> None:
    task = Task("sky", (Message("user", "?"),), {"answer": "blue", "level": 2})
    assert (task["answer"], task["level"]) == ("blue", 2)
    with pytest.raises(KeyError, match="task 'sky' has no column 'anwser': did you mean 'answer'"):
        task["anwser"]
    with pytest.raises(KeyError, match="no column 'x': known: answer, level"):
        task["x"]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_become_tasks_and_unknown_fields_go_to_the_environment(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{why}?"}]
    file = write(
        tmp_path / "rows.jsonl",
        {"prompt": "7 + 5?", "answer": 12},
        "",
        {"prompt": turns, "id": 9, "demonstration": "so", "document": "known"},
    )
    first, second = question_rows(file)
    assert first == Task("rows-1", (Message("user", "7 + 5?"),), {"prompt": "7 + 5?", "answer": 12})
    assert second.id == "9"
    assert second.messages == (Message("system", "Be brief."), Message("user", "{why}?"))
    assert (second["id"], second.demonstration, second.document) == (9, "so", "known")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, r"there is no column 'prompt'[\s\S]*columns question"),
        ([1, 2], "expected a JSON object"),
        ('{"prompt": ', "not JSON"),
        ({"prompt": 7}, "field 'prompt': expected a statement, as text or as a list of messages"),
        ({"prompt": ""}, "field 'prompt': expected a statement"),
        ({"prompt": []}, "field 'prompt': expected a statement"),
        ({"prompt": ["hello"]}, r"field 'prompt\[0\]': expected a message"),
        ({"prompt": [{"role": "robot", "content": "?"}]}, r"field 'prompt\[0\].role': expected one of system, user"),
        ({"prompt": [{"role": "user", "content": 3}]}, r"field 'prompt\[0\].content': expected text"),
        ({"prompt": [{"role": "user"}]}, r"field 'prompt\[0\]': expected a message"),
        ({"prompt": [{"role": "assistant", "content": "So"}]}, r"field 'prompt\[0\].role': .* ends with a user turn"),
        ({"prompt": "?", "demonstration": 5}, "field 'demonstration': expected text"),
        ({"prompt": "?", "document": ["a"]}, "field 'document': expected text"),
        ({"prompt": "?", "id": [1]}, "field 'id': expected text or an integer"),
        ({"prompt": "?", "user_reply": "\ud83d no"}, r"field 'user_reply': half of a surrogate pair"),
        ({"prompt": "?", "deep": {"a": [0, {"\udc00": 1}]}}, r"field 'deep.a\[1\].\\\\udc00': half of a surrogate"),
        ({"prompt": "another", "id": "rows-1"}, "field 'id': the id 'rows-1' was used in .*:1"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    file = write(tmp_path / "rows.jsonl", {"prompt": "7 + 5?"}, row)
    with pytest.raises(DataError, match=message) as caught:
        question_rows(file)
    assert str(caught.value).startswith(f"{file}:2: ")


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*none.jsonl"):
        question_rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        question_rows(write(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        question_rows(tmp_path / "binary.jsonl")


def test_an_environment_without_tasks_needs_a_file() -> None:
    env = FunctionEnvironment(lambda task, done: Outcome(1.0), "bare")
    with pytest.raises(ConfigError, match=r"'bare' has no tasks of its own[\s\S]*--data"):
        training_tasks(env, "")
    assert training_tasks(FunctionEnvironment(lambda task, done: Outcome(1.0), "own", TASKS), "") == TASKS


def test_questions_that_do_not_fit_are_counted(recorder) -> None:
    renderer = Renderer(tiny_tokenizer(), context_length=100, max_teacher_tokens=100)
    lengths = [len(renderer.prompt(task.messages)) for task in TASKS]
    assert lengths == sorted(lengths)
    limit = lengths[2]
    assert fitting_tasks(TASKS, renderer, limit, recorder) == [task for task in TASKS if lengths[int(task.id)] <= limit]
    left_out = sum(length > limit for length in lengths)
    assert recorder.notes == ([f"{left_out} of 5 tasks are skipped: longer than {limit} tokens"] if left_out else [])
    with pytest.raises(DataError, match="no question fits the model"):
        fitting_tasks(TASKS, renderer, 3, recorder)


def test_one_token_of_the_context_is_left_for_the_answer(recorder) -> None:
    tokenizer = tiny_tokenizer()
    size = len(Renderer(tokenizer, 1000, 1000).prompt(TASKS[0].messages))
    with pytest.raises(DataError, match=f"longer than {size - 1} tokens"):
        fitting_tasks(TASKS[:1], Renderer(tokenizer, size, 1000), 1000, recorder)
    assert fitting_tasks(TASKS[:1], Renderer(tokenizer, size + 1, 1000), 1000, recorder) == TASKS[:1]


BROKEN = {"task_id": 2, "text": "Add.", "test_list": ["assert add(1, 2 == 3"]}


def test_tasks_that_no_answer_satisfies_are_left_out_of_what_is_measured(recorder) -> None:
    fine = row_to_task({"task_id": 1, "text": "Add.", "test_list": ["assert add(1, 2) == 3"]})
    broken = row_to_task(BROKEN, compiled=False)
    bad = bad_rows(CodeEnvironment(), [fine, broken])
    assert usable_tasks([fine, broken], bad, recorder) == [fine]
    (note,) = recorder.notes
    assert "1 of 2 tasks are left out" in note
    assert "public[0]: expected Python that compiles" in note
    assert usable_tasks([broken], bad, recorder, least=0) == []
    with pytest.raises(DataError, match=r"task '2': public\[0\]"):
        usable_tasks([broken], bad, recorder)


def test_questions_that_an_environment_of_programs_cannot_score_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"prompt": "7 + 5?", "answer": 12})
    with pytest.raises(DataError, match=r"rows.jsonl: task 'rows-1' has an unknown kind of tests"):
        training_tasks(VerbsEnvironment(), str(file))


@pytest.mark.parametrize("around", [lambda env: RepeatedAttempts(env, 3), lambda env: Tools([run_tests], env)])
def test_conversations_about_programs_read_the_rows_of_programs(tmp_path: Path, around) -> None:
    row = {"task_id": 2, "text": "Add two numbers.", "test_list": ["assert add(1, 2) == 3"]}
    rows = str(write(tmp_path / "mbpp.jsonl", row))
    env = around(CodeEnvironment())
    assert data_tasks(env, rows) == data_tasks(env.env, rows)
    assert isinstance(env.for_evaluation().for_evaluation(), type(env))
    assert env.isolation == env.env.isolation
    with pytest.raises(DataError, match="no answer to a task can be scored"):
        usable_tasks([TASKS[0]], bad_rows(env, [TASKS[0]]), lambda _: None)
