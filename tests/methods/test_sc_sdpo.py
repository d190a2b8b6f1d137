from __future__ import annotations

from math import sqrt

import pytest
from formulas import close, moved, toward_mean

from core_parts import group
from selfdistill.losses import JensenShannon, TopK
from selfdistill.methods import SCSDPO, SDPOOutcome
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Ema
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, Q = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]


def test_it_is_sdpo_for_scores_in_all_but_the_weights() -> None:
    method, loss_spec = SCSDPO(), SCSDPO().loss_spec(1.0)
    assert loss_spec == SDPOOutcome().loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence, method.teacher) == (TopK(100), JensenShannon(0.5), Ema(0.05))
    assert SCSDPO.settings == SDPOOutcome.settings


def test_a_question_weighs_most_when_it_is_solved_half_of_the_time() -> None:
    shown = Context("solution", solution="answer 0")
    credits = SCSDPO().credits(group([1.0, 0.0, None, 0.0, 0.0]))
    quarter = Credit(shown, distil=pytest.approx(sqrt(3) / 2))  # 2 √(1/4 · 3/4)
    assert credits == [DropReason.ONLY_SUCCESS, quarter, DropReason.ENV_RAISED, quarter, quarter]
    assert [c.distil for c in SCSDPO().credits(group([1.0, 1.0, 0.0, 0.0]))] == [1.0] * 4


@pytest.mark.parametrize("reward", [0.0, 0.7, 1.0])
def test_a_group_that_agrees_weighs_nothing_even_with_feedback(reward: float) -> None:
    assert SCSDPO().credits(group([reward] * 4, "wrong")) == [DropReason.ZERO_ADVANTAGE] * 4


def test_the_gradient_is_that_of_sdpo_times_the_weight() -> None:
    """One of four solved: 2 √(3/16); three answers are distilled and the dropped one dilutes the mean."""
    toy = three_token_policy({"question": [P], "right": [Q]})
    said = [toy.answer("b", 1.0, text="right"), toy.answer("a"), toy.answer("."), toy.answer("a")]
    found = toy.update(SCSDPO(), toy.group(*said)).gradients["question"][0]
    close(found, sqrt(3) / 2 * 3 / 4 * moved(P, toward_mean(P, Q)))
