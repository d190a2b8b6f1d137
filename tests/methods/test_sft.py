from __future__ import annotations

import torch
from formulas import towards

from core_parts import group
from selfdistill.losses import LossSpec
from selfdistill.methods import SFT
from selfdistill.methods.base import Credit
from selfdistill.prompts.stages import DemonstrationCompletions
from selfdistill.testing import three_token_policy

BARE = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]


def test_defaults_sample_nothing_and_have_no_teacher() -> None:
    method = SFT()
    assert method.stages == (DemonstrationCompletions(),)
    assert method.loss_specs(0.6) == (LossSpec(),), "the temperature of sampling plays no part"
    assert (method.teacher, method.needs_reward, method.reduction) == (None, "no", "token-mean")


def test_every_demonstration_counts_one() -> None:
    assert SFT().credits(group([1.0, 1.0])) == [Credit(advantage=1.0)] * 2


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    """Three tokens of two demonstrations, "b." and "a": each weighs a third."""
    toy = three_token_policy({"question": BARE})
    found = toy.update(SFT(), toy.group(toy.answer("b.", 1.0)), toy.group(toy.answer("a", 1.0), name="s"))
    wanted = -torch.stack([towards("b", BARE[0]) + towards("a", BARE[0]), towards(".", BARE[1])]) / 3
    torch.testing.assert_close(found.gradients["question"], wanted, atol=1e-6, rtol=0)


def test_words_that_nobody_sampled_have_no_ratio_however_far_the_student_has_moved() -> None:
    """A ratio of 0.7/0.1 would be clipped, and the token lost."""
    toy = three_token_policy({"question": [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]})
    both = toy.group(toy.answer("b.", 1.0)), toy.group(toy.answer("b.", 1.0), name="s")
    found = toy.update(SFT(), *both, later=[{"question": BARE}])
    wanted = -torch.stack([towards("b", BARE[0]), towards(".", BARE[1])]) / 2
    torch.testing.assert_close(found.gradients["question"], wanted, atol=1e-6, rtol=0)
