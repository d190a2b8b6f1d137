"""Supports: the outcomes that are compared, and distributions cut into a few tokens and the rest."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import textbook
import torch
from torch import Tensor

from selfdistill.losses import (
    Divergence,
    ForwardKL,
    FullVocabulary,
    JensenShannon,
    ReverseKL,
    SampledToken,
    Support,
    TopK,
)
from selfdistill.losses.divergences import GradientNumerator
from selfdistill.losses.support import BucketedDistribution, likeliest

TOKENS = torch.zeros(5, dtype=torch.long)
SHAPES = (ReverseKL(), ForwardKL(), JensenShannon(0.5), JensenShannon(0.1))


def pair(outcomes: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    log_p, log_q = torch.randn(2, 5, outcomes, generator=draw, dtype=torch.float64).mul(2).log_softmax(-1).to(dtype)
    return log_p, log_q


@dataclass(frozen=True)
class OnLogits:
    """What a support makes of two distributions."""

    divergence_N: Tensor
    gradient_NV: Tensor


def ones(like_NV: Tensor) -> Tensor:
    return torch.ones(len(like_NV), 1, dtype=like_NV.dtype)


def compare(support: Support, shape: Divergence, log_p: Tensor, log_q: Tensor, tokens: Tensor = TOKENS) -> OnLogits:
    buckets = support.own_buckets(log_p, log_q)
    student, teacher = BucketedDistribution.of(log_p, *buckets), BucketedDistribution.of(log_q, *buckets)
    compared = support.compare(student, teacher, tokens[: len(log_p)], shape, None)
    return OnLogits(compared.divergence_N, student.logit_gradient([(compared.numerator, ones(log_p))]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_with_tail_equals_full_at_v_minus_1(shape: ReverseKL, dtype: torch.dtype) -> None:
    """Check 1: one token in the tail is that token. Larger k is capped there."""
    log_p, log_q = pair(dtype=dtype)
    full = compare(FullVocabulary(), shape, log_p, log_q)
    for k in (7, 8, 1000):
        bucketed = compare(TopK(k), shape, log_p, log_q)
        torch.testing.assert_close(bucketed.divergence_N, full.divergence_N, rtol=0, atol=1e-6)
        torch.testing.assert_close(bucketed.gradient_NV, full.gradient_NV, rtol=0, atol=1e-6)


def test_full_reverse_kl_gradient_is_the_centred_log_ratio() -> None:
    """Check 1, second half: ∂L/∂z = p (log p − log q) minus p times its mean."""
    log_p, log_q = pair()
    p, d = log_p.exp(), log_p - log_q
    gradient = compare(FullVocabulary(), ReverseKL(), log_p, log_q).gradient_NV
    torch.testing.assert_close(gradient, p * (d - (p * d).sum(-1, keepdim=True)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_with_tail_is_a_lower_bound(k: int) -> None:
    log_p, log_q = pair()
    for shape in SHAPES:
        coarse = compare(TopK(k), shape, log_p, log_q).divergence_N
        assert (coarse <= shape.evaluate(log_p, log_q).divergence_N).all()
        assert (coarse > 0).all()


def test_expected_sampled_gradient_is_the_full_reverse_kl_gradient() -> None:
    """Check 3, exactly: the mean over every token y, weighted with p(y), instead of over many samples."""
    log_p, log_q = pair()
    expected, mean_value = torch.zeros_like(log_p), torch.zeros(5, dtype=log_p.dtype)
    for y in range(log_p.shape[-1]):
        one = compare(SampledToken(), ReverseKL(), log_p, log_q, torch.full((5,), y))
        expected += log_p[:, y : y + 1].exp() * one.gradient_NV
        mean_value += log_p[:, y].exp() * one.divergence_N
    full = compare(FullVocabulary(), ReverseKL(), log_p, log_q)
    torch.testing.assert_close(expected, full.gradient_NV, rtol=0, atol=1e-14)
    torch.testing.assert_close(mean_value, full.divergence_N, rtol=0, atol=1e-14)


def test_sampled_gradient_averages_to_the_full_one() -> None:
    """Check 3 as a user would meet it: 40,000 samples agree to a few standard errors."""
    log_p, log_q = (x[:1].expand(40_000, -1) for x in pair())
    draws = torch.multinomial(log_p[0].exp(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    each = compare(SampledToken(), ReverseKL(), log_p, log_q, draws).gradient_NV
    full = compare(FullVocabulary(), ReverseKL(), log_p, log_q, draws).gradient_NV[0]
    standard_error = each.std(0) / 200
    assert ((each.mean(0) - full).abs() < 4 * standard_error).all()
    assert (standard_error < 0.1 * full.abs().max()).all()


def test_raw_top_k_would_drain_mass_at_equality_and_ours_does_not() -> None:
    """Σ over the top k of p log(p/q) falls when p leaves the kept tokens, also where student and teacher agree."""
    log_p, _ = pair()
    z = log_p.clone().requires_grad_()
    kept = log_p.topk(3).indices
    log_now = z.log_softmax(-1).gather(-1, kept)
    (log_now.exp() * (log_now - log_p.gather(-1, kept))).sum().backward()
    assert z.grad is not None
    pushed = z.grad.gather(-1, kept).sum(-1)
    mass = log_p.gather(-1, kept).exp().sum(-1)
    torch.testing.assert_close(pushed, mass * (1 - mass))  # > 0: a descent step lowers the kept logits
    for support in (TopK(3), TopK(3, tail=False), FullVocabulary()):
        compared = compare(support, ReverseKL(), log_p, log_p.clone())
        assert compared.gradient_NV.abs().max() < 1e-15
        assert compared.divergence_N.abs().max() < 1e-15


def test_renormalised_support_leaves_tokens_outside_alone() -> None:
    log_p, log_q = pair()
    gradient = compare(TopK(3, tail=False), JensenShannon(), log_p, log_q).gradient_NV
    inside = log_p.topk(3).indices
    assert gradient.scatter(-1, inside, 0.0).abs().max() < 1e-15
    assert gradient.gather(-1, inside).abs().max() > 1e-3


def test_renormalised_over_everything_is_full() -> None:
    log_p, log_q = pair()
    full = compare(FullVocabulary(), ForwardKL(), log_p, log_q).divergence_N
    every = compare(TopK(99, tail=False), ForwardKL(), log_p, log_q).divergence_N
    torch.testing.assert_close(every, full)


def test_indices_come_from_the_student() -> None:
    """Check 4, third part: the teacher's favourite stays in the tail when the student does not share it."""
    log_p = torch.tensor([[0.6, 0.3, 0.08, 0.02]], dtype=torch.float64).log()
    log_q = torch.tensor([[0.01, 0.01, 0.08, 0.9]], dtype=torch.float64).log()
    value = compare(TopK(1), ReverseKL(), log_p, log_q).divergence_N
    p, q = torch.tensor([[0.6, 0.4]]).double(), torch.tensor([[0.01, 0.99]]).double()
    torch.testing.assert_close(value, textbook.kl(p, q))


