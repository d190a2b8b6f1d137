from __future__ import annotations

import pytest
from formulas import close, moved, toward_mean, towards

from core_parts import group
from selfdistill.losses import FullVocabulary, JensenShannon, Relative
from selfdistill.methods import Safe
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Frozen
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, Q = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]


def test_defaults() -> None:
    method, loss_spec = Safe(), Safe().loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence, loss_spec.clipping) == (
        FullVocabulary(),
        JensenShannon(0.5),
        Relative(10.0),
    )
    assert (method.teacher, method.reward, method.count_dropped) == (Frozen(), 0.1, False)
    assert not method.needs_reference
    assert not loss_spec.needs_table, "no token is weighed beforehand, which would cost a pass"
    assert Safe(bound=0).loss_spec(1.0).clipping is None


def test_failures_are_distilled_and_successes_rewarded() -> None:
    shown = Context("solution", solution="answer 1")
    assert Safe().credits(group([0.0, 1.0, None, 0.0], "wrong")) == [
        Credit(shown, distil=1.0),
        Credit(advantage=pytest.approx(0.1 * 2 / 3)),
        DropReason.ENV_RAISED,
        Credit(shown, distil=1.0),
    ]


def test_where_nothing_was_solved_the_feedback_is_read() -> None:
    first, second = Safe().credits(group([0.0, 0.0], "wrong"))
    assert (first.context.feedback, second.context.feedback) == ("wrong 0", "wrong 1")
    assert (first.distil, first.advantage) == (1.0, 0.0)


def test_what_says_nothing_is_dropped_and_what_is_merely_worse_keeps_its_verdict() -> None:
    assert Safe().credits(group([0.0, 0.0])) == [DropReason.NO_CONTEXT] * 2
    assert Safe().credits(group([1.0, 1.0])) == [DropReason.ZERO_ADVANTAGE] * 2
    assert Safe(reward=1.0).credits(group([0.25, 0.0])) == [Credit(advantage=0.125), Credit(advantage=-0.125)]
    assert Safe(reward=0.0).credits(group([1.0, 0.0]))[0] is DropReason.ONLY_SUCCESS


@pytest.mark.parametrize(("usual", "limit"), [(0.015, 0.15), (1.0, None)])
def test_the_gradient_rewards_the_success_and_corrects_the_failure_within_bounds(
    usual: float, limit: float | None
) -> None:
    """A push is ½ log m/p, here −.18, .25 and −.14: ten times a running mean of .015 cuts the first two at ±.15."""
    toy = three_token_policy({"question": [P], "right": [Q]})
    group = toy.group(toy.answer("b", 1.0, text="right"), toy.answer("a"))
    found = toy.update(Safe(), group, memory={"magnitude": usual}).gradients["question"][0]
    push = toward_mean(P, Q)
    push = push if limit is None else push.clamp(-limit, limit)
    close(found, moved(P, push) / 2 - 0.1 * towards("b", P) / 2 / 2)
