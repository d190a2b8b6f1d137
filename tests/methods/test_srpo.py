from __future__ import annotations

import torch
from formulas import close, entropy, moved, row, toward_mean, towards

from core_parts import group
from selfdistill.losses import JensenShannon, RatioCaps, TokenMask, TopK
from selfdistill.methods import SRPO
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Ema
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, Q = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]


def test_defaults_are_the_published_ones() -> None:
    method, loss_spec = SRPO(), SRPO().loss_spec(0.9)
    assert (loss_spec.support, loss_spec.divergence, loss_spec.temperature) == (TopK(100), JensenShannon(0.5), 0.9)
    assert (loss_spec.token_mask, loss_spec.ratio) == (TokenMask(teacher_confidence=1.0), RatioCaps(2.0, 2.0))
    assert (method.teacher, method.success, method.divide_by_deviation) == (Ema(0.05), 0.5, False)
    assert not method.needs_reference


def test_successes_are_rewarded_and_failures_distilled() -> None:
    shown = Context("solution", solution="answer 1")
    assert SRPO().credits(group([0.0, 1.0, None, 0.0], "wrong")) == [
        Credit(shown, distil=1.0),
        Credit(advantage=1 - 1 / 3),
        DropReason.ENV_RAISED,
        Credit(shown, distil=1.0),
    ]


def test_a_group_without_any_success_has_its_advantages_at_most() -> None:
    assert SRPO().credits(group([0.0, 0.0], "wrong")) == [DropReason.NO_CONTEXT] * 2, "feedback is not read"
    assert SRPO().credits(group([1.0, 1.0])) == [DropReason.ZERO_ADVANTAGE] * 2
    assert SRPO(reference_kl=0.5).credits(group([0.0, 0.0])) == [Credit(reference=0.5)] * 2
    assert SRPO().credits(group([0.25, 0.0])) == [Credit(advantage=0.125), Credit(advantage=-0.125)]


def test_the_gradient_is_a_policy_gradient_and_a_divergence_weighed_by_the_teachers_entropy() -> None:
    """r0 = "b" has A = ½, r1 = "ab" is distilled; each weighs a half, and each token of r1 a quarter."""
    toy = three_token_policy({"question": P, "right": Q})
    found = toy.update(SRPO(), toy.group(toy.answer("b", 1.0, text="right"), toy.answer("ab"))).gradients["question"]
    sure = torch.exp(-row([entropy(q) for q in Q]))
    distilled = [w * moved(p, toward_mean(p, q)) / 4 for w, p, q in zip(sure / sure.mean(), P, Q, strict=True)]
    close(found, torch.stack([distilled[0] - towards("b", P[0]) / 2 / 2, distilled[1]]))
