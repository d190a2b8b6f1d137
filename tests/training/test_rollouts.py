from __future__ import annotations

from dataclasses import replace

import pytest

from core_parts import QUESTION, group
from selfdistill.envs.rewards import FunctionEnvironment
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.context import without_thinking
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import (
    Attempts,
    DemonstrationCompletions,
    ReflectedAttempts,
    Reflections,
    SecondAttempts,
)
from selfdistill.runs.stats import wilson_interval
from selfdistill.training.evaluation import accuracy
from selfdistill.training.recording import step_record
from selfdistill.training.samples import CreditedRollout, roll_out
from selfdistill.training.session import Totals
from selfdistill.types import Completion, DropReason, Message, Outcome, Rollout, RolloutGroup, Task

TASKS = [Task(f"t{number}", (Message("user", text),)) for number, text in enumerate(("Say yes.", "What is seven?"))]
SHORT = SamplingOptions(max_new_tokens=6)


def of(name: str, rewards: list[float | None]) -> RolloutGroup:
    return group(rewards, task=Task(name, QUESTION.messages))


def rollouts_of(groups: list[RolloutGroup]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def test_accuracy_counts_answers_and_tasks() -> None:
    """5 of 9 answers are right; an environment that could not judge is no right answer; one task of three is mostly
    right."""
    found = accuracy([of("a", [1.0, 1.0, 0.0]), of("b", [1.0, 0.5, 0.4, 0.0]), of("c", [None, 1.0])])
    assert (found.estimate.n, found.estimate.value) == (9, pytest.approx(5 / 9))
    assert 0.1 < found.estimate.low < 5 / 9 < found.estimate.high < 0.95
    assert (found.tasks, found.solved) == (3, 1)


def test_groups_of_one_task_are_one_cluster() -> None:
    """Eight answers to each of two tasks are worth two observations where they agree, however they are grouped."""
    whole = accuracy([of("a", [1.0] * 8), of("b", [0.0] * 8)])
    split = accuracy([of("a", [1.0] * 3), of("b", [0.0] * 8), of("a", [1.0] * 5)])
    assert split == whole
    assert (whole.estimate.low, whole.estimate.high) == wilson_interval(1, 2)


def test_the_mean_reward_of_a_step_is_of_scored_rollouts() -> None:
    def reward(*rewards: float | None) -> float:
        credited = [CreditedRollout(rollout) for rollout in group([*rewards]).rollouts]
        return step_record(Totals(), credited, [], 0.0, {}, {}, {}).reward

    assert reward(1.0, 0.5, None) == 0.75
    assert reward(None) == 0.0


def test_roll_out_samples_every_task_so_many_times_and_names_each_answer(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    asked: list[tuple[str, str]] = []

    def env(task: Task, done: Completion) -> Outcome:
        asked.append((task.id, done.uid))
        if done.uid == "x-1-0":
            raise ValueError("unlucky")
        return Outcome(0.25, "no")

    groups = roll_out(
        policy, FunctionEnvironment(env, "w"), renderer, TASKS, SHORT, rollouts=3, seed=1, label="x", version=7
    )
    assert [g.task.id for g in groups] == ["t0", "t1"]
    assert [r.completion.uid for r in rollouts_of(groups)] == ["x-0-0", "x-0-1", "x-0-2", "x-1-0", "x-1-1", "x-1-2"]
    assert sorted(asked) == sorted((r.task.id, r.completion.uid) for r in rollouts_of(groups))
    for rollout in rollouts_of(groups):
        assert rollout.prompt_ids == renderer.prompt(rollout.task.messages)
        assert rollout.completion.policy_version == 7
        assert 1 <= len(rollout.completion.token_ids) <= 6
    unlucky = rollouts_of(groups)[3]
    assert (unlucky.drop, unlucky.outcome) == (DropReason.ENV_RAISED, None)
    assert [r.completion.uid for r in rollouts_of(groups) if r.fault] == ["x-1-0"]
    assert "ValueError: unlucky" in unlucky.fault


@pytest.mark.parametrize("end", ["<think>\n", "<think>", "<think>\n\n</think>\n\n", ""])
def test_an_answer_holds_the_tag_of_thinking_that_its_prompt_opened(tiny_policy, end) -> None:
    policy = tiny_policy()
    policy.tokenizer.chat_template = policy.tokenizer.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n" + end + "{% endif %}"
    )
    renderer = Renderer(policy.tokenizer, policy.context_length, 100, thinking="template")
    assert renderer.prompt(TASKS[0].messages)
    env = FunctionEnvironment(lambda task, text: Outcome(float(text.startswith("<think>\n"))), "w")
    for rollout in rollouts_of(roll_out(policy, env, renderer, TASKS, SHORT, rollouts=2, seed=1, label="x")):
        assert rollout.outcome is not None
        assert rollout.outcome.reward == ("think" in end and "</" not in end)
        assert not rollout.outcome.reward or without_thinking(rollout.completion.text) == ""


def test_answers_follow_from_seed_and_name_alone(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    env = FunctionEnvironment(lambda task, done: Outcome(0.0), "w")

    def texts(tasks: list[Task], seed: int = 1) -> list[str]:
        found = roll_out(policy, env, renderer, tasks, SHORT, rollouts=2, seed=seed, label="x")
        return [rollout.completion.text for rollout in rollouts_of(found)]

    assert texts(TASKS)[:2] == texts(TASKS[:1])
    assert texts(TASKS) == texts(TASKS)
    assert texts(TASKS) != texts(TASKS, seed=2)


def test_other_prompts_may_be_read_in_place_of_the_questions(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    prompts = [renderer.prompt((Message("user", "Traceback:"),)), renderer.prompt((Message("user", "Say no."),))]
    env = FunctionEnvironment(lambda task, done: Outcome(0.0), "w")
    groups = roll_out(policy, env, renderer, TASKS, SHORT, rollouts=2, seed=1, label="x", prompts=prompts)
    assert [r.prompt_ids for r in rollouts_of(groups)] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert [r.task.id for r in rollouts_of(groups)] == ["t0", "t0", "t1", "t1"]


def test_stages_follow_one_another_and_each_rollout_says_what_it_was_asked(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    asked: list[str] = []

    def env(task: Task, done: Completion) -> Outcome:
        asked.append(done.uid)
        return Outcome(float(done.uid == "x-0-0"), "" if done.uid == "x-0-0" else "no")

    stages = (Attempts(), Reflections(), ReflectedAttempts())
    groups = roll_out(
        policy, FunctionEnvironment(env, "w"), renderer, TASKS, SHORT, rollouts=2, seed=1, label="x", stages=stages
    )
    first, second = groups
    kinds = [(r.completion.uid, r.stage, r.of) for r in first.rollouts]
    assert kinds == [
        ("x-0-0", "answer", None), ("x-0-1", "answer", None), ("x-0-2", "reflection", 1),
        ("x-0-3", "reflected_attempt", 2),
    ]  # fmt: skip
    assert [(r.stage, r.of) for r in second.rollouts[2:]] == [
        ("reflection", 0), ("reflection", 1), ("reflected_attempt", 2), ("reflected_attempt", 3),
    ]  # fmt: skip
    assert asked == ["x-0-0", "x-0-1", "x-1-0", "x-1-1", "x-0-3", "x-1-4", "x-1-5"], "reflections are not scored"
    noted, again = first.rollouts[2:]
    assert (noted.outcome, noted.drop, again.outcome) == (None, None, Outcome(0.0, "no"))
    assert noted.messages[1] == Message("assistant", first.rollouts[1].completion.text)
    assert again.messages == (Message("system", noted.completion.text), *TASKS[0].messages)
    assert first.rollouts[0].messages == (), "the task's own question"
    for rollout in rollouts_of(groups):
        assert rollout.prompt_ids == renderer.prompt(rollout.messages or rollout.task.messages)
        assert 0 < len(rollout.completion.token_ids) == len(rollout.completion.logprobs) <= 6


def test_words_that_are_there_already_are_neither_sampled_nor_judged(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    tasks = [replace(TASKS[0], demonstration="yes"), TASKS[1]]
    env = FunctionEnvironment(lambda task, done: Outcome(0.0), "w")
    groups = roll_out(
        policy,
        env,
        renderer,
        tasks,
        SHORT,
        rollouts=3,
        seed=1,
        label="x",
        version=7,
        stages=(DemonstrationCompletions(),),
    )
    assert [len(group.rollouts) for group in groups] == [1, 0]
    [given] = rollouts_of(groups)
    assert given.completion.token_ids == (*policy.tokenizer.encode("yes"), policy.tokenizer.eos_token_id)
    assert (given.completion.logprobs, given.completion.text, given.completion.policy_version) == ((), "yes", 7)
    assert (given.outcome, given.prompt_ids) == (Outcome(1.0), renderer.prompt(TASKS[0].messages))


def test_a_prompt_without_room_for_an_answer_is_dropped_and_the_rest_goes_on(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    judged: list[str] = []

    def env(task: Task, done: Completion) -> Outcome:
        judged.append(done.uid)
        return Outcome(0.0, "no " * (policy.context_length if task.id == "t0" else 1))

    groups = roll_out(
        policy, FunctionEnvironment(env, "w"), renderer, TASKS, SHORT, rollouts=1, seed=1, label="x",
        stages=(Attempts(), SecondAttempts()),
    )  # fmt: skip
    long, short = (group.rollouts[1] for group in groups)
    assert (long.drop, long.outcome, long.completion.token_ids) == (DropReason.CONTEXT_TOO_LONG, None, ())
    assert (short.drop, short.stage) == (None, "second_attempt")
    assert judged == ["x-0-0", "x-1-0", "x-1-1"]