def test_a_vanishing_tail_keeps_its_digits() -> None:
    """1 − Σ kept is 0 in float32 here; summed directly the tail is e^-30 and the value exact."""
    log_p = torch.tensor([[0.0, -30.0, -31.0]]).log_softmax(-1)
    log_q = torch.tensor([[0.0, -3.0, -4.0]]).log_softmax(-1)
    exact = ForwardKL().evaluate(log_p.double(), log_q.double()).divergence_N
    tail = compare(TopK(2), ForwardKL(), log_p, log_q)
    torch.testing.assert_close(tail.divergence_N.double(), exact, rtol=1e-6, atol=0)
    assert tail.gradient_NV.isfinite().all()


@pytest.mark.parametrize("k", [0, -5])
def test_k_must_be_positive(k: int) -> None:
    with pytest.raises(ValueError, match="FullVocabulary"):
        TopK(k)


def test_one_renormalised_token_is_refused() -> None:
    with pytest.raises(ValueError, match="identically 0"):
        TopK(1, tail=False)


@pytest.mark.parametrize(("of", "expected"), [("student", 1), ("teacher", 1), ("both", 2)])
def test_whose_favourites(of: str, expected: int) -> None:
    """The student's favourite is the first token, the teacher's the last: the number of outcomes beside the tail."""
    log_p = torch.tensor([[0.6, 0.3, 0.08, 0.02]], dtype=torch.float64).log()
    log_q = torch.tensor([[0.01, 0.01, 0.08, 0.9]], dtype=torch.float64).log()
    kept = {"student": [0], "teacher": [3], "both": [0, 3]}[of]
    assert len(kept) == expected
    p, q = (torch.cat([x.exp()[:, kept], 1 - x.exp()[:, kept].sum(-1, keepdim=True)], -1) for x in (log_p, log_q))
    value = compare(TopK(1, of), ReverseKL(), log_p, log_q).divergence_N
    torch.testing.assert_close(value, textbook.kl(p, q))


def test_a_token_that_both_name_counts_once() -> None:
    """Where both rank alike, the union is either's own top K: same value, same numerator."""
    log_p, _ = pair()
    log_q = (0.5 * log_p).log_softmax(-1)
    for tail in (True, False):
        both = compare(TopK(3, "both", tail), ReverseKL(), log_p, log_q)
        own = compare(TopK(3, "student", tail), ReverseKL(), log_p, log_q)
        torch.testing.assert_close(both.divergence_N, own.divergence_N)
        torch.testing.assert_close(both.gradient_NV, own.gradient_NV)


