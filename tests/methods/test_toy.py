"""The toy itself, by two methods whose gradients are known from elsewhere."""

from __future__ import annotations

import torch
from toy import Toy, towards

from selfdistill.methods import GRPO, SDPO
from selfdistill.models.teacher import Frozen, Live

BARE, TOLD = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]


def test_grpo_moves_each_token_by_its_advantage() -> None:
    """Rewards 1, 0, 0: advantages 2/3, −1/3, −1/3; answers of 1, 2 and 1 tokens, each worth a third."""
    toy = Toy({"bare": BARE})
    group = toy.group(toy.said("b", 1.0), toy.said("a."), toy.said("."))
    found = toy.learn(GRPO(), group).gradients["bare"]
    first = 2 / 3 * towards("b", BARE[0]) - 1 / 3 * towards("a", BARE[0]) / 2 - 1 / 3 * towards(".", BARE[0])
    second = -1 / 3 * towards(".", BARE[1]) / 2
    torch.testing.assert_close(found, -torch.stack([first, second]) / 3, atol=1e-6, rtol=0)


def test_sdpo_at_alpha_zero_moves_the_student_to_the_teacher() -> None:
    """KL(q‖p): p − q at every position, which weighs a half."""
    toy = Toy({"bare": BARE, "told": TOLD})
    group = toy.group(toy.said("b.", 0.0, feedback="told"))
    found = toy.learn(SDPO(alpha=0.0), group).gradients
    torch.testing.assert_close(found["bare"], (torch.tensor(BARE) - torch.tensor(TOLD)).double() / 2, atol=1e-6, rtol=0)
    assert not found["told"].any(), "the teacher has no gradient"


def test_a_teacher_that_is_kept_reads_with_the_weights_of_the_start() -> None:
    started = [[0.6, 0.2, 0.2], [0.2, 0.2, 0.6]]
    toy = Toy({"bare": BARE, "told": TOLD}, start={"told": started})
    group = toy.group(toy.said("b.", 0.0, feedback="told"))
    for rule, q in ((Frozen(), started), (Live(), TOLD)):
        found = toy.learn(SDPO(alpha=0.0), group, teacher=rule).gradients["bare"]
        torch.testing.assert_close(found, (torch.tensor(BARE) - torch.tensor(q)).double() / 2, atol=1e-6, rtol=0)
