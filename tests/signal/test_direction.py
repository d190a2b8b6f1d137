"""Directions, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from signal_tables import table

from selfdistill.signal.direction import AgainstVerdict, Away, EntropyRouter, Toward, WithVerdict


def test_constant_directions() -> None:
    rows = table([2], advantage=[-1.0])
    assert Toward().signs(rows).tolist() == [1, 1]
    assert Away().signs(rows).tolist() == [-1, -1]


def test_verdicts_give_their_sign_and_a_flat_group_none() -> None:
    rows = table([1, 2, 1], advantage=[0.75, -0.25, 0.0])
    assert WithVerdict().signs(rows).tolist() == [1, -1, -1, 0]
    assert AgainstVerdict().signs(rows).tolist() == [-1, 1, 1, 0]


def test_the_router_by_hand() -> None:
    """Entropies 0, 1, 2, 3, 4: median 2, mean deviation (2 + 1 + 0 + 1 + 2)/5 = 1.2."""
    signs = EntropyRouter(quantile=0.5).signs(table([5], entropy=[0, 1, 2, 3, 4]))
    by_hand = [math.tanh(x / 1.2) for x in (2, 1, 0, -1, -2)]
    torch.testing.assert_close(signs, torch.tensor(by_hand, dtype=torch.float64))


def test_the_default_router_pushes_the_top_fifth_away() -> None:
    signs = EntropyRouter().signs(table([6], entropy=[0.0, 0.1, 0.2, 0.3, 0.4, 5.0]))
    assert (signs < 0).tolist() == [False, False, False, False, False, True]


def test_a_narrow_router_is_a_switch() -> None:
    signs = EntropyRouter(quantile=0.5, width=1e-6).signs(table([3], entropy=[0, 1, 2]))
    assert signs.tolist() == [1, 0, -1]


def test_the_router_looks_at_distilled_tokens_alone() -> None:
    """Of two answers the first is not distilled, and the last token is a tool's: entropies 1, 2, 3 remain."""
    rows = table([2, 4], distil=[0, 1], entropy=[90, 90, 1, 2, 3, 90], counted=[True] * 5 + [False])
    alone = EntropyRouter(0.5).signs(table([3], entropy=[1, 2, 3]))
    assert torch.equal(EntropyRouter(0.5).signs(rows)[2:5], alone)


def test_a_router_without_spread_or_tokens_says_nothing() -> None:
    assert EntropyRouter().signs(table([3], entropy=[2, 2, 2])).tolist() == [0, 0, 0]
    assert EntropyRouter().signs(table([2], distil=[0])).tolist() == [0, 0]
    assert EntropyRouter().signs(table([])).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_takes_half_precision(dtype: torch.dtype) -> None:
    entropy = [0.0, 1.0, 2.0, 3.0, 4.0]
    torch.testing.assert_close(
        EntropyRouter(0.5).signs(table([5], entropy=entropy, dtype=dtype)),
        EntropyRouter(0.5).signs(table([5], entropy=entropy, dtype=torch.float32)),
    )


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_quantile_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"use 0\.8"):
        EntropyRouter(quantile=share)


@pytest.mark.parametrize("width", [0.0, -1.0, math.inf, math.nan])
def test_a_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="entropies are divided by it"):
        EntropyRouter(width=width)
