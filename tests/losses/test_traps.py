"""Mistakes that train plausible curves and teach nothing, or the opposite. Each is named, and shown not to be made."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import textbook
import torch
from kernel_runs import run
from test_combinations import MIXTURES, SHAPES, SUPPORTS
from torch import Tensor

from selfdistill.losses import (
    Clip,
    ClippedForwardKL,
    Contrast,
    Divergence,
    EntropyGate,
    ForwardKL,
    FullVocabulary,
    FusedResult,
    Head,
    LossSpec,
    Multiplicative,
    PolicyGradient,
    Product,
    Repel,
    ReverseKL,
    SampledToken,
    Support,
    TeacherMixture,
    TeacherStates,
    TokenWeights,
    TopK,
    fused_loss,
)

DISTRIBUTIONS = {name: shape for name, shape in SHAPES.items() if name != "clipped"}
EXACT = {name: support for name, support in SUPPORTS.items() if name != "sampled"}


def views_for(kind: TeacherMixture, wanted: TeacherStates, unwanted: TeacherStates) -> list[TeacherStates]:
    return [wanted, replace(unwanted, against=True)] if isinstance(kind, Contrast) else [wanted]


class Policy:
    """An exact policy: one row of logits per position, under a head that changes nothing."""

    def __init__(self, vocabulary: int = 6) -> None:
        draw = torch.Generator().manual_seed(5)
        self.logits_NV, self.teacher_NV, self.other_NV = 1.2 * torch.randn(
            3, 3, vocabulary, generator=draw, dtype=torch.float64
        )
        self.head = Head(torch.eye(vocabulary, dtype=torch.float64))

    def run(
        self, loss_spec: LossSpec, logits_NV: Tensor, tokens_N: Tensor | None = None, weight: float = 1.0
    ) -> FusedResult:
        views = views_for(loss_spec.mixture, *(TeacherStates(x, self.head) for x in (self.teacher_NV, self.other_NV)))
        tokens_N = torch.zeros(3, dtype=torch.long) if tokens_N is None else tokens_N
        weights = TokenWeights(distil_N=torch.full((3,), weight, dtype=torch.float64))
        reference = TeacherStates(self.other_NV, self.head)
        return fused_loss(loss_spec, logits_NV, self.head, tokens_N, weights, teacher=views, reference=reference)

    def gradient(self, loss_spec: LossSpec, tokens_N: Tensor | None = None, weight: float = 1.0) -> Tensor:
        leaf = self.logits_NV.clone().requires_grad_()
        return torch.autograd.grad(self.run(loss_spec, leaf, tokens_N, weight).loss, leaf)[0]


@pytest.mark.parametrize("support", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["product", "contrast-teacher"])
def test_gradient_equals_central_differences_of_an_exact_policy(kind: str, shape: str, support: str) -> None:
    """No autograd on either side: the loss at z ± 1e-6 along every logit. (The teacher must not depend on z.)"""
    policy, loss_spec, step = Policy(), LossSpec(SUPPORTS[support], SHAPES[shape], mixture=MIXTURES[kind]), 1e-6
    for place in product(range(3), range(6)):
        shift = torch.zeros_like(policy.logits_NV)
        shift[place] = step
        up, down = (policy.run(loss_spec, policy.logits_NV + sign * shift).loss for sign in (1, -1))
        assert policy.gradient(loss_spec)[place].item() == pytest.approx((up - down).item() / (2 * step), abs=2e-8)


@pytest.mark.parametrize("clipping", [None, Clip(0.4)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["product", "contrast"])
def test_the_sampled_token_averages_to_the_full_gradient_for_every_shape(kind: str, shape: str, clipping: Any) -> None:
    """Σ_y p(y) · (gradient when y was sampled), over every y: exactly the gradient over the full vocabulary."""
    policy = Policy()
    full, sampled = (
        LossSpec(support, SHAPES[shape], mixture=MIXTURES[kind], clipping=clipping)
        for support in (FullVocabulary(), SampledToken())
    )
    p = policy.logits_NV.softmax(-1)
    mean = sum(p[:, y : y + 1] * policy.gradient(sampled, torch.full((3,), y)) for y in range(6))
    torch.testing.assert_close(mean, policy.gradient(full), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_the_same_context_teaches_exactly_nothing(kind: str, support: str, dtype: torch.dtype) -> None:
    """Teacher, reference and those against read what the student reads: u is 0, not merely small, and so are all
    gradients, for every shape and bound. A shift by one token anywhere breaks this."""
    case = textbook.problem(positions=9, vocabulary=33, dtype=dtype, bias=True, softcap=5.0)
    itself = TeacherStates(case.hidden_ND.detach(), case.head)
    if not MIXTURES[kind].normalise and support != "sampled":
        return
    part = torch.arange(9) % 2 == 0
    thrice = [replace(itself, weight=share) for share in (0.2, 0.3, 0.5)]
    partly = [itself, replace(itself, present_N=part), replace(itself, weight=3.0)]
    against = [replace(itself, against=True), replace(itself, against=True, weight=2.0, present_N=part)]
    for wanted in (thrice, partly):
        views = [*wanted, *(against if isinstance(MIXTURES[kind], Contrast) else ())]
        for shape, clipping in [*((shape, None) for shape in SHAPES.values()), (ReverseKL(), Clip(0.1))]:
            loss_spec = LossSpec(SUPPORTS[support], shape, temperature=0.7, mixture=MIXTURES[kind], clipping=clipping)
            result = run(case, loss_spec, views, reference=itself, chunk=4)
            assert result.loss.item() == 0
            assert result.stats.magnitude_N.count_nonzero() == 0
            if MIXTURES[kind].normalise:
                assert result.stats.log_ratio_N.count_nonzero() == 0
            assert all(g.count_nonzero() == 0 for g in textbook.gradients(result.loss, case))


@pytest.mark.parametrize("support", EXACT)
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
def test_divergences_are_never_negative_and_zero_means_equal(shape: str, support: str) -> None:
    """Gibbs: also of buckets and of renormalised tokens."""
    policy, loss_spec = Policy(), LossSpec(SUPPORTS[support], SHAPES[shape])
    assert (policy.run(loss_spec, policy.logits_NV).stats.divergence_N > 0).all()
    same = policy.run(loss_spec, policy.teacher_NV.clone()).stats.divergence_N
    assert same.abs().max() < 1e-15


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", ["product", "contrast"])
def test_the_sign_is_toward_the_teacher(kind: str, shape: str, support: str) -> None:
    """A small step against the gradient brings the student nearer to its target; with a negative weight it moves
    away. (The sampled token in expectation: averaged over what may be sampled.)"""
    policy = Policy()
    loss_spec = LossSpec(SUPPORTS[support], SHAPES[shape], mixture=MIXTURES[kind])
    p = policy.logits_NV.softmax(-1)
    views = views_for(loss_spec.mixture, *(TeacherStates(x, policy.head) for x in (policy.teacher_NV, policy.other_NV)))
    q = textbook.target(loss_spec.mixture, views, p, policy.other_NV.softmax(-1))
    before = measured(loss_spec, p, q)
    for weight in (1.0, -1.0):
        if support == "sampled":
            each = [p[:, y : y + 1] * policy.gradient(loss_spec, torch.full((3,), y), weight) for y in range(6)]
            gradient = torch.stack(each).sum(0)
        else:
            gradient = policy.gradient(loss_spec, weight=weight)
        after = measured(loss_spec, (policy.logits_NV - 1e-3 * gradient).softmax(-1), q)
        assert (weight * (after - before) < 0).all()


def measured(loss_spec: LossSpec, p: Tensor, q: Tensor) -> Tensor:
    """The divergence that the loss reduces."""
    support: Support = FullVocabulary() if isinstance(loss_spec.support, SampledToken) else loss_spec.support
    return textbook.numbers(support, loss_spec.divergence, None, p, q, torch.zeros(3, dtype=torch.long)).divergence_N


def test_a_clipped_forward_kl_lowers_what_the_teacher_prefers_most() -> None:
    """p uniform over four, q = (.7, .1, .1, .1): .7 log 2.8 = .72 is cut at .05. The gradient on the first logit is
    p Σ_uncut q = .25 · .3 = +.075: down, where the forward KL has p − q = −.45: up."""
    q = torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    gradients = {}
    for shape in (ForwardKL(), ClippedForwardKL(0.05)):
        compared = shape.evaluate(torch.full((1, 4), 0.25).double().log(), q.log())
        gradients[shape] = 0.25 * compared.numerator_NV.sum() - compared.numerator_NV
    assert gradients[ForwardKL()][0, 0].item() == pytest.approx(-0.45)
    assert gradients[ClippedForwardKL(0.05)][0, 0].item() == pytest.approx(0.075)
    assert gradients[ClippedForwardKL(0.05)][0, 1].item() == pytest.approx(-0.025)


def test_a_clipped_forward_kl_may_be_negative() -> None:
    """.05 + 3 · .1 log .4 = −.225; without a cut to make it is the forward KL."""
    log_p, log_q = torch.full((1, 4), 0.25).double().log(), torch.tensor([[0.7, 0.1, 0.1, 0.1]]).double().log()
    assert ClippedForwardKL(0.05).evaluate(log_p, log_q).divergence_N.item() == pytest.approx(
        0.05 + 0.3 * math.log(0.4)
    )
    torch.testing.assert_close(
        ClippedForwardKL(1.0).evaluate(log_p, log_q).divergence_N,
        ForwardKL().evaluate(log_p, log_q).divergence_N,
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("of", ["student", "teacher", "both"])
@pytest.mark.parametrize("tail", [True, False])
def test_top_k_drains_nothing_where_both_agree(of: Any, tail: bool) -> None:
    """Raw sums over the top tokens move mass out of them at p = q; no support on offer does."""
    policy = Policy()
    policy.teacher_NV = policy.logits_NV.clone()
    for shape in SHAPES.values():
        assert policy.gradient(LossSpec(TopK(2, of, tail), shape)).count_nonzero() == 0


@pytest.mark.parametrize("of", ["student", "teacher", "both"])
def test_one_renormalised_token_is_refused(of: Any) -> None:
    with pytest.raises(ValueError, match="identically 0"):
        TopK(1, of, tail=False)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_the_gradient_of_a_position_sums_to_0_over_the_vocabulary(shape: Divergence) -> None:
    """Adding a constant to all logits changes no probability, so it must not change a loss."""
    policy = Policy()
    for support, clipping in product(SUPPORTS.values(), (None, Clip(0.2))):
        total = policy.gradient(LossSpec(support, shape, clipping=clipping)).sum(-1)
        assert total.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["product", "contrast"])
@pytest.mark.parametrize("support", ["full", "both-tail", "both-renormalised", "teacher-tail"])
def test_chunk_size_changes_nothing(kind: str, support: str) -> None:
    case = textbook.problem(positions=11, bias=True, softcap=4.0)
    present = torch.arange(11) < 5
    one, other, against = (textbook.problem(positions=11, seed=s).teacher for s in (1, 2, 3))
    views = [replace(one, present_N=present), replace(other, present_N=~present | (torch.arange(11) == 2))]
    if isinstance(MIXTURES[kind], Contrast):
        views.append(replace(against, against=True, present_N=torch.arange(11) % 4 == 0))
    loss_spec = LossSpec(SUPPORTS[support], mixture=MIXTURES[kind], clipping=Clip(0.5))
    whole = run(case, loss_spec, views, reference=against, chunk=11)
    expected = textbook.gradients(whole.loss, case)
    for chunk in (1, 2, 5, None):
        cut = run(case, loss_spec, views, reference=against, chunk=chunk)
        torch.testing.assert_close(cut.loss, whole.loss, rtol=0, atol=1e-13)
        for ours, theirs in zip(textbook.gradients(cut.loss, case), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_unknown_sampler_log_probabilities_are_ratios_of_1() -> None:
    """NaN says that nobody knows; the tokens beside it are corrected as ever."""
    case = textbook.problem()
    plain = run(case, LossSpec(), [case.teacher])
    known = plain.stats.logprobs_N - 0.3
    partly = known.where(torch.arange(6) % 2 == 0, torch.nan)
    advantage = TokenWeights(distil_N=case.weight_N, advantage_N=case.weight_N)
    result = run(case, LossSpec(), [case.teacher], weights=advantage, sampler_logprobs_N=partly)
    expected = torch.tensor([math.exp(0.3), 1, math.exp(0.3), 1, math.exp(0.3), 1]).double()
    torch.testing.assert_close(result.stats.sampler_ratio_N, expected)
    unknown = run(case, LossSpec(), [case.teacher], sampler_logprobs_N=torch.full((6,), torch.nan))
    assert torch.equal(unknown.loss, plain.loss)
    assert torch.equal(unknown.stats.sampler_ratio_N, torch.ones(6).double())
    assert not unknown.stats.clipped_N.any()


def test_a_clipped_ratio_stops_the_policy_gradient_and_leaves_the_distillation() -> None:
    """Far off-policy upward with A > 0: the policy gradient ends at the clip, the teacher's stays (capped at 2)."""
    case = textbook.problem()
    old = run(case, LossSpec(), [case.teacher]).stats.logprobs_N - 2.0
    loss_spec, ones = LossSpec(policy=PolicyGradient()), torch.ones(6).double()
    credited = run(case, loss_spec, [], weights=TokenWeights(advantage_N=ones), old_logprobs_N=old)
    assert textbook.gradients(credited.loss, case)[0].count_nonzero() == 0
    both = run(case, loss_spec, [case.teacher], weights=TokenWeights(ones, ones), old_logprobs_N=old)
    alone = run(case, loss_spec, [case.teacher], weights=TokenWeights(ones))
    for ours, theirs in zip(textbook.gradients(both.loss, case), textbook.gradients(alone.loss, case), strict=True):
        torch.testing.assert_close(ours, 2 * theirs)


