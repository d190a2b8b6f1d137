from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfdistill.errors import EnvError
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import sample
from selfdistill.runs import read_run
from selfdistill.training.evaluation import measure
from selfdistill.training.loop import train
from selfdistill.types import Completion


def test_every_split_that_a_world_has_is_measured_by_its_other_judge(config_of) -> None:
    records = measure(config_of("Splits", evaluation={"tasks": 2, "rollouts": 3, "temperature": 1.0}))
    assert [(record.split, record.tasks, record.accuracy.n) for record in records] == [
        ("train", 2, 6), ("held_out", 1, 1), ("forgetting", 1, 1),
    ]  # fmt: skip
    assert [record.accuracy.value for record in records] == [1.0, 1.0, 1.0]


def test_a_world_with_training_tasks_alone_is_measured_on_those(config_of) -> None:
    (record,) = measure(config_of("never"))
    assert (record.split, record.accuracy.value, record.tasks, record.solved) == ("train", 0.0, 2, 0)


def test_greedy_answers_of_a_task_are_one_observation_and_are_sampled_once(config_of, recorder) -> None:
    """One greedy answer and 64 of them are worth the same; 64 are not sampled."""
    once, often = (config_of("hashed", evaluation={"tasks": 4, "rollouts": count}, out="") for count in (1, 64))
    assert measure(often, recorder) == measure(once)
    assert measure(often)[0].accuracy.n == 4
    assert any("sample 1 per task, not 64" in note for note in recorder.notes)


def test_the_teachers_accuracy_counts_tasks_once_each(config_of) -> None:
    """Two attempts at one task read the same instruction: greedily that is one prompt and one answer."""
    method = {"name": "opcd", "context": {"text": "Be brief."}}
    run = read_run(train(config_of("never", steps=1, method=method)))
    assert [(record.tasks, record.accuracy.n) for record in run.evals_of("teacher")] == [(2, 2), (2, 2)]


def test_measuring_gives_the_same_numbers_again_and_keeps_its_answers_where_asked(config_of) -> None:
    kept = config_of("hashed", evaluation={"tasks": 4, "rollouts": 4, "temperature": 1.0})
    records = measure(kept)
    assert measure(replace(kept, out="")) == records
    run = read_run(Path(kept.out))
    assert list(run.evals) == records
    rewards = [rollout.reward for rollout in run.rollouts()]
    assert len(rewards) == 16
    assert records[0].accuracy.value == pytest.approx(sum(rewards) / 16)


def test_the_teacher_is_measured_with_the_context_and_only_where_there_is_one(config_of, tmp_path) -> None:
    asked = read_run(train(config_of("hashed", steps=1))).evals_of("teacher")
    assert [record.step for record in asked] == [0, 1]
    assert all(record.accuracy.n > 0 for record in asked)
    bare = config_of("hashed", steps=1, method="grpo", out=str(tmp_path / "grpo"))
    assert not read_run(train(bare)).evals_of("teacher")
    no_signal_steps = config_of("never", steps=1, out=str(tmp_path / "no_signal_steps"))
    assert not read_run(train(no_signal_steps)).evals_of("teacher"), "no attempt taught anything"


def test_measurements_come_as_often_as_asked_and_always_at_both_ends(config_of, tmp_path) -> None:
    run = read_run(train(config_of("hashed", steps=5, evaluation={"every": 2, "tasks": 1})))
    assert [record.step for record in run.evals_of("train")] == [0, 2, 4, 5]
    ends = config_of("hashed", steps=2, evaluation={"every": 0, "tasks": 1}, out=str(tmp_path / "ends"))
    assert [record.step for record in read_run(train(ends)).evals_of("train")] == [0, 2]


def test_measuring_asks_for_no_gradient_and_keeps_no_wide_copies(config_of, monkeypatch) -> None:
    seen: list[torch.nn.Parameter] = []

    def watched(policy: Policy, *rest, **named) -> list[Completion]:
        seen.extend(policy.model.parameters())
        return sample(policy, *rest, **named)

    monkeypatch.setattr("selfdistill.training.samples.sample", watched)
    measure(config_of("never", dtype="bfloat16"))
    assert seen
    assert {(value.dtype, value.requires_grad) for value in seen} == {(torch.bfloat16, False)}


def test_a_world_that_cannot_judge_is_no_accuracy_of_zero(config_of) -> None:
    config = config_of("broken")
    with pytest.raises(EnvError, match=r"failed on more than half[\s\S]*RuntimeError: always broken"):
        measure(config)
    faults = [(rollout.drop, rollout.fault) for rollout in read_run(Path(config.out)).rollouts()]
    assert faults
    assert all(drop == "env_raised" and "in broken" in fault for drop, fault in faults)


def test_a_run_says_what_was_not_judged_while_measuring(config_of, recorder) -> None:
    with pytest.raises(EnvError, match="more than half of a batch"):
        train(config_of("broken"), recorder)
    assert any("2 answers count as wrong, not scored: RuntimeError: always broken" in note for note in recorder.notes)
