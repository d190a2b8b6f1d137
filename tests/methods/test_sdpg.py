from __future__ import annotations

from dataclasses import replace

import pytest
from formulas import ROOT, close, moved, row, towards

from core_parts import QUESTION, group
from selfdistill.losses import FullVocabulary, ReverseKL, Separate, Trapezoid
from selfdistill.methods import SDPG
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Live
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, Q, START = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]


def test_defaults_are_the_published_ones() -> None:
    method, loss_spec = SDPG(), SDPG().loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence, loss_spec.shaping) == (FullVocabulary(), ReverseKL(), Separate())
    assert loss_spec.schedule == Trapezoid(peak=1e-3, warmup=50, hold=0, decay=350)
    assert (method.teacher, method.reference_kl, method.divide_by_deviation) == (Live(), 1e-3, True)
    assert method.needs_reference


def test_only_answers_better_than_their_siblings_are_distilled() -> None:
    method, shown = SDPG(reference_kl=0.0), Context("solution", solution="answer 1")
    worse = Credit(advantage=pytest.approx(-ROOT))
    assert method.credits(group([1.0, 1.0, 0.0, 0.0])) == [
        Credit(shown, advantage=pytest.approx(ROOT), distil=1.0),
        Credit(Context("solution", solution="answer 0"), advantage=pytest.approx(ROOT), distil=1.0),
        worse,
        worse,
    ]
    assert method.credits(group([0.0, 0.0])) == [DropReason.ZERO_ADVANTAGE] * 2
    assert SDPG().credits(group([1.0, 1.0])) == [Credit(reference=1e-3)] * 2, "a zero-advantage group is not distilled"
    assert method.credits(group([1.0, 0.0]))[0].distil == 0, "a lone success has nothing to read"


def test_the_demonstration_comes_first() -> None:
    taught = replace(QUESTION, demonstration="12")
    first = SDPG().credits(group([1.0, 1.0, 0.0], task=taught))[0]
    assert first.context == Context("demonstration", demonstration="12")
    assert first.reference == 1e-3


@pytest.mark.parametrize(("step", "strength"), [(0, 0.0), (25, 5e-4), (50, 1e-3), (225, 5e-4), (400, 0.0)])
def test_the_gradient_is_grpo_with_a_pull_that_rises_and_falls(step: int, strength: float) -> None:
    """Four answers of one token, each worth a quarter; the pull is made 100 times stronger, to be seen."""
    toy = three_token_policy({"question": [P], "right": [Q]}, start={"question": [START]})
    said = [toy.answer("b", 1.0, text="right"), toy.answer("a", 1.0, text="right"), toy.answer("a"), toy.answer(".")]
    found = toy.update(SDPG(peak=0.1), toy.group(*said), step=step).gradients["question"][0]
    up = towards("b", P) + towards("a", P) - towards("a", P) - towards(".", P)
    pull = 2 * 100 * strength * moved(P, (row(Q) / row(P)).log())
    close(found, (-ROOT * up + pull + 4 * 1e-3 * moved(P, (row(START) / row(P)).log())) / 4)
