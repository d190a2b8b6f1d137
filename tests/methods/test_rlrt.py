from __future__ import annotations

import pytest
from formulas import ROOT, close, towards

from core_parts import group
from selfdistill.losses import Constant, Multiplicative, OppositeAdvantageSign, SampledToken
from selfdistill.methods import RLRT
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Snapshot
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, Q = [0.5, 0.3, 0.2], [0.45, 0.40, 0.15]


def test_defaults_are_the_published_ones_for_instructed_models() -> None:
    method, loss_spec = RLRT(), RLRT().loss_spec(1.0)
    assert (loss_spec.distil_sign, loss_spec.shaping) == (OppositeAdvantageSign(), Multiplicative(0.5))
    assert (loss_spec.support, loss_spec.schedule, method.teacher) == (SampledToken(), Constant(0.5), Snapshot(10))


def test_only_solved_answers_are_read_by_the_teacher() -> None:
    one, two, bad = RLRT(divide_by_deviation=False).credits(group([1.0, 1.0, 0.0], "wrong"))
    assert one == Credit(Context("solution", solution="answer 1"), advantage=pytest.approx(1 / 3), distil=1.0)
    assert two == Credit(Context("solution", solution="answer 0"), advantage=pytest.approx(1 / 3), distil=1.0)
    assert bad == Credit(advantage=pytest.approx(-2 / 3))
    assert RLRT().credits(group([1.0, 1.0])) == [DropReason.ZERO_ADVANTAGE] * 2


def test_a_lone_success_is_its_own_demonstration() -> None:
    lone = RLRT().credits(group([0.0, 1.0]))[1]
    assert (lone.context, lone.distil) == (Context("solution", solution="answer 1"), 1.0)


def test_the_gradient_rewards_what_the_teacher_would_not_have_said() -> None:
    """Where A > 0, "b" is worth p/q = 3/4 and "a" 10/9, half of each; failures are left alone."""
    toy = three_token_policy({"question": [P], "right": [Q]})
    said = [toy.answer("b", 1.0, text="right"), toy.answer("a", 1.0, text="right"), toy.answer("a"), toy.answer(".")]
    found = toy.update(RLRT(), toy.group(*said)).gradients["question"][0]
    parts = zip("baa.", (0.5 + 0.5 * 3 / 4, 0.5 + 0.5 * 10 / 9, -1, -1), strict=True)
    close(found, -sum(ROOT * factor * towards(token, P) for token, factor in parts) / 4)
