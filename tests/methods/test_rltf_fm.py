from __future__ import annotations

import torch
from formulas import towards

from core_parts import group
from selfdistill.config import load_config
from selfdistill.methods import RLTFFM
from selfdistill.methods.base import Credit
from selfdistill.methods.rltf_fm import CRITIQUE
from selfdistill.prompts.stages import Attempts
from selfdistill.testing import three_token_policy
from selfdistill.types import DropReason, Message


def test_defaults_are_those_of_the_paper() -> None:
    method, config = RLTFFM(), load_config(None, ["method=rltf_fm", "model=tiny"])
    assert (method.stages, method.foresee, method.teacher, method.needs_reward) == ((Attempts(),), 0.1, None, "yes")
    assert (config.tasks_per_step, config.rollouts_per_task, config.optimiser.lr) == (32, 8, 2e-5)


def test_an_answer_is_rewarded_and_its_feedback_foreseen() -> None:
    group_members = group([1.0, 0.0], "wrong")
    asked = (*group_members.task.messages, Message("assistant", "answer 1"), CRITIQUE)
    foreseen = Credit(advantage=0.1, question=asked, text="wrong 1")
    assert RLTFFM().credits(group_members) == [(Credit(advantage=0.5),), (Credit(advantage=-0.5), foreseen)]


def test_without_a_difference_in_reward_there_is_the_feedback_and_without_either_nothing() -> None:
    group_members = group([0.0, 0.0], "wrong")
    [first, _] = RLTFFM().credits(group_members)
    assert [(credit.advantage, credit.text) for credit in first] == [(0.1, "wrong 0")]
    assert RLTFFM().credits(group([0.0, 0.0])) == [DropReason.ZERO_ADVANTAGE] * 2
    assert RLTFFM(foresee=0.0).credits(group_members) == [DropReason.ZERO_ADVANTAGE] * 2


def test_the_gradient_is_grpo_and_the_cross_entropy_of_the_feedback() -> None:
    """Two answers share the step; the feedback, "ab" and the end of turn, weighs a third of its answer's share each."""
    bare, critique = [[0.5, 0.3, 0.2]], [[0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]]
    toy = three_token_policy({"question": bare, "critique": critique})
    found = toy.update(RLTFFM(), toy.group(toy.answer("a", 0.0, "ab"), toy.answer("b", 1.0))).gradients
    credited = 0.5 * towards("b", bare[0]) - 0.5 * towards("a", bare[0])
    torch.testing.assert_close(found["question"][0], -credited / 2, atol=1e-6, rtol=0)
    wanted = torch.stack([towards(token, row) for token, row in zip("ab.", critique, strict=True)])
    torch.testing.assert_close(found["critique"], -0.1 * wanted / 3 / 2, atol=1e-6, rtol=0)
