from __future__ import annotations

import pytest
from formulas import ROOT, close, towards

from core_parts import group
from selfdistill.losses import AdvantageSign, Linear, Multiplicative, SampledToken
from selfdistill.methods import RLSD
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Snapshot
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, Q = [0.5, 0.3, 0.2], [0.45, 0.40, 0.15]


def test_defaults_are_the_published_ones() -> None:
    method, loss_spec = RLSD(), RLSD().loss_spec(1.0)
    assert (loss_spec.distil_sign, loss_spec.shaping) == (AdvantageSign(), Multiplicative(0.2))
    assert (loss_spec.support, loss_spec.schedule) == (SampledToken(), Linear(0.5, 0.0, 50))
    assert (method.teacher, method.reference_kl, method.divide_by_deviation) == (Snapshot(10), 0.0, True)


def test_every_answer_keeps_its_advantage_and_is_read_where_something_is_known() -> None:
    shown = Context("solution", solution="answer 0")
    good, bad, none, worst = RLSD(divide_by_deviation=False).credits(group([1.0, 0.0, None, 0.0]))
    assert good == Credit(advantage=pytest.approx(2 / 3)), "a lone success has nothing to read"
    assert bad == worst == Credit(shown, advantage=pytest.approx(-1 / 3), distil=1.0)
    assert none is DropReason.ENV_RAISED
    assert RLSD().credits(group([0.0, 0.0], "wrong")) == [DropReason.ZERO_ADVANTAGE] * 2


@pytest.mark.parametrize(("step", "strength"), [(0, 0.5), (25, 0.25), (60, 0.0)])
def test_the_gradient_scales_every_verdict_by_the_evidence(step: int, strength: float) -> None:
    """With A > 0, "b" is worth q/p = 4/3, clipped to 1.2, and "a" 0.9; with A < 0, p/q: "a" 10/9 and "." 4/3."""
    toy = three_token_policy({"question": [P], "right": [Q]})
    said = [toy.answer("b", 1.0, text="right"), toy.answer("a", 1.0, text="right"), toy.answer("a"), toy.answer(".")]
    found = toy.update(RLSD(), toy.group(*said), step=step).gradients["question"][0]
    factors = [1 - strength + strength * ratio for ratio in (1.2, 0.9, 10 / 9, 1.2)]
    signs = zip("baa.", (1, 1, -1, -1), factors, strict=True)
    close(found, -sum(ROOT * sign * factor * towards(token, P) for token, sign, factor in signs) / 4)
