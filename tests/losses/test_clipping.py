"""Clipping, and the magnitude before it."""

from __future__ import annotations

from typing import Any

import pytest
import textbook
import torch

from selfdistill.losses import (
    Clip,
    ForwardKL,
    FullVocabulary,
    JensenShannon,
    LossSpec,
    Relative,
    ReverseKL,
    SampledToken,
    Tanh,
    TokenWeights,
    TopK,
    fused_loss,
)
from selfdistill.losses.support import BucketedDistribution, Comparison

P, Q = (torch.tensor([row], dtype=torch.float64) for row in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))
TOKENS = torch.zeros(1, dtype=torch.long)


def compare(clipping: Any, divergence: Any = None, log_p: Any = None, log_q: Any = None) -> Comparison:
    student, teacher = (BucketedDistribution.of(x) for x in ((P.log(), Q.log()) if log_p is None else (log_p, log_q)))
    return FullVocabulary().compare(student, teacher, TOKENS, divergence or ReverseKL(), clipping)


def run(case: textbook.Problem, **loss_spec: Any) -> Any:
    weights = TokenWeights(distil_N=case.weight_N)
    return fused_loss(LossSpec(**loss_spec), case.hidden_ND, case.head, case.tokens_N, weights, teacher=[case.teacher])


def test_bounds_by_hand() -> None:
    """u = (−log 2, 0, log 2) at p = (1/2, 1/4, 1/4), with log 2 = .693."""
    p = P[0]
    two = torch.tensor([-1.0, 0.0, 1.0]).double()
    torch.testing.assert_close(compare(Clip(0.5)).numerator.values_NE[0], 0.5 * two * p)
    torch.testing.assert_close(compare(Clip(0.7)).numerator.values_NE[0], compare(None).numerator.values_NE[0])
    torch.testing.assert_close(compare(Tanh(0.1)).numerator.values_NE[0], torch.tanh(two * 6.931471805599453) * p)


def test_the_divergence_and_the_magnitude_are_those_before_the_bound() -> None:
    for shape in (ReverseKL(), ForwardKL(), JensenShannon(0.3)):
        plain, held = compare(None, shape), compare(Clip(0.1), shape)
        torch.testing.assert_close(held.divergence_N, plain.divergence_N)
        torch.testing.assert_close(held.magnitude_N, plain.magnitude_N)
        torch.testing.assert_close(plain.magnitude_N, plain.numerator.values_NE.abs().sum(-1))


@pytest.mark.parametrize("support", [FullVocabulary(), TopK(2), TopK(3, tail=False), SampledToken()], ids=str)
def test_a_bound_beyond_every_advantage_changes_no_gradient(support: Any) -> None:
    case = textbook.problem()
    plain, wide = (
        run(case, support=support, divergence=ReverseKL(), clipping=clipping) for clipping in (None, Clip(1e6))
    )
    for ours, theirs in zip(textbook.gradients(wide.loss, case), textbook.gradients(plain.loss, case), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(wide.loss, plain.loss)


def test_a_tight_clip_limits_the_gradient_and_leaves_the_value_a_divergence() -> None:
    """|∂L/∂z| ≤ 2 p · limit: with hidden states as logits each row of the gradient holds to that."""
    case = textbook.problem(vocabulary=4, size=4)
    eye = type(case.head)(torch.eye(4, dtype=torch.float64))
    weights = TokenWeights(distil_N=torch.ones(6))
    loss_spec = LossSpec(divergence=ReverseKL(), clipping=Clip(0.01))
    loss = fused_loss(loss_spec, case.hidden_ND, eye, case.tokens_N, weights, teacher=[case.teacher]).loss
    free = fused_loss(
        LossSpec(divergence=ReverseKL()), case.hidden_ND, eye, case.tokens_N, weights, teacher=[case.teacher]
    )
    assert torch.equal(loss, free.loss)
    (gradient,) = torch.autograd.grad(loss, case.hidden_ND)
    assert (gradient.abs() <= 0.02 * case.hidden_ND.softmax(-1)).all()


@pytest.mark.parametrize("clipping", [Clip(1.0), Tanh(1.0)], ids=str)
@pytest.mark.parametrize("shape", [ReverseKL(), ForwardKL(), JensenShannon()], ids=str)
def test_bounds_stay_finite_where_probabilities_vanish(clipping: Any, shape: Any) -> None:
    """float32: p underflows to 0 at the first token, q at the second."""
    log_p, log_q = torch.tensor([[-200.0, 0.0]]), torch.tensor([[0.0, -200.0]])
    compared = compare(clipping, shape, log_p, log_q)
    assert compared.numerator.values_NE.isfinite().all()
    assert compared.divergence_N.isfinite().all()


def test_a_relative_clip_becomes_a_clip() -> None:
    assert Relative(3.0).resolve(0.5) == Clip(1.5)
    assert Relative().resolve(None) is None
    assert Relative().resolve(0.0) is None


def test_an_unresolved_relative_clip_is_refused_where_it_would_act() -> None:
    case = textbook.problem()
    with pytest.raises(ValueError, match=r"\.resolve\(mean"):
        run(case, clipping=Relative())
    nothing = TokenWeights(advantage_N=case.weight_N)
    fused_loss(LossSpec(clipping=Relative()), case.hidden_ND, case.head, case.tokens_N, nothing)


@pytest.mark.parametrize("make", [Clip, Tanh, Relative])
@pytest.mark.parametrize("number", [0.0, -1.0, float("nan")])
def test_bounds_must_be_positive(make: Any, number: float) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        make(number)
