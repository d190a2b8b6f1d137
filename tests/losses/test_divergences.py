"""Divergences: values, pointwise h, and their ends."""

from __future__ import annotations

import math

import pytest
import textbook
import torch

from selfdistill.losses import ForwardKL, JensenShannon, ReverseKL, divergence

ALPHAS = (0.0, 0.2, 0.5, 0.8, 1.0)


def pair(rows: int = 4, outcomes: int = 9, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    z = spread * torch.randn(2, rows, outcomes, generator=draw, dtype=torch.float64)
    log_p, log_q = z.log_softmax(-1)
    return log_p, log_q


@pytest.mark.parametrize("alpha", ALPHAS)
def test_values_are_the_textbook_ones(alpha: float) -> None:
    log_p, log_q = pair()
    expected = textbook.divergence(alpha, log_p.exp(), log_q.exp())
    torch.testing.assert_close(divergence(alpha).evaluate(log_p, log_q).divergence_N, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_advantage_is_the_gradient_on_every_logit(alpha: float) -> None:
    log_p, log_q = pair()
    z = log_p.clone().requires_grad_()
    textbook.divergence(alpha, z.softmax(-1), log_q.exp()).sum().backward()
    p, a = log_p.exp(), divergence(alpha).advantage(log_p, log_q)
    torch.testing.assert_close(-p * (a - (p * a).sum(-1, keepdim=True)), z.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_numerator_is_p_times_advantage(alpha: float) -> None:
    log_p, log_q = pair()
    shape = divergence(alpha)
    numerator_NV = shape.evaluate(log_p, log_q).numerator_NV
    torch.testing.assert_close(numerator_NV, log_p.exp() * shape.advantage(log_p, log_q), rtol=0, atol=1e-14)


def test_jensen_shannon_half_is_symmetric_and_at_most_log_2() -> None:
    """Check 2, first half: at alpha = 0.5 student and teacher may be swapped, and the value is bounded."""
    log_p, log_q = pair(spread=20.0)
    forth, back = (
        JensenShannon(0.5).evaluate(log_p, log_q).divergence_N,
        JensenShannon(0.5).evaluate(log_q, log_p).divergence_N,
    )
    torch.testing.assert_close(forth, back, rtol=0, atol=1e-13)
    assert forth.max() <= math.log(2)
    assert forth.max() > 0.6  # the bound is nearly reached, so it was tested


def test_jensen_shannon_over_alpha_tends_to_the_kls() -> None:
    """Check 2, second half: the scale vanishes at both ends although the ends themselves are full KLs."""
    log_p, log_q = pair(spread=1.0)
    small = 1e-6
    near_0 = JensenShannon(small).evaluate(log_p, log_q).divergence_N / small
    near_1 = JensenShannon(1 - small).evaluate(log_p, log_q).divergence_N / small
    torch.testing.assert_close(near_0, ForwardKL().evaluate(log_p, log_q).divergence_N, rtol=1e-4, atol=0)
    torch.testing.assert_close(near_1, ReverseKL().evaluate(log_p, log_q).divergence_N, rtol=1e-4, atol=0)
    assert (
        JensenShannon(small).evaluate(log_p, log_q).divergence_N
        < 1e-4 * divergence(0).evaluate(log_p, log_q).divergence_N
    ).all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_distributions_give_exact_zeros(alpha: float, dtype: torch.dtype) -> None:
    log_p = pair()[0].to(dtype)
    compared = divergence(alpha).evaluate(log_p, log_p.clone())
    assert compared.divergence_N.count_nonzero() == 0
    assert compared.numerator_NV.count_nonzero() == 0


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gap", [200.0, 1e30])
def test_far_apart_distributions_stay_finite_in_float32(alpha: float, gap: float) -> None:
    log_p = torch.tensor([[0.0, -gap], [-gap, 0.0]])
    log_q = log_p.flip(-1)
    compared = divergence(alpha).evaluate(log_p, log_q)
    assert compared.divergence_N.isfinite().all()
    assert compared.numerator_NV.isfinite().all()
    if 0 < alpha < 1:  # disjoint supports: the entropy of (alpha, 1 - alpha)
        entropy = -alpha * math.log(alpha) - (1 - alpha) * math.log(1 - alpha)
        torch.testing.assert_close(compared.divergence_N, torch.full((2,), entropy))


def test_jensen_shannon_advantage_grows_linearly_far_out() -> None:
    log_p, log_q = torch.tensor([-500.0, 0.0]), torch.tensor([0.0, -500.0])
    expected = torch.tensor([0.5 * (500 - math.log(2)), 0.5 * -math.log(2)])
    torch.testing.assert_close(JensenShannon(0.5).advantage(log_p, log_q), expected)


def test_factory_names_the_ends() -> None:
    assert divergence(0) == ForwardKL()
    assert divergence(1) == ReverseKL()
    assert divergence(0.25) == JensenShannon(0.25)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
def test_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="got .*" + str(alpha)):
        divergence(alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_degenerate_mixtures_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be a number above 0, below 1"):
        JensenShannon(alpha)


def test_a_scalar_kl_used_as_advantage_has_no_expected_gradient() -> None:
    """Why no such term is offered: every token of the vocabulary gets the same advantage, which is a pure baseline."""
    log_p, log_q = pair()
    p = log_p.exp()
    scalar = ReverseKL().evaluate(log_p, log_q).divergence_N[:, None].expand_as(p)
    expected_gradient = p * (scalar - (p * scalar).sum(-1, keepdim=True))
    assert expected_gradient.abs().max() < 1e-15
    a = ReverseKL().advantage(log_p, log_q)
    assert (p * (a - (p * a).sum(-1, keepdim=True))).abs().max() > 0.1
