"""The clipped policy gradient against its literal form, and truncated importance weights."""

from __future__ import annotations

import math

import pytest
import textbook
import torch

from selfdistill.losses import (
    Head,
    LossSpec,
    PolicyGradient,
    RatioCaps,
    ReverseKL,
    TokenWeights,
    fused_loss,
)
from selfdistill.losses.policy_gradient import importance_weight, probability_ratio


@pytest.mark.parametrize("options", [PolicyGradient(), PolicyGradient(0.1, 0.1, 1.5)], ids=str)
def test_term_equals_the_literal_objective(options: PolicyGradient) -> None:
    ratios = torch.tensor([0.01, 0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.0, 2.9, 3.1, 50.0], dtype=torch.float64)
    advantages = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0], dtype=torch.float64)
    old = torch.full((55,), -1.3, dtype=torch.float64)
    logprob = (old + ratios.log().repeat(5)).requires_grad_()
    advantage = advantages.repeat_interleave(11)
    literal = textbook.ppo_loss(logprob, old, advantage, options.clip_low, options.clip_high, options.dual_clip)
    (slope,) = torch.autograd.grad(literal.sum(), logprob)
    loss, slope_found, clipped = options.term(logprob.detach(), old, advantage)
    torch.testing.assert_close(loss, literal.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(slope_found, slope, rtol=0, atol=1e-12)
    assert torch.equal(clipped, (slope == 0) & (advantage != 0))


def test_on_policy_is_the_plain_policy_gradient() -> None:
    logprob, advantage = torch.tensor([-0.1, -4.0, -9.0]), torch.tensor([0.75, -0.25, 0.0])
    loss, slope, clipped = PolicyGradient().term(logprob, logprob.clone(), advantage)
    assert torch.equal(probability_ratio(logprob, logprob.clone()), torch.ones(3))
    assert torch.equal(slope, -advantage)
    assert torch.equal(loss, -advantage)
    assert not clipped.any()


def test_term_scales_with_its_weight() -> None:
    logprob, old = torch.tensor([-0.5, -1.0, -3.0]).double(), torch.tensor([-1.0, -1.0, -1.0]).double()
    advantage, weight = torch.tensor([1.0, -1.0, -1.0]).double(), torch.tensor([0.1, 0.0, 7.0]).double()
    plain, scaled = (PolicyGradient().term(logprob, old, a) for a in (advantage, weight * advantage))
    torch.testing.assert_close(scaled[0], weight * plain[0])
    torch.testing.assert_close(scaled[1], weight * plain[1])


def test_a_token_that_became_impossible_stays_finite() -> None:
    now, before = torch.tensor([-1e30, -1e-3]), torch.tensor([-1.0, -1e30])
    loss, *_ = PolicyGradient().term(now, before, torch.tensor([1.0, -1.0]))
    assert loss.isfinite().all()
    assert loss[1] == 3.0  # the dual clip


@pytest.mark.parametrize("chunk", [None, 2])
def test_grpo_through_the_kernel_equals_literal_autograd(chunk: int | None) -> None:
    case = textbook.problem(positions=9, bias=True, softcap=3.0)
    draw = torch.Generator().manual_seed(5)
    log_p = textbook.probabilities(case.hidden_ND, case.head, 0.7).log()
    logprob = log_p.gather(-1, case.tokens_N[:, None])[:, 0]
    old = logprob.detach() + 0.5 * torch.randn(9, generator=draw, dtype=torch.float64)
    sampler = old + 0.6 * torch.randn(9, generator=draw, dtype=torch.float64)
    advantage = torch.randn(9, generator=draw, dtype=torch.float64)
    truncated = (old - sampler).exp().clamp(max=2.0)
    expected = (case.weight_N * truncated * textbook.ppo_loss(logprob, old, advantage)).sum()
    result = fused_loss(
        LossSpec(temperature=0.7),
        case.hidden_ND,
        case.head,
        case.tokens_N,
        TokenWeights(advantage_N=case.weight_N * advantage),
        old_logprobs_N=old,
        sampler_logprobs_N=sampler,
        chunk=chunk,
    )
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(textbook.gradients(result.loss, case), textbook.gradients(expected, case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.stats.ratio_N, (logprob.detach() - old).exp())
    assert 0 < result.stats.clipped_N.sum() < 9


def test_one_sample_by_hand() -> None:
    """Three equal logits, y = 0, A = 1: ∂L/∂z = −(1[v=y] − p) = (−2/3, 1/3, 1/3)."""
    z = torch.zeros(1, 3, requires_grad=True)
    weights = TokenWeights(advantage_N=torch.ones(1))
    fused_loss(LossSpec(), z, Head(torch.eye(3)), torch.tensor([0]), weights).loss.backward()
    torch.testing.assert_close(z.grad, torch.tensor([[-2 / 3, 1 / 3, 1 / 3]]))


@pytest.mark.parametrize("wrong", [{"clip_low": 1.0}, {"clip_high": -0.1}, {"dual_clip": 1.2}, {"clip_low": math.nan}])
def test_clips_that_exclude_a_ratio_of_1_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^(clip_low|clip_high|dual_clip) must be"):
        PolicyGradient(**wrong)


def test_weights_by_hand() -> None:
    now, before = torch.tensor([-1.0, -1.0, -1.0, -1.0]), torch.tensor([-1.0, -3.0, -1.0 - math.log(1.5), 0.0])
    torch.testing.assert_close(importance_weight(now, before, 2.0), torch.tensor([1.0, 2.0, 1.5, math.exp(-1)]))
    torch.testing.assert_close(importance_weight(now, before, None), torch.ones(4))


def test_weights_are_detached_and_finite() -> None:
    now = torch.tensor([-1.0, -1e30], requires_grad=True)
    weight = importance_weight(now, torch.tensor([-1e30, -1.0]), cap=math.inf)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.tensor([math.exp(20), math.exp(-20)]))


def test_on_policy_both_weights_are_exactly_1() -> None:
    """Check 8, first half: without old log-probabilities, and with the very same ones."""
    case = textbook.problem()
    weights = TokenWeights(distil_N=case.weight_N)

    def run(**logprobs: torch.Tensor) -> torch.Tensor:
        result = fused_loss(
            LossSpec(), case.hidden_ND, case.head, case.tokens_N, weights, teacher=[case.teacher], **logprobs
        )
        assert torch.equal(result.stats.ratio_N, torch.ones(6, dtype=torch.float64))
        assert torch.equal(result.stats.sampler_ratio_N, torch.ones(6, dtype=torch.float64))
        return result.loss.detach()

    plain = fused_loss(LossSpec(), case.hidden_ND, case.head, case.tokens_N, weights, teacher=[case.teacher])
    same = plain.stats.logprobs_N
    assert torch.equal(run(), plain.loss)
    assert torch.equal(run(old_logprobs_N=same, sampler_logprobs_N=same), plain.loss)


def test_off_policy_weights_multiply_positions_and_are_capped() -> None:
    """Check 8, second half: both at most 2, both detached, against autograd with literal weights."""
    case = textbook.problem(positions=8)
    draw = torch.Generator().manual_seed(2)
    p, q = (textbook.probabilities(v.hidden_ND, v.head) for v in (case, case.teacher))
    logprob = p.log().gather(-1, case.tokens_N[:, None])[:, 0].detach()
    old = logprob + torch.randn(8, generator=draw, dtype=torch.float64)
    sampler = old + torch.randn(8, generator=draw, dtype=torch.float64)
    r1, r2 = (logprob - old).exp(), (old - sampler).exp()
    assert r1.max() > 2
    assert r2.max() > 2
    for caps in (RatioCaps(), RatioCaps(policy_ratio=None), RatioCaps(sampler_ratio=None), RatioCaps(1.5, 1.1)):
        w1 = r1.clamp(max=caps.policy_ratio) if caps.policy_ratio else torch.ones(8).double()
        w2 = r2.clamp(max=caps.sampler_ratio) if caps.sampler_ratio else torch.ones(8).double()
        expected = (case.weight_N * w1 * w2 * textbook.kl(p, q.detach())).sum()
        result = fused_loss(
            LossSpec(divergence=ReverseKL(), ratio=caps), case.hidden_ND, case.head, case.tokens_N,
            TokenWeights(distil_N=case.weight_N), teacher=[case.teacher],
            old_logprobs_N=old, sampler_logprobs_N=sampler,
        )  # fmt: skip
        torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
        pairs = zip(textbook.gradients(result.loss, case), _keep(expected, case), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        cut = (r1 > (caps.policy_ratio or math.inf)) | (r2 > (caps.sampler_ratio or math.inf))
        assert torch.equal(result.stats.clipped_N, cut)


def _keep(loss: torch.Tensor, case: textbook.Problem) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, textbook.parameters(case), retain_graph=True))


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_caps_must_be_positive(cap: float) -> None:
    with pytest.raises(ValueError, match="policy_ratio must be a number above 0, or inf"):
        RatioCaps(policy_ratio=cap)
    with pytest.raises(ValueError, match="sampler_ratio must be a number above 0, or inf"):
        RatioCaps(sampler_ratio=cap)
