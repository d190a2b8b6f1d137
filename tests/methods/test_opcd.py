from __future__ import annotations

from dataclasses import replace
from math import log

import torch

from core_parts import group, rollout
from selfdistill.config import load_config
from selfdistill.losses import ReverseKL, TopK
from selfdistill.methods import OPCD, get_method
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Frozen
from selfdistill.prompts.context import Instruction
from selfdistill.testing import QUESTION, three_token_policy
from selfdistill.types import Context, DropReason, RolloutGroup

BARE, TOLD = [[0.5, 0.3, 0.2]], [[0.2, 0.7, 0.1]]


def test_defaults_are_those_of_the_paper() -> None:
    method, config = OPCD(), load_config(None, ["method=opcd", "model=tiny"])
    assert (method.loss_spec(0.6).support, method.loss_spec(0.6).divergence) == (
        TopK(256, of="student", tail=True),
        ReverseKL(),
    )
    assert (method.teacher, method.needs_reward, method.context) == (Frozen(), "no", Instruction())
    assert (config.rollouts_per_task, config.tasks_per_step, config.optimiser.lr) == (1, 128, 1e-6)
    assert config.sampling.temperature == 0.6


def test_the_instruction_is_the_runs_or_the_tasks_document() -> None:
    method = get_method("opcd", {"context": {"text": "Be brief."}})
    assert method.credits(group([0.0])) == [Credit(Context("instruction", instruction="Be brief."), distil=1.0)]
    task = replace(QUESTION, document="hint")
    group_members = RolloutGroup(task, (rollout(0, task=task),))
    assert OPCD().credits(group_members) == [Credit(Context("document", document="hint"), distil=1.0)]
    assert OPCD().credits(group([0.0])) == [DropReason.NO_CONTEXT]


def test_the_gradient_is_that_of_the_reverse_kl_between_the_top_token_and_the_rest() -> None:
    """Outcomes (0.5, 0.5) against (0.2, 0.8): ∂KL/∂z = P (log(P/Q) − KL), shared inside the rest as p is: 3 to 2."""
    toy = three_token_policy({"question": BARE, "hint": TOLD})
    method = OPCD(top_k=1, context=Instruction("hint"))
    found = toy.update(method, toy.group(toy.answer("b"))).gradients["question"]
    top, rest = log(0.5 / 0.2), log(0.5 / 0.8)
    kl = 0.5 * top + 0.5 * rest
    wanted = torch.tensor([[0.5 * (top - kl), 0.3 * (rest - kl), 0.2 * (rest - kl)]]).double()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
