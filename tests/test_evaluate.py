from __future__ import annotations

import pytest

from core_parts import group
from selfdistill.evaluate import accuracy, mean_reward, roll_out
from selfdistill.models.sampler import SamplingOptions
from selfdistill.render import Renderer
from selfdistill.types import Drop, Message, Outcome, Task
from selfdistill.worlds.base import FunctionWorld

TASKS = [Task(f"t{number}", (Message("user", text),)) for number, text in enumerate(("Say yes.", "What is seven?"))]
SHORT = SamplingOptions(max_new_tokens=6)


def test_accuracy_counts_answers_and_tasks() -> None:
    """5 of 9 answers are right; a world that could not judge is no right answer; one task of three is mostly right."""
    found = accuracy([group([1.0, 1.0, 0.0]), group([1.0, 0.5, 0.4, 0.0]), group([None, 1.0])])
    assert (found.estimate.n, found.estimate.value) == (9, pytest.approx(5 / 9))
    assert 0.2 < found.estimate.low < 5 / 9 < found.estimate.high < 0.9
    assert (found.tasks, found.solved) == (3, 1)


def test_the_mean_reward_is_of_judged_rollouts() -> None:
    assert mean_reward(group([1.0, 0.5, None]).rollouts) == 0.75
    assert mean_reward(group([None]).rollouts) == 0.0


def test_roll_out_samples_every_task_so_many_times_and_names_each_answer(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    asked: list[tuple[str, str]] = []

    def world(task: Task, done) -> Outcome:
        asked.append((task.id, done.uid))
        if done.uid == "x-1-0":
            raise ValueError("unlucky")
        return Outcome(0.25, "no")

    batch = roll_out(
        policy, FunctionWorld(world, "w"), renderer, TASKS, SHORT, rollouts=3, seed=1, label="x", version=7
    )
    assert [g.task.id for g in batch.groups] == ["t0", "t1"]
    assert [r.completion.uid for r in batch.rollouts] == ["x-0-0", "x-0-1", "x-0-2", "x-1-0", "x-1-1", "x-1-2"]
    assert sorted(asked) == sorted((r.task.id, r.completion.uid) for r in batch.rollouts)
    for rollout in batch.rollouts:
        assert rollout.prompt_ids == renderer.prompt(rollout.task.messages)
        assert rollout.completion.policy_version == 7
        assert 1 <= len(rollout.completion.token_ids) <= 6
    unlucky = batch.rollouts[3]
    assert (unlucky.drop, unlucky.outcome) == (Drop.WORLD_RAISED, None)
    assert list(batch.faults) == ["x-1-0"]
    assert "ValueError: unlucky" in batch.faults["x-1-0"]


def test_answers_follow_from_seed_and_name_alone(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    world = FunctionWorld(lambda task, done: Outcome(0.0), "w")

    def texts(tasks: list[Task], seed: int = 1) -> list[str]:
        found = roll_out(policy, world, renderer, tasks, SHORT, rollouts=2, seed=seed, label="x")
        return [rollout.completion.text for rollout in found.rollouts]

    assert texts(TASKS)[:2] == texts(TASKS[:1])
    assert texts(TASKS) == texts(TASKS)
    assert texts(TASKS) != texts(TASKS, seed=2)


def test_other_prompts_may_be_read_in_place_of_the_questions(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    prompts = [renderer.prompt((Message("user", "Traceback:"),)), renderer.prompt((Message("user", "Say no."),))]
    world = FunctionWorld(lambda task, done: Outcome(0.0), "w")
    batch = roll_out(policy, world, renderer, TASKS, SHORT, rollouts=2, seed=1, label="x", prompts=prompts)
    assert [r.prompt_ids for r in batch.rollouts] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert [r.task.id for r in batch.rollouts] == ["t0", "t0", "t1", "t1"]