@pytest.mark.parametrize("k", [4, 7, 100])
def test_the_union_may_be_the_whole_vocabulary(k: int) -> None:
    """Nothing is left in the tail then: an empty bucket counts nothing and spoils nothing."""
    log_p, log_q = pair(outcomes=4)
    for shape in SHAPES:
        union = compare(TopK(k, of="both"), shape, log_p, log_q)
        full = compare(FullVocabulary(), shape, log_p, log_q)
        torch.testing.assert_close(union.divergence_N, full.divergence_N)
        torch.testing.assert_close(union.gradient_NV, full.gradient_NV)


def test_whose_must_be_known() -> None:
    with pytest.raises(ValueError, match="student, teacher, both"):
        TopK(3, of="mine")


def logits(positions: int = 4, vocabulary: int = 11) -> Tensor:
    return 3 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("k", [0, 1, 5, 10])
def test_a_split_is_the_softmax_however_it_is_cut(k: int) -> None:
    z = logits()
    p, ids = z.softmax(-1), z.topk(11).indices[:, 11 - k :]
    split = BucketedDistribution.of(z, ids)
    inside = p.gather(-1, ids)
    torch.testing.assert_close(split.log_p_NB.exp(), torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1))
    torch.testing.assert_close(split.log_p(), p.log())
    torch.testing.assert_close(split.logprobs(torch.arange(4)), p.log()[torch.arange(4), torch.arange(4)])
    torch.testing.assert_close(split.entropy_N, -(p * p.log()).sum(-1))
    torch.testing.assert_close(split.over_vocabulary(split.log_p_NB.exp()), p)


def test_a_rest_that_underflows_keeps_its_digits() -> None:
    """e^-200 is 0 in float32; its logarithm is known to the last digit, and the rest is still a distribution."""
    split = BucketedDistribution.of(torch.tensor([[0.0, -200.0, -201.0]]), torch.tensor([[0]]))
    expected = -200.0 + torch.tensor([0.0, -1.0]).logsumexp(-1)
    torch.testing.assert_close(split.log_p_NB[0, 1], expected)
    torch.testing.assert_close(
        split.over_vocabulary(torch.tensor([[0.0, 1.0]]))[0], torch.tensor([0.0, 0.731059, 0.268941])
    )


def test_a_nearly_certain_token_keeps_its_digits() -> None:
    """log(1 / (1 + e^-12)) = −6.14e-6, to the spacing of numbers near 1, although logits of 1,000 are
    spaced by 6e-5."""
    split = BucketedDistribution.of(torch.tensor([[1000.0, 988.0]]))
    torch.testing.assert_close(split.logprobs(torch.tensor([0])), torch.tensor([-6.14419e-6]), rtol=0, atol=1.2e-7)


def test_numerators_of_all_kinds_add_up() -> None:
    """On the whole vocabulary, on buckets and on single tokens: the sum of what each gives written out in full."""
    z, draw = logits(), torch.Generator().manual_seed(3)
    p, ids, sampled = z.softmax(-1), torch.tensor([[0, 7]]).expand(4, -1), torch.tensor([[1], [0], [7], [2]])
    whole, buckets, token = (torch.randn(4, n, generator=draw, dtype=torch.float64) for n in (11, 3, 1))
    rest = p.scatter(-1, ids, 0.0)
    dense = whole + rest / rest.sum(-1, keepdim=True) * buckets[:, 2:]
    dense = dense.scatter_add(-1, ids, buckets[:, :2]).scatter_add(-1, sampled, token)
    numerators = [
        (GradientNumerator(whole.clone()), ones(z)),
        (GradientNumerator(buckets.clone(), on_buckets=True), ones(z)),
        (GradientNumerator(token.clone(), sampled), ones(z)),
    ]
    gradient = BucketedDistribution.of(z, ids).logit_gradient(numerators)
    torch.testing.assert_close(gradient, p * dense.sum(-1, keepdim=True) - dense)


@pytest.mark.parametrize(("vocabulary", "k"), [(64 * 9, 2), (64 * 9 + 13, 2), (3000, 11), (100, 30)])
def test_the_likeliest_tokens_are_those_of_a_sort(vocabulary: int, k: int) -> None:
    z = logits(50, vocabulary)
    assert torch.equal(likeliest(z, k), z.sort(dim=-1, descending=True).indices[:, :k])


def test_likeliest_tokens_among_ties_are_as_large() -> None:
    z = logits(50, 3000).round()
    assert torch.equal(z.gather(-1, likeliest(z, 11)), z.topk(11).values)
    assert all(len(set(row)) == 11 for row in likeliest(z, 11).tolist())
