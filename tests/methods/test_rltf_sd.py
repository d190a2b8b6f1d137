from __future__ import annotations

from dataclasses import replace

import torch
from formulas import towards

from core_parts import group, rollout
from selfdistill.config import load_config
from selfdistill.losses import TokenMask
from selfdistill.methods import GRPO, RLTFSD
from selfdistill.methods.base import Credit
from selfdistill.prompts.stages import Attempts, SecondAttempts
from selfdistill.testing import QUESTION, three_token_policy
from selfdistill.types import DropReason, Message, Outcome, Rollout, RolloutGroup

AGAIN = (*QUESTION.messages, Message("assistant", "a"), Message("user", "wrong"))


def test_defaults_are_those_of_the_paper() -> None:
    method, config = RLTFSD(), load_config(None, ["method=rltf_sd", "model=tiny"])
    whole, likely = method.loss_specs(1.0)
    assert method.stages == (Attempts(), SecondAttempts(0.5))
    assert (whole, likely) == (GRPO().loss_spec(1.0), replace(whole, token_mask=TokenMask(min_logprob=-5.0)))
    assert (method.distil, method.teacher, method.needs_reward) == (0.1, None, "yes")
    assert (config.tasks_per_step, config.rollouts_per_task, config.optimiser.lr) == (32, 8, 2e-5)


def second(number: int, reward: float, of: int) -> Rollout:
    return replace(rollout(number), stage=SecondAttempts.name, of=of, outcome=Outcome(reward))


def test_second_attempts_are_judged_among_themselves_and_by_the_mean_of_the_first_ones() -> None:
    """First attempts 1, 0, 0, 0 with mean 1/4, second ones 1, 1, 0 with mean 2/3."""
    tries = group([1.0, 0.0, 0.0, 0.0], "wrong").rollouts
    again = (second(4, 1.0, 1), second(5, 1.0, 2), second(6, 0.0, 3))
    found = RLTFSD(distil=1.0).credits(RolloutGroup(tries[0].task, (*tries, *again)))
    question = tries[0].task.messages
    assert found[:4] == [(Credit(advantage=0.75),)] + [(Credit(advantage=-0.25),)] * 3
    own, learned = found[4]
    assert learned == Credit(advantage=0.75, question=question, spec_index=1)
    assert abs(own.advantage - 1 / 3) < 1e-12
    assert own.question == ()
    assert found[6][1] == Credit(advantage=-0.25, question=question, spec_index=1)


def test_flat_attempts_that_teach_nothing_are_dropped() -> None:
    tries = group([0.0, 0.0], "wrong").rollouts
    again = (second(2, 0.0, 0), second(3, 0.0, 1))
    found = RLTFSD().credits(RolloutGroup(tries[0].task, (*tries, *again)))
    assert found == [DropReason.ZERO_ADVANTAGE] * 4
    lone = RLTFSD().credits(RolloutGroup(tries[0].task, (*tries, second(2, 1.0, 0))))
    assert lone[2] == (Credit(advantage=0.1, question=tries[0].task.messages, spec_index=1),)


def test_a_second_attempts_words_move_the_first_question_but_for_the_unlikely_ones() -> None:
    """First attempts "a" with reward 0 and "b" with 1; the second one, "b.a", with 1: gain 0.1 · (1 − 1/2). Its second
    token has probability 0.005 under the first question, log 0.005 = −5.3 < −5. Three answers share the step."""
    bare = [[0.5, 0.3, 0.2], [0.6, 0.395, 0.005], [0.3, 0.3, 0.4]]
    toy = three_token_policy({"question": bare, "wrong": [[0.2, 0.6, 0.2]] * 3})
    tries = (toy.answer("a", 0.0, "wrong"), toy.answer("b", 1.0))
    again = toy.answer("b.a", 1.0, stage=SecondAttempts.name, messages=AGAIN, of=0)
    found = toy.update(RLTFSD(), toy.group(*tries, again)).gradients
    credited = 0.5 * towards("b", bare[0]) - 0.5 * towards("a", bare[0])
    rows = [credited + 0.05 / 3 * towards("b", bare[0]), torch.zeros(3).double(), 0.05 / 3 * towards("a", bare[2])]
    torch.testing.assert_close(found["question"], -torch.stack(rows) / 3, atol=1e-6, rtol=0)
    assert not found["wrong"].any(), "a lone second attempt says nothing under its own prompt"


def test_there_is_no_ratio_to_the_prompt_it_was_said_under() -> None:
    bare = [[0.5, 0.3, 0.2]]
    toy = three_token_policy({"question": bare, "wrong": [[0.2, 0.6, 0.2]]})
    again = toy.answer("b", 1.0, stage=SecondAttempts.name, messages=AGAIN, of=0, logprobs=(-3.0,))
    found = toy.update(RLTFSD(distil=1.0), toy.group(toy.answer("a", 0.0, "wrong"), again)).gradients["question"]
    torch.testing.assert_close(found[0], -towards("b", bare[0]) / 2, atol=1e-6, rtol=0)
