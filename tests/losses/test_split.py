"""Distributions cut into a few tokens and the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfdistill.losses.flow import GradientNumerator, logit_gradient
from selfdistill.losses.split import BucketedDistribution, OwnBuckets, likeliest


def logits(positions: int = 4, vocabulary: int = 11) -> Tensor:
    return 3 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("k", [0, 1, 5, 10])
def test_a_split_is_the_softmax_however_it_is_cut(k: int) -> None:
    z = logits()
    p, ids = z.softmax(-1), z.topk(11).indices[:, 11 - k :]
    split = BucketedDistribution.of(z, OwnBuckets(ids))
    inside = p.gather(-1, ids)
    torch.testing.assert_close(split.log_p_NB.exp(), torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1))
    torch.testing.assert_close(split.log_p(), p.log())
    torch.testing.assert_close(split.at(torch.arange(4)), p.log()[torch.arange(4), torch.arange(4)])
    torch.testing.assert_close(split.entropy_N, -(p * p.log()).sum(-1))
    torch.testing.assert_close(split.spread(split.log_p_NB.exp()), p)


def test_a_rest_that_underflows_keeps_its_digits() -> None:
    """e^-200 is 0 in float32; its logarithm is known to the last digit, and the rest is still a distribution."""
    split = BucketedDistribution.of(torch.tensor([[0.0, -200.0, -201.0]]), OwnBuckets(torch.tensor([[0]])))
    expected = -200.0 + torch.tensor([0.0, -1.0]).logsumexp(-1)
    torch.testing.assert_close(split.log_p_NB[0, 1], expected)
    torch.testing.assert_close(split.spread(torch.tensor([[0.0, 1.0]]))[0], torch.tensor([0.0, 0.731059, 0.268941]))


def test_a_nearly_certain_token_keeps_its_digits() -> None:
    """log(1 / (1 + e^-12)) = −6.14e-6, to the spacing of numbers near 1, although logits of 1,000 are
    spaced by 6e-5."""
    split = BucketedDistribution.of(torch.tensor([[1000.0, 988.0]]))
    torch.testing.assert_close(split.at(torch.tensor([0])), torch.tensor([-6.14419e-6]), rtol=0, atol=1.2e-7)


def test_flows_of_all_kinds_add_up() -> None:
    """On the whole vocabulary, on buckets and on single tokens: the sum of what each gives written out in full."""
    z, draw = logits(), torch.Generator().manual_seed(3)
    p, ids, said = z.softmax(-1), torch.tensor([[0, 7]]).expand(4, -1), torch.tensor([[1], [0], [7], [2]])
    whole, buckets, token = (torch.randn(4, n, generator=draw, dtype=torch.float64) for n in (11, 3, 1))
    rest = p.scatter(-1, ids, 0.0)
    dense = whole + rest / rest.sum(-1, keepdim=True) * buckets[:, 2:]
    dense = dense.scatter_add(-1, ids, buckets[:, :2]).scatter_add(-1, said, token)
    numerators = [
        GradientNumerator.on_all(whole),
        GradientNumerator.on_buckets(buckets),
        GradientNumerator.on_tokens(said, token),
    ]
    gradient = logit_gradient(BucketedDistribution.of(z, OwnBuckets(ids)), numerators)
    torch.testing.assert_close(gradient, p * dense.sum(-1, keepdim=True) - dense)


@pytest.mark.parametrize(("vocabulary", "k"), [(64 * 9, 2), (64 * 9 + 13, 2), (3000, 11), (100, 30)])
def test_the_likeliest_tokens_are_those_of_a_sort(vocabulary: int, k: int) -> None:
    z = logits(50, vocabulary)
    assert torch.equal(likeliest(z, k), z.sort(dim=-1, descending=True).indices[:, :k])


def test_likeliest_tokens_among_ties_are_as_large() -> None:
    z = logits(50, 3000).round()
    assert torch.equal(z.gather(-1, likeliest(z, 11)), z.topk(11).values)
    assert all(len(set(row)) == 11 for row in likeliest(z, 11).tolist())
