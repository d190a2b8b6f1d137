from __future__ import annotations

from dataclasses import replace

import torch

from core_parts import group, rollout
from selfdistill.config import load_config
from selfdistill.losses import ClippedForwardKL, FullVocabulary
from selfdistill.methods import OPSD
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Frozen
from selfdistill.testing import QUESTION, three_token_policy
from selfdistill.types import Context, DropReason, RolloutGroup

TASK = replace(QUESTION, demonstration="hint")
BARE, TOLD = [[0.5, 0.3, 0.2]], [[0.25, 0.42, 0.33]]


def test_defaults_are_those_of_the_paper() -> None:
    method, config = OPSD(), load_config(None, ["method=opsd", "model=tiny"])
    assert (method.loss_spec(1.1).support, method.loss_spec(1.1).divergence) == (
        FullVocabulary(),
        ClippedForwardKL(0.05),
    )
    assert (method.teacher, method.needs_reward, method.loss_spec(1.1).temperature) == (Frozen(), "no", 1.1)
    assert (config.rollouts_per_task, config.sampling.temperature, config.optimiser.lr) == (1, 1.1, 5e-6)


def test_every_answer_to_a_task_with_a_solution_counts_one() -> None:
    group_members = RolloutGroup(TASK, (rollout(0, 1.0, task=TASK), rollout(1, None, task=TASK)))
    credit = Credit(Context("demonstration", demonstration="hint"), distil=1.0)
    assert OPSD().credits(group_members) == [credit, DropReason.ENV_RAISED]
    assert OPSD().credits(group([0.0])) == [DropReason.NO_CONTEXT]


def test_tokens_beyond_the_limit_have_no_gradient_of_their_own() -> None:
    """q log(q/p): 0.25 log(1/2) < 0, 0.42 log(1.4) = 0.141 > 0.05, 0.33 log(1.65) = 0.165 > 0.05. Only the first token
    is left: ∂(−0.25 log p_a)/∂z = −0.25 (1[a] − p), so that both of the tokens the teacher wants are pushed down."""
    toy = three_token_policy({"question": BARE, "hint": TOLD}, task=TASK)
    found = toy.update(OPSD(), toy.group(toy.answer("b"))).gradients["question"]
    wanted = torch.tensor([[-0.25 * (1 - 0.5), 0.25 * 0.3, 0.25 * 0.2]]).double()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_below_the_limit_it_is_the_forward_kl() -> None:
    toy = three_token_policy({"question": BARE, "hint": TOLD}, task=TASK)
    found = toy.update(OPSD(limit=1.0), toy.group(toy.answer("b"))).gradients["question"]
    torch.testing.assert_close(found, (torch.tensor(BARE) - torch.tensor(TOLD)).double(), atol=1e-6, rtol=0)


def test_the_teacher_is_the_model_at_its_start() -> None:
    toy = three_token_policy({"question": BARE, "hint": [[0.1, 0.1, 0.8]]}, start={"hint": TOLD}, task=TASK)
    found = toy.update(OPSD(limit=1.0), toy.group(toy.answer("b"))).gradients["question"]
    torch.testing.assert_close(found, (torch.tensor(BARE) - torch.tensor(TOLD)).double(), atol=1e-6, rtol=0)
