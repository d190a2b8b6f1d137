"""`sd.evaluate`, `sd.solve` and `sd.compare` take values, as `sd.train` does."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config import read_saved
from selfdistill.errors import ConfigError, DataError, RunError
from selfdistill.runs.events import Interrupted
from selfdistill.test_time.config import config_from
from selfdistill.test_time.strategies.hybrid import Hybrid
from selfdistill.training.session import open_session
from tiny_models import tiny_policy_dir

FILE = f"{Path(__file__).parent / 'test_time' / 'solve_envs.py'}:hints"
ROWS = [{"id": f"q{n}", "prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(3)]
SMALL: dict[str, Any] = {"sampling": {"max_new_tokens": 8}, "device": "cpu", "progress": False}


def no_luck(task: sd.Task, completion: sd.Completion) -> sd.Outcome:
    assert task["answer"]
    return sd.Outcome(0.0, f"Not {completion.text!r}.")


def even(task: sd.Task, completion: sd.Completion) -> sd.Outcome:
    right = len(completion.text) % 2 == 0
    return sd.Outcome(float(right), "" if right else "Write an even number of characters.")


@dataclass(frozen=True, slots=True)
class Mine(sd.Strategy):
    """A strategy of the user's."""

    batch: int = 4

    def prompts(self, state: sd.SolveState, count: int) -> list[sd.Prompt]:
        return [sd.Prompt(state.task.messages)] * count


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_policy_dir(tmp_path_factory.mktemp("model")))


def small(model: str, out: Path | None, **values: Any) -> Any:
    return sd.solve(model, **{"env": no_luck, "task": ROWS[1], "attempts": 8, "out": out, **SMALL, **values})


def test_a_model_is_measured_on_tasks_in_memory_by_a_function(model: str, tmp_path: Path) -> None:
    tasks = [sd.Task(row["id"], (sd.Message("user", row["prompt"]),)) for row in ROWS]
    found = sd.evaluate(model, env=even, data=tasks, rollouts=4, temperature=1.0, out=tmp_path / "run", **SMALL)
    assert found.splits == {"train": found.accuracy}
    assert found.accuracy.n == 12
    assert 0 <= found.accuracy.low < found.accuracy.value < found.accuracy.high <= 1
    records = list(sd.read_run(tmp_path / "run").rollouts())
    assert found.accuracy.value == sum(record.reward or 0.0 for record in records) / 12
    with pytest.raises(ConfigError, match=r"nothing to measure(.|\n)*held_out"):
        sd.evaluate(model, env=even, data=tasks, split="held_out", **SMALL)


def test_the_gain_from_contexts_is_measured_as_on_the_command_line(model: str) -> None:
    found = sd.evaluate(model, env=FILE, teacher=True, rollouts_per_task=2, tasks=2, **SMALL)
    assert found.context_gain is not None
    assert found.accuracy == found.context_gain.bare
    assert found.accuracy.n == 8, "four answers a task, where nothing is set"
    assert [gain.kind for gain in found.context_gain.gains] == ["feedback"]
    assert found.context_gain.decision.startswith("Cannot decide")


def test_one_split_of_the_environment_is_measured(model: str) -> None:
    env = {"name": "verbs", "verbs": 2, "held_out": 2}
    found = sd.evaluate(model, env=env, split="held_out", **SMALL)
    assert list(found.splits) == ["held_out"]
    assert found.accuracy.n == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "heldout"}, "did you mean 'held_out'"),
        ({"split": "train", "teacher": True}, "leave it out"),
        ({"temperature": -1.0}, "evaluation.temperature must be"),
        ({"env": 3}, "env is no environment"),
        ({"stepz": 3}, "unknown setting"),
    ],
)
def test_what_cannot_be_measured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sd.evaluate(**values)


def test_a_row_is_solved_by_a_strategy_with_settings(model: str, tmp_path: Path) -> None:
    events: list[sd.Event] = []
    found = small(model, tmp_path / "out", strategy=Hybrid(batch=4), callbacks=events.append)
    [result] = found.results
    assert (result.task, result.strategy, result.attempts, result.rounds) == ("q1", "hybrid", 8, 2)
    assert (found.solved, found.solution) == (False, "")
    attempts = list(found.attempts())
    assert [attempt.step for attempt in attempts] == [1] * 4 + [2] * 4
    assert attempts == list(found.attempts("q1"))
    assert attempts[0].feedback in attempts[4].prompt
    assert {event.run for event in events if isinstance(event, sd.StepEnd)} == {"q1"}
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["settings"]
    assert (settings["solve"]["strategy"]["name"], settings["solve"]["strategy"]["batch"]) == ("hybrid", 4)
    assert settings["env"]["name"] == "python:no_luck"
    with pytest.raises(ConfigError, match=r"no such task(.|\n)*did you mean 'q1'"):
        list(found.attempts("q2"))
    assert small(model, None, resume=tmp_path / "out", strategy=Hybrid(batch=4)).results == (result,)


