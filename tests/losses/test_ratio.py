"""Truncated importance weights."""

from __future__ import annotations

import math

import pytest
import signal_textbook as textbook
import torch

from selfdistill.losses import LossSpec, RatioCaps, ReverseKL, TokenWeights, fused_loss, importance_weight


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
            LossSpec(), case.hidden_ND, case.head, case.tokens_N, weights, views=[case.teacher], **logprobs
        )
        assert torch.equal(result.stats.ratio_N, torch.ones(6, dtype=torch.float64))
        assert torch.equal(result.stats.sampler_ratio_N, torch.ones(6, dtype=torch.float64))
        return result.loss.detach()

    plain = fused_loss(LossSpec(), case.hidden_ND, case.head, case.tokens_N, weights, views=[case.teacher])
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
    for caps in (RatioCaps(), RatioCaps(update=None), RatioCaps(sampler=None), RatioCaps(1.5, 1.1)):
        w1 = r1.clamp(max=caps.update) if caps.update else torch.ones(8).double()
        w2 = r2.clamp(max=caps.sampler) if caps.sampler else torch.ones(8).double()
        expected = (case.weight_N * w1 * w2 * textbook.kl(p, q.detach())).sum()
        result = fused_loss(
            LossSpec(divergence=ReverseKL(), ratio=caps), case.hidden_ND, case.head, case.tokens_N,
            TokenWeights(distil_N=case.weight_N), views=[case.teacher],
            old_logprobs_N=old, sampler_logprobs_N=sampler,
        )  # fmt: skip
        torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
        pairs = zip(textbook.gradients(result.loss, case), _keep(expected, case), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        cut = (r1 > (caps.update or math.inf)) | (r2 > (caps.sampler or math.inf))
        assert torch.equal(result.stats.clipped_N, cut)


def _keep(loss: torch.Tensor, case: textbook.Problem) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, textbook.parameters(case), retain_graph=True))


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_caps_must_be_positive(cap: float) -> None:
    with pytest.raises(ValueError, match="every token would weigh 0"):
        RatioCaps(update=cap)
    with pytest.raises(ValueError, match="None turns the weight off"):
        RatioCaps(sampler=cap)
