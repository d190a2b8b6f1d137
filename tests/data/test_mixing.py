"""Which tasks a step draws: several sets by weight, and none that were solved lately; a resumed run draws the same."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.api import run_config
from selfdistill.cli.arguments import mixture
from selfdistill.config import from_settings, load_config, resolved
from selfdistill.data import lines
from selfdistill.data.mixing import MixedTasks, next_tasks
from selfdistill.data.tasks import draw_tasks
from selfdistill.envs.registry import make_environment
from selfdistill.errors import ConfigError, DataError
from selfdistill.training.steps import solved_lately
from selfdistill.types import Completion, Message, Outcome, Rollout, RolloutGroup, Task
from tiny_models import tiny_policy_dir


def tasks_named(letter: str, count: int) -> list[Task]:
    return [Task(f"{letter}{n}", (Message("user", f"{letter} {n}?"),), {"answer": letter}) for n in range(count)]


A, B = tasks_named("a", 3), tasks_named("b", 5)
MIXED = MixedTasks({"a": A, "b": B}, [3, 1])


def drawn_by(
    tasks: Any, steps: int, count: int = 4, skip: int = 0, solved: dict[str, int] | None = None
) -> list[list[str]]:
    used: dict[str, int] = {}
    options: dict[str, Any] = {"drawn": used, "solved": solved or {}, "skip": skip}
    return [[task.id for task in next_tasks(tasks, count, step, 7, **options)[0]] for step in range(steps)]


def test_a_mixture_draws_by_weight_and_each_set_in_passes() -> None:
    steps = drawn_by(MIXED, 30)
    assert all(Counter(name[0] for name in step) == {"a": 3, "b": 1} for step in steps), "exact in every step"
    every = [name for step in steps for name in step]
    assert Counter(every) == {**{f"a/a{n}": 30 for n in range(3)}, **{f"b/b{n}": 6 for n in range(5)}}
    assert steps == drawn_by(MIXED, 30) != drawn_by(MixedTasks(MIXED.sets, [1, 1]), 30)
    shares = Counter(name[0] for step in drawn_by(MixedTasks(MIXED.sets, [2, 1]), 30, count=1) for name in step)
    assert shares["a"] + shares["b"] == 30
    assert 12 <= shares["a"] <= 28


def test_a_mixture_is_its_sets_one_after_the_other() -> None:
    assert [task.id for task in MIXED] == [*(f"a/a{n}" for n in range(3)), *(f"b/b{n}" for n in range(5))]
    assert (MIXED[-1].id, MIXED[3].data_set, len(MIXED)) == ("b/b4", "b", 8)
    assert [task.id for task in MIXED.first(4)] == ["a/a0", "a/a1", "a/a2", "b/b0"]
    assert [task.id for task in MixedTasks({"x": A, "y": A}, [1, 1])] == [f"{s}/a{n}" for s in "xy" for n in range(3)]


def test_tasks_that_were_solved_lately_are_passed_over_until_they_come_back() -> None:
    plain = [[task.id for task in draw_tasks(B, 4, step, 7)] for step in range(6)]
    assert drawn_by(B, 6, skip=2) == plain
    options: dict[str, Any] = {"drawn": {}, "solved": {"b1": 3, "b2": 4}, "skip": 2}
    found, passed_over = next_tasks(B, 6, 5, 7, **options)
    assert {task.id for task in found} == {"b0", "b3", "b4"}
    assert passed_over >= 2
    assert {task.id for task in next_tasks(B, 5, 6, 7, **{**options, "drawn": {}})[0]} == {"b0", "b1", "b3", "b4"}
    found, passed_over = next_tasks(A, 3, 1, 7, drawn={}, solved=dict.fromkeys(("a0", "a1", "a2"), 0), skip=9)
    assert (len(found), passed_over) == (3, 9), "where all are left out they are drawn all the same"


def test_a_task_is_solved_when_all_its_answers_are() -> None:
    def group(task: Task, *rewards: float | None) -> RolloutGroup:
        outcomes = [None if reward is None else Outcome(reward) for reward in rewards]
        return RolloutGroup(task, tuple(Rollout(task, (), Completion("", ""), outcome) for outcome in outcomes))

    groups = [group(A[0], 1.0, 1.0), group(A[1], 1.0, 0.0), group(A[2], 1.0, None), group(B[0])]
    assert solved_lately({"a1": 6, "b1": 6, "b2": 3}, groups, step=7, skip=3) == {"a0": 7, "b1": 6}


def rows(path: Path, letter: str, count: int) -> str:
    lines_ = [{"id": f"{n}", "prompt": f"{letter} {n}?", "answer": letter} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines_))
    return str(path)


def test_a_mixture_is_set_by_pairs_by_files_and_by_rows(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = rows(tmp_path / "set.jsonl", "a", 2), rows(tmp_path / "other" / "set.jsonl", "b", 3)
    config = load_config(None, [("data", mixture([f"{files[0]}=2", files[1]])), "env=text"])
    tasks = config.tasks_of(config.make_env())
    assert isinstance(tasks, MixedTasks)
    assert ({name: len(own) for name, own in tasks.sets.items()}, tasks.weights) == ({"set": 2, "set-2": 3}, (2, 1))
    assert from_settings(json.loads(json.dumps(resolved(config)))) == config
    assert run_config({}, data=[(files[0], 2), (Path(files[1]), 1)], env="text") == config
    assert load_config(None, [f'data=[["{files[0]}", 2], "{files[1]}"]', "env=text"]) == config
    held = run_config({}, data=[(files[0], 2), ([{"prompt": "?", "answer": 1}], 1)], env="text")
    assert [one.source.partition(", sha256")[0] for one in held.data] == [files[0], "python:data2 1 tasks"]
    assert {task.data_set for task in held.tasks_of(held.make_env())} == {"set", "data2"}
    (tmp_path / "year=2").mkdir()
    assert mixture([str(tmp_path / "year=2"), "a"]) == [{"source": str(tmp_path / "year=2")}, {"source": "a"}]
    assert mixture(["a=2"]) == "a=2"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([("FILE", 0), ("FILE", 1)], r"data.1.weight must be a number above 0(.|\n)*data.1.weight = 0"),
        ([("FILE", 1), ("FILE", -1)], r"data.2.weight must be a number above 0"),
        ([("FILE", float("inf"))], r"data.1.weight must be a number above 0"),
        ([("FILE", "2")], r"data.1.weight should be a number"),
        ([([], 1), ("FILE", 1)], "data1: no rows"),
        ([("none.jsonl", 1), ("FILE", 1)], "cannot be read"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_from_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    file = rows(tmp_path / "set.jsonl", "a", 2)
    sets = [(file if one == "FILE" else one, weight) for one, weight in data]
    with pytest.raises((ConfigError, DataError), match=message):
        run_config({}, data=sets, env="text").tasks_of(make_environment("text", {}, seed=0))
    with pytest.raises(ConfigError, match=r"weight of a data set should be a number(.|\n)*--data b=x"):
        mixture(["a", "b=x"])


def solved_a(task: Task, completion: Completion) -> float:
    return float(task["answer"] == "a" or len(completion.text) % 2)


def test_a_run_over_a_mixture_records_the_sets_and_resumes_exactly(tmp_path: Path, monkeypatch) -> None:
    """All answers to the set a are right: its two tasks are left out of the next two steps where others are there."""
    monkeypatch.setattr(lines, "CHECKED_ROWS", 2)  # the second set is long
    files = rows(tmp_path / "a.jsonl", "a", 2), rows(tmp_path / "b.jsonl", "b", 5)
    values: dict[str, Any] = {
        "data": [(files[0], 1), (files[1], 1)],
        "env": solved_a,
        "method": "grpo",
        "skip_solved": 2,
        "tasks_per_step": 2,
        "rollouts_per_task": 2,
        "sampling": {"max_new_tokens": 4},
        "evaluation": {"every": 0, "tasks": 2},
        "checkpoint_every": 2,
        "device": "cpu",
        "progress": False,
    }
    model = tiny_policy_dir(tmp_path / "model")
    whole = sd.train(model, steps=4, out=tmp_path / "whole", **values)
    half = sd.train(model, steps=2, out=tmp_path / "half", **values)
    half = sd.train(resume=half.path, steps=4, env=solved_a, progress=False)
    drawn = [[(r.step, r.task, r.data_set, r.completion) for r in run.rollouts()] for run in (whole, half)]
    assert drawn[0] == drawn[1]
    assert Counter(name for _, _, name, _ in drawn[0]) == {"a": 8, "b": 8}
    assert all(task.startswith(f"{name}/") for _, task, name, _ in drawn[0])
    first, second, third, _ = (
        {task for step, task, name, _ in drawn[0] if (step, name) == (n, "a")} for n in (1, 2, 3, 4)
    )
    assert first != second, "a solved task is not drawn again in the next step"
    assert [step.extra["solved_passed_over"] for step in whole.steps][2] >= 2
    assert [replace(s, wall_s=0, seconds={}) for s in whole.steps] == [
        replace(s, wall_s=0, seconds={}) for s in half.steps
    ]
    assert len(third) == 1
