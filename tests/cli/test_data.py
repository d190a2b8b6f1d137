"""Rows of a user's own as the command line takes them: files, the hub, mapped columns, and a held-out set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from selfdistill import plugins
from selfdistill.cli import app
from selfdistill.runs import read_run
from tiny_models import tiny_policy_dir

ROWS = [{"question": f"What is {n} plus {n}?", "solution": f"#### {2 * n}", "level": n} for n in range(4)]
FILE = """
from selfdistill import Completion, Outcome, Task


def reward(task: Task, completion: Completion) -> Outcome:
    assert set(task.spec) == {"question", "solution", "level", "prompt", "answer"}
    return Outcome(float(completion.text == task["answer"]))


def final(row: dict) -> str:
    return row["solution"].split()[-1]
"""
COLUMNS = ["columns.prompt=question", "columns.answer=my_env.py:final"]
runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_env.py").write_text(FILE)
    for name, rows in (("rows", ROWS), ("others", [*ROWS[2:], {**ROWS[0], "question": "What is 9 plus 9?"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def invoked(*command: str) -> Any:
    return runner.invoke(app, command)


def test_rows_are_checked_with_their_mapped_columns() -> None:
    result = invoked("check", "--data", "rows.jsonl", "--env", "my_env.py:reward", *COLUMNS)
    assert (result.exit_code, "4 of 4 rows can be used" in result.output) == (0, True), result.output
    result = invoked("check", "--data", "rows.jsonl", "--env", "my_env.py:reward", "columns.prompt=questoin")
    assert result.exit_code == 2
    assert "rows.jsonl:1: there is no column 'questoin'" in result.output
    assert "did you mean 'question'?" in result.output


def test_a_data_set_of_the_hub_is_named_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def load_dataset(path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        loaded.append((path, name, split))
        return ROWS

    fake = SimpleNamespace(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=RuntimeError))
    monkeypatch.setattr(plugins, "import_module", lambda name: fake)
    hub = ["--data", "someone/sums", "data_name=main", "data_split=train[:4]"]
    result = invoked("check", *hub, "--env", "my_env.py:reward", *COLUMNS)
    assert (result.exit_code, loaded) == (0, [("someone/sums", "main", "train[:4]")]), result.output


def test_rows_without_an_environment_that_scores_them_say_what_is_missing() -> None:
    result = invoked("train", "--data", "rows.jsonl", "--out", "run")
    assert result.exit_code == 2
    assert "rows.jsonl:1: the row has no shape that is known" in result.output
    assert "--env my_env.py:reward" in result.output
    result = invoked("train", "--data", "someone/sums", "--out", "run")
    assert "pip install 'selfdistill[datasets]'" in result.output or "cannot be loaded" in result.output
    assert not Path("run").exists()


def test_a_run_measures_the_held_out_rows_and_resumes(folder: Path) -> None:
    model = str(tiny_policy_dir(folder / "model"))
    command = ["train", "--model", model, "--data", "rows.jsonl", "--eval-data", "others.jsonl", "--quiet"]
    settings = ["steps=1", "tasks_per_step=2", "rollouts_per_task=2", "sampling.max_new_tokens=4", "device=cpu"]
    result = invoked(*command, "--method", "grpo", "--env", "my_env.py:reward", "--out", "run", *COLUMNS, *settings)
    assert result.exit_code == 0, result.output
    assert "2 of 3 held-out tasks are trained on" in result.output
    run = read_run(Path("run"))
    assert [(record.step, record.tasks) for record in run.evals_of("held_out")] == [(0, 3), (1, 3)]
    assert {rollout.fault for rollout in run.rollouts()} == {""}
    assert invoked("train", "--resume", "run", "steps=2", "--quiet").exit_code == 0
    assert [record.step for record in read_run(Path("run")).steps] == [1, 2]


def test_a_search_reads_the_mapped_columns(folder: Path) -> None:
    model = str(tiny_policy_dir(folder / "model"))
    command = ["solve", "--model", model, "--data", "rows.jsonl", "--env", "my_env.py:reward", "--task", "rows-2"]
    settings = ["sampling.max_new_tokens=4", "device=cpu", "strategy.batch=2"]
    result = invoked(*command, "--strategy", "best-of-k", "--budget", "2", "--out", "found", *COLUMNS, *settings)
    assert result.exit_code in (0, 1), result.output
    assert (folder / "found" / "000-rows-2" / "result.json").exists()