def test_a_search_by_names_is_that_of_the_command_line(model: str, tmp_path: Path) -> None:
    settings = {"optimiser.lr": 1e-3, "strategy": {"name": "self-distill", "batch": 4}}
    values = {"env": FILE, "task": ["q0", "q1"], "out": tmp_path / "out", **settings, **SMALL}
    found = sd.solve(model, attempts=4, **values)
    assert [result.task for result in found.results] == ["q0", "q1"]
    assert len(list(found.attempts())) == 8
    saved = read_saved(tmp_path / "out", config_from)
    assert (saved.limits.budget, saved.run.optimiser.lr, saved.run.optimiser.warmup_steps) == (4, 1e-3, 0)
    with pytest.raises(RunError, match=r"cannot change its settings(.|\n)*solve.budget"):
        sd.solve(resume=tmp_path / "out", attempts=5, progress=False)
    with pytest.raises(DataError, match=r"no such task(.|\n)*did you mean 'q1'"):
        sd.solve(model, attempts=4, **values | {"task": "q11", "out": tmp_path / "other"})


def test_ctrl_c_saves_a_search_of_values_and_the_same_values_resume_it(model: str, tmp_path: Path) -> None:
    def press(event: sd.Event) -> None:
        if isinstance(event, sd.Phase) and event.name == "updating":
            os.kill(os.getpid(), signal.SIGINT)

    values = {"strategy": "self-distill", "strategy.batch": 4, "attempts": 12}
    whole = small(model, tmp_path / "whole", **values)
    with pytest.raises(Interrupted, match="stopped after step 1"):
        small(model, tmp_path / "out", **values, callbacks=press)
    saved = read_saved(tmp_path / "out", config_from)
    with pytest.raises(ConfigError, match=r"the env of this run was a value(.|\n)*sd.solve"):
        open_session(saved.run, lambda event: None)
    with pytest.raises(RunError, match=r"cannot change its settings(.|\n)*data"):
        small(model, None, resume=tmp_path / "out", **values, task=ROWS[2])
    resumed = small(model, None, resume=tmp_path / "out", **values)
    assert [replace(result, wall_s=0.0) for result in resumed.results] == [
        replace(result, wall_s=0.0) for result in whole.results
    ]
    assert list(resumed.attempts()) == list(whole.attempts())


def test_a_strategy_of_ones_own_is_a_value_too(model: str, tmp_path: Path) -> None:
    [result] = small(model, tmp_path / "out", strategy=Mine()).results
    assert (result.strategy, result.rounds) == ("python:Mine", 2)
    with pytest.raises(RunError, match=r"the strategy of this run was a value(.|\n)*sd.solve"):
        read_saved(tmp_path / "out", config_from)
    with pytest.raises(ConfigError, match="the strategy of this run was a value"):
        small(model, None, resume=tmp_path / "out")
    assert small(model, None, resume=tmp_path / "out", strategy=Mine()).results == (result,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "hybird"}, "did you mean 'hybrid'"),
        ({"strategy": Hybrid}, "strategy should be a strategy, or its name"),
        ({"strategy": Hybrid(), "strategy.batch": 4}, r"strategy is a value(.|\n)*Hybrid\(batch=…\)"),
        ({"strategy": {"name": "hybrid", "bacth": 4}}, "did you mean 'batch'"),
        ({"attempts": 0}, "budget must be a whole number, 1 or more"),
        ({"attempts": 8, "seconds": 60}, r"one budget(.|\n)*attempts = 8, seconds = 60"),
        ({"task": 3}, "task should be a task"),
        ({"task": ["q0", ROWS[0]]}, "some are names"),
        ({"task": ROWS[0], "data": ROWS}, "given twice"),
        ({"steps": 3}, "does not read this setting(.|\n)*attempts="),
        ({"strategy": "best-of-k", "keep": True}, "does not train"),
        ({"strategy": "best-of-k", "method": sd.SDPO()}, "does not train"),
    ],
)
def test_what_cannot_be_searched_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        sd.solve(out=tmp_path / "out", progress=False, **values)
    assert "command line" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_runs_are_trained_side_by_side_and_resumed(model: str, tmp_path: Path) -> None:
    shared = {"env": "verbs", "tasks_per_step": 1, "rollouts_per_task": 2, "evaluation": {"tasks": 1}, **SMALL}
    runs = {"grpo": {"optimiser.lr": 1e-4, "method": "grpo"}, "sdpo": {"method": sd.SDPO(alpha=0.25)}}
    ends: list[str] = []

    def note(event: sd.Event) -> None:
        ends.extend([event.run] * isinstance(event, sd.RunEnd))

    found = sd.compare(model, runs=runs, steps=1, out=tmp_path / "out", callbacks=note, **shared)
    assert [run.path.name for run in found] == ["grpo", "sdpo"]
    assert sorted(ends) == ["grpo", "sdpo"]
    assert [run.config["settings"]["method"] for run in found] == [{"name": "grpo"}, {"name": "sdpo", "alpha": 0.25}]
    assert [run.config["settings"]["optimiser"]["lr"] for run in found] == [1e-4, 1e-5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there is no run"),
        ({"methods": ["grpo", "grpo"]}, "two methods have one name"),
        ({"runs": {"a/b": {}}}, "the name of a run"),
        (
            {"methods": ["grpo"], "env": even},
            r"'grpo' has a value that no file can hold\n  got  env = even\n(.|\n)*my_env.py:reward",
        ),
        (
            {"methods": ["grpo"], "data": [sd.Task("t", (sd.Message("user", "?"),))]},
            r"no file can hold\n  got  data = list\n",
        ),
        ({"runs": {"a": {"lr": 1.0}}}, "did you mean 'optimiser.lr'"),
    ],
)
def test_what_other_processes_could_not_read_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sd.compare(out=tmp_path / "out", progress=False, **values)
    assert not (tmp_path / "out").exists()
