"""Runs with reward functions of a user's own: what they return is recorded, what they cannot score ends the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.errors import DataError, EnvError
from tiny_models import tiny_policy_dir

ROWS = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_policy_dir(tmp_path_factory.mktemp("model")))


def trained(model: str, out: Path, env: Any, **settings: Any) -> sd.Run:
    small = {
        "steps": 1,
        "tasks_per_step": 2,
        "rollouts_per_task": 4,
        "sampling": {"max_new_tokens": 8},
        "device": "cpu",
    }
    data = sd.load_data(ROWS, prompt="question")
    return sd.train(model, env=env, data=data, out=out, progress=False, **{**small, "method": "grpo", **settings})


def length(completions, **kwargs):
    return [-abs(20 - len(text)) for text in completions]


def question_repeated(prompts: list[str], completions: list[str], answer: list[str]):
    return [(0.0, f"Of {len(own)} digits.") for own in answer]


def test_functions_of_a_batch_train_and_every_reward_is_recorded(model: str, tmp_path: Path) -> None:
    run = trained(model, tmp_path / "run", [length, question_repeated])
    assert run.summary.env == "python:length+question_repeated"
    rollouts = list(run.rollouts())
    assert {rollout.reward for rollout in rollouts} == {rollout.details["length"] for rollout in rollouts}
    assert min(rollout.reward for rollout in rollouts) < -1
    assert all(rollout.feedback.startswith("Of ") for rollout in rollouts)
    assert run.steps[0].samples > 0
    assert run.steps[0].reward < 0
    assert run.steps[0].accuracy == 0.0


def test_a_reward_that_is_larger_than_1_counts_as_solved_from_the_threshold_on(model: str, tmp_path: Path) -> None:
    def characters(task, completion):
        return len(completion), "Shorter."

    run = trained(model, tmp_path / "run", characters, method=sd.SDPO(context=sd.SolutionOrFeedback(success=1e6)))
    assert run.steps[0].accuracy == 1.0
    assert run.steps[0].contexts == {"feedback": 8}, "no rollout reached the method's threshold"


def text_as_reward(task, completion):
    return "good"


def one_too_few(completions, **kwargs):
    return [1.0] * (len(completions) - 1)


def no_number(completions, **kwargs):
    return [float("nan")] * len(completions)


def in_two_lines(task, completion):
    raise ValueError("2 lines,\n    of which this is one")


def of_messages(completions, **kwargs):
    return [float(len(set(completion[0]["content"]))) for completion in completions]


def another_column(task, completion):
    return float(completion == task["anwser"])


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (text_as_reward, r"expected a number, \(number, feedback\) or an Outcome, got str: 'good'"),
        (one_too_few, "'one_too_few' returned .* expected a list of 8 rewards, one for each completion"),
        (no_number, "'no_number': the reward is not a finite number: nan"),
        (in_two_lines, rf"ValueError: 2 lines, of which this is one, in {re.escape(__file__)}, line \d+\n"),
        (of_messages, r"TypeError: string indices .*\(completions are texts, as the prompts in the data are"),
        (another_column, "has no column 'anwser': did you mean 'answer'"),
    ],
)
def test_a_function_that_scores_nothing_ends_the_run_and_says_why(
    model: str, tmp_path: Path, env: Any, message: str
) -> None:
    with pytest.raises(EnvError, match=rf"failed on more than half(.|\n)*8 of 8 rollouts, first: .*{message}"):
        trained(model, tmp_path / "run", env, evaluation={"tasks": 1})
    assert all(rollout.fault for rollout in sd.read_run(str(tmp_path / "run")).rollouts())


def test_a_column_that_the_data_lack_ends_the_run_before_it_starts(model: str, tmp_path: Path) -> None:
    def solved(completions, answers):
        return [1.0] * len(completions)

    with pytest.raises(DataError, match=r"'solved' reads the column 'answers'.*did you mean 'answer'\?"):
        trained(model, tmp_path / "run", solved)
