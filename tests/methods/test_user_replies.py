from __future__ import annotations

from dataclasses import replace
from math import log

import torch
from formulas import towards

from core_parts import group, rollout
from selfdistill.config import load_config
from selfdistill.losses import Additive, Centred, PolicyGradient, SampledToken
from selfdistill.methods import UserReplies
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Live
from selfdistill.prompts.stages import Attempts, LoggedCompletions
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason, Outcome, RolloutGroup

BARE, TOLD = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.6, 0.2], [0.5, 0.4, 0.1]]
E_0, E_1 = log(0.6 / 0.3), log(0.1 / 0.7)  # the log-ratio on "b", and on "." after it


def test_defaults_are_those_of_fresh_answers_as_published() -> None:
    method, config = UserReplies(), load_config(None, ["method=user_replies", "model=tiny"])
    assert (method.stages, method.teacher, method.needs_reward) == ((Attempts(),), Live(), "no")
    assert (method.loss_spec(0.9).shaping, method.loss_spec(0.9).policy) == (Centred(), PolicyGradient())
    assert (method.loss_spec(0.9).support, method.loss_spec(0.9).temperature) == (SampledToken(), 0.9)
    assert (config.rollouts_per_task, config.optimiser.lr) == (1, 5e-6)


def test_of_a_log_nothing_is_sampled_and_the_evidence_is_taken_as_it_is() -> None:
    method = UserReplies(logged=True)
    assert (method.stages, method.loss_spec(0.9).shaping, method.loss_spec(0.9).temperature) == (
        (LoggedCompletions(),),
        Additive(),
        1.0,
    )


def test_an_answer_that_was_replied_to_counts_one_and_its_reward_nothing() -> None:
    said = replace(rollout(0), outcome=Outcome(1.0, reply="No, shorter."))
    group_members = RolloutGroup(said.task, (said, rollout(1, 1.0), rollout(2, None)))
    credit = Credit(Context("reply", reply="No, shorter."), distil=1.0)
    assert UserReplies().credits(group_members) == [credit, DropReason.NO_CONTEXT, DropReason.ENV_RAISED]
    assert UserReplies().credits(group([0.0], "feedback is no reply")) == [DropReason.NO_CONTEXT]


def test_the_advantage_of_a_fresh_answers_token_is_its_evidence_beyond_the_answers_mean() -> None:
    toy = three_token_policy({"question": BARE, "hint": TOLD})
    found = toy.update(UserReplies(), toy.group(toy.answer("b.", reply="hint")))
    half = (E_0 - E_1) / 2  # e − mean is +half on the first token and −half on the second
    wanted = -torch.stack([half * towards("b", BARE[0]), -half * towards(".", BARE[1])]) / 2
    torch.testing.assert_close(found.gradients["question"], wanted, atol=1e-6, rtol=0)
    assert not found.gradients["hint"].any()


def test_the_advantage_of_a_logged_answers_token_is_its_evidence() -> None:
    toy = three_token_policy({"question": BARE, "hint": TOLD})
    logged = toy.answer("b.", reply="hint", stage=LoggedCompletions.name)
    found = toy.update(UserReplies(logged=True), toy.group(logged))
    wanted = -torch.stack([E_0 * towards("b", BARE[0]), E_1 * towards(".", BARE[1])]) / 2
    torch.testing.assert_close(found.gradients["question"], wanted, atol=1e-6, rtol=0)


def test_a_fresh_answers_token_that_has_moved_beyond_the_clip_pushes_no_further() -> None:
    """The first token was said at 0.2 and is at 0.3 now: 1.5 > 1.28. The second has not moved."""
    before = [[0.5, 0.2, 0.3], BARE[1]]
    toy = three_token_policy({"question": before, "hint": TOLD})
    said = toy.answer("b.", reply="hint", logprobs=(log(0.2), log(0.7)))
    both = toy.group(said), toy.group(said, name="s")
    found = toy.update(UserReplies(), *both, later=[{"question": BARE}]).gradients["question"]
    half = (log(0.6 / 0.2) - E_1) / 2  # log-ratio is that of when the batch was sampled
    torch.testing.assert_close(found[1], half * towards(".", BARE[1]) / 2, atol=1e-6, rtol=0)
    assert not found[0].any()