@pytest.mark.parametrize("kind", ["product", "contrast", "contrast-raw"])
def test_log_ratios_is_read_as_the_loss_forms_it(kind: str) -> None:
    """The log-ratio of a table before an update is that of the update."""
    case, (one, other) = textbook.problem(), (textbook.problem(seed=s).teacher for s in (1, 2))
    views = views_for(MIXTURES[kind], one, other)
    support = FullVocabulary() if MIXTURES[kind].normalise else SampledToken()
    seen = run(case, LossSpec(support, temperature=0.7, mixture=MIXTURES[kind]), views).stats
    loss_spec = LossSpec(SampledToken(), ReverseKL(), temperature=0.7, mixture=MIXTURES[kind])
    update = run(case, loss_spec, views).stats
    assert torch.equal(seen.log_ratio_N, update.log_ratio_N)
    assert torch.equal(seen.teacher_entropy_N, update.teacher_entropy_N)


def test_what_a_loss_spec_needs_beforehand() -> None:
    assert not LossSpec().needs_table
    assert not LossSpec().needs_log_ratio
    assert LossSpec(distil_sign=Repel()).needs_table
    assert not LossSpec(distil_sign=Repel()).needs_log_ratio
    assert LossSpec(shaping=Multiplicative()).needs_table
    assert LossSpec(shaping=Multiplicative()).needs_log_ratio
    assert LossSpec(gate=EntropyGate()).needs_table
    assert LossSpec(gate=EntropyGate()).needs_log_ratio


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        ClippedForwardKL(limit)


def test_products_may_extrapolate() -> None:
    """Weights (1.5, −0.5): beyond the first view, away from the second."""
    case, (one, other) = textbook.problem(), (textbook.problem(seed=s).teacher for s in (1, 2))
    views = [replace(one, weight=1.5), replace(other, weight=-0.5)]
    p, q_one, q_other = (textbook.probabilities(v.hidden_ND, v.head).detach() for v in (case, one, other))
    q = textbook.normalised(q_one**1.5 / q_other**0.5)
    result = run(case, LossSpec(divergence=ReverseKL(), mixture=Product()), views)
    torch.testing.assert_close(result.stats.divergence_N, textbook.kl(p, q))
