"""Reading without learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import signal_textbook as textbook
import torch

from selfdistill.losses import LossSpec, Product, TokenWeights, fused_loss, read_log_ratios, token_logprobs


def test_logprobs_and_entropy_are_those_of_the_update() -> None:
    case = textbook.problem(bias=True, softcap=3.0)
    logprobs, entropy = token_logprobs(case.hidden_ND, case.head, case.tokens_N, temperature=0.7, chunk=4)
    p = textbook.probabilities(case.hidden_ND, case.head, 0.7)
    torch.testing.assert_close(logprobs, p.log().gather(-1, case.tokens_N[:, None])[:, 0].detach())
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1).detach())
    assert not logprobs.requires_grad
    update = fused_loss(LossSpec(temperature=0.7), case.hidden_ND, case.head, case.tokens_N, TokenWeights(), chunk=4)
    assert torch.equal(update.stats.logprobs_N, logprobs)


def test_evidence_telescopes_to_the_odds_of_the_answer() -> None:
    """Σ u(y_t) is log of how much more likely the teacher finds the whole answer."""
    case = textbook.problem()
    seen = read_log_ratios(case.hidden_ND, case.head, [case.teacher], case.tokens_N, chunk=2)
    at = (torch.arange(6), case.tokens_N)
    p, q = (textbook.probabilities(v.hidden_ND, v.head)[at].detach() for v in (case, case.teacher))
    torch.testing.assert_close(seen.log_ratio_N.sum(), (q.prod() / p.prod()).log())


def test_evidence_is_absent_where_nobody_read() -> None:
    case = textbook.problem()
    here = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    seen = read_log_ratios(
        case.hidden_ND, case.head, [replace(case.teacher, present_N=here)], case.tokens_N, target=Product()
    )
    whole = read_log_ratios(case.hidden_ND, case.head, [case.teacher], case.tokens_N)
    assert torch.equal(seen.log_ratio_N.isnan(), ~here)
    torch.testing.assert_close(seen.log_ratio_N[here], whole.log_ratio_N[here])
    with pytest.raises(ValueError, match="no views"):
        read_log_ratios(case.hidden_ND, case.head, [], case.tokens_N)
