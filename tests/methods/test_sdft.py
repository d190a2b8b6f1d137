from __future__ import annotations

from dataclasses import replace

import torch

from core_parts import group, rollout
from selfdistill.config import load_config
from selfdistill.losses import ForwardKL, FullVocabulary, TokenMask
from selfdistill.methods import SDFT, get_method
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Ema
from selfdistill.prompts.context import Demonstration, Document
from selfdistill.testing import QUESTION, three_token_policy
from selfdistill.types import Context, DropReason, RolloutGroup

BARE = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]
TOLD = [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]]


def test_defaults_are_those_of_the_reported_results() -> None:
    method, config = SDFT(), load_config(None, ["method=sdft", "model=tiny"])
    loss_spec = method.loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence, loss_spec.token_mask) == (
        FullVocabulary(),
        ForwardKL(),
        TokenMask(skip_first=3),
    )
    assert (method.teacher, method.context, method.needs_reward) == (Ema(0.02), Demonstration(), "no")
    assert (config.rollouts_per_task, config.optimiser.lr, config.tasks_per_step) == (1, 2e-5, 32)


def test_every_answer_to_a_task_with_a_demonstration_counts_one_whatever_its_reward() -> None:
    task = replace(QUESTION, demonstration="do this", document="know this")
    group_members = RolloutGroup(task, (rollout(0, 1.0, task=task), rollout(1, 0.0, task=task)))
    assert SDFT().credits(group_members) == [Credit(Context("demonstration", demonstration="do this"), distil=1.0)] * 2
    knowing = get_method("sdft", {"context": {"kind": "document"}})
    assert knowing == SDFT(context=Document())
    assert knowing.credits(group_members) == [Credit(Context("document", document="know this"), distil=1.0)] * 2
    assert SDFT().credits(group([1.0])) == [DropReason.NO_CONTEXT]


def test_the_student_moves_to_the_teacher_after_the_first_three_tokens() -> None:
    """KL(q‖p): p − q, and every token weighs a fifth, the three that are left out too."""
    toy = three_token_policy({"question": BARE, "hint": TOLD}, task=replace(QUESTION, demonstration="hint"))
    found = toy.update(SDFT(), toy.group(toy.answer("abab."))).gradients["question"]
    wanted = (torch.tensor(BARE) - torch.tensor(TOLD)).double() / 5
    wanted[:3] = 0
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_short_answer_teaches_nothing() -> None:
    toy = three_token_policy({"question": BARE, "hint": TOLD}, task=replace(QUESTION, demonstration="hint"))
    assert not toy.update(SDFT(), toy.group(toy.answer("ab."))).gradients["question"].any()
