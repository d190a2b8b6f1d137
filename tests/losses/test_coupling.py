"""How log-ratio meets the verdict, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from signal_tables import table

from selfdistill.losses import Clip, ForwardKL, JensenShannon, Relative, Tanh
from selfdistill.losses.shaping import Additive, AdvantageShaping, Centred, Multiplicative, Pooled, Separate
from selfdistill.losses.table import TokenTable

COUPLINGS: list[AdvantageShaping] = [
    Additive(),
    Additive(JensenShannon(), Tanh(0.02), threshold=0.02, keep_sign=True),
    Additive(two_path=1.0),
    Multiplicative(),
    Centred(),
    Pooled(),
]


def advantages(
    shaping: AdvantageShaping, rows: TokenTable, strength: float = 1.0, distil_sign: float = 1.0
) -> torch.Tensor:
    ones_N = torch.ones_like(rows.logprobs_N)
    coupled = shaping.shape_advantages(rows, strength * ones_N, distil_sign * ones_N)
    assert not coupled.distil_N.any()
    return coupled.advantage_N


def close(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_separate_keeps_two_terms() -> None:
    rows = table([2, 1], advantage=[0.5, -1.0], mixture=[3.0, -2.0, 1.0])
    strength_N, direction_N = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, -1.0, 0.5])
    coupled = Separate().shape_advantages(rows, strength_N, direction_N)
    torch.testing.assert_close(coupled.distil_N, torch.tensor([0.1, -0.2, 0.15]))
    assert coupled.advantage_N.tolist() == [0.5, 0.5, -1.0]


def test_additive_by_hand() -> None:
    rows = table([3], advantage=[0.5], mixture=[2.0, 0.0, -4.0])
    close(advantages(Additive(), rows, 0.25), [0.5 + 0.5, 0.5, 0.5 - 1.0])
    close(advantages(Additive(), rows, 0.25, -1.0), [0.5 - 0.5, 0.5, 0.5 + 1.0])


def test_the_shape_maps_evidence_as_it_does_in_a_divergence() -> None:
    """Half a Jensen-Shannon divergence gives ½(softplus(e) − log 2), the forward KL e^e − 1."""
    rows = table([3], advantage=[0.0], mixture=[1.5, 0.0, -3.0])
    half = [0.5 * (math.log1p(math.exp(e)) - math.log(2)) for e in (1.5, 0.0, -3.0)]
    close(advantages(Additive(JensenShannon()), rows), half)
    close(advantages(Additive(ForwardKL()), rows), [math.expm1(e) for e in (1.5, 0.0, -3.0)])


def test_the_published_rule_of_ascent() -> None:
    """AntiSD: A − λ ½ (softplus(u) − log 2)."""
    rows = table([2], advantage=[1.0], mixture=[math.log(3), -math.log(3)])
    # softplus(log 3) − log 2 = log 4 − log 2 = log 2; softplus(−log 3) − log 2 = log(4/3) − log 2 = log(2/3)
    expected = [1 - 0.5 * 0.5 * math.log(2), 1 - 0.5 * 0.5 * math.log(2 / 3)]
    close(advantages(Additive(JensenShannon(0.5)), rows, 0.5, -1.0), expected)


def test_tanh_bounds_and_the_threshold_leaves_small_changes_out() -> None:
    """λ = 0.5, τ = 0.02, δ = 0.02: r = ½ tanh(e/τ) is 0.0249979 at 0.001 and 0.0149955 at 0.0006."""
    rows = table([4], advantage=[1.0], mixture=[0.001, 0.0006, -0.01, 5.0])
    shaping = Additive(clipping=Tanh(0.02), threshold=0.02)
    expected = [1 + 0.5 * math.tanh(0.05), 1.0, 1 - 0.5 * math.tanh(0.5), 1.5]
    close(advantages(shaping, rows, 0.5), expected)


def test_other_bounds() -> None:
    rows = table([3], advantage=[1.0], mixture=[3.0, 0.5, -2.0])
    close(advantages(Additive(clipping=Clip(1.0)), rows, 0.5), [1.5, 1.25, 0.5])


def test_a_change_exactly_at_the_threshold_is_left_out() -> None:
    close(advantages(Additive(threshold=0.5), table([2], advantage=[0.0], mixture=[0.5, 0.75])), [0.0, 0.75])


def test_the_sign_of_the_verdict_is_kept_on_request() -> None:
    rows = table([2, 2, 2], advantage=[0.5, -0.5, 0.0], mixture=[1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    close(advantages(Additive(), rows), [1.5, -0.5, 0.5, -1.5, 1.0, -1.0])
    close(advantages(Additive(keep_sign=True), rows), [1.5, 0.0, 0.0, -1.5, 0.0, 0.0])


def test_two_paths_are_two_means() -> None:
    """Tokens 0 and 3 change, 1 and 2 do not: the mean of all is the mean of these plus η times the mean of those."""
    rows = table([5], advantage=[1.0], mixture=[1.0, 0.0, 0.0, -3.0, 7.0], counted=[True] * 4 + [False])
    strength_N = rows.counted_N.double()
    for eta in (0.0, 0.5, 1.0):
        got = Additive(two_path=eta).shape_advantages(rows, strength_N, torch.ones(5).double()).advantage_N[:4]
        assert got.mean().item() == pytest.approx((1 + 1) / 2 + eta * (2 - 2) / 2)
        close(got, [eta * 2 * 2, 2 * 1, 2 * 1, eta * 2 * -2])


def test_two_paths_of_which_one_is_empty() -> None:
    unchanged, changed = (table([2], advantage=[1.0], mixture=[e, e]) for e in (0.0, 1.0))
    close(advantages(Additive(two_path=0.5), unchanged), [1.0, 1.0])
    close(advantages(Additive(two_path=0.5), changed), [1.0, 1.0])


def test_multiplicative_by_hand() -> None:
    """RLSD at A = −2: e^{−u} of u = log 1.1, log 2, −log 2 is 1/1.1, clipped 0.8, clipped 1.2; half of it."""
    rows = table([3], advantage=[-2.0], mixture=[math.log(1.1), math.log(2), -math.log(2)])
    close(advantages(Multiplicative(0.2), rows, 0.5, -1.0), [-2 * (0.5 + 0.5 / 1.1), -2 * 0.9, -2 * 1.1])


def test_multiplicative_with_a_wide_clip() -> None:
    """RLRT on a solved answer: p/q = e^{−u}, clipped to [0, 2]."""
    rows = table([3], advantage=[1.0], mixture=[math.log(4), 0.0, -math.log(4)])
    close(advantages(Multiplicative(1.0), rows, 0.5, -1.0), [0.5 + 0.5 / 4, 1.0, 0.5 + 0.5 * 2])


@pytest.mark.parametrize("strength", [0.5, 1.0, 30.0])
def test_multiplicative_never_turns_a_verdict_around(strength: float) -> None:
    rows = table([2, 2], advantage=[0.5, -0.5], mixture=[9.0, -9.0, 9.0, -9.0])
    got = advantages(Multiplicative(1.0), rows, strength)
    assert (got * rows.advantage_N >= 0).all()


def test_centred_by_hand() -> None:
    """Means 2 and −1; the token without log-ratio is in no mean and keeps A."""
    rows = table([3, 2], advantage=[0.0, 0.25], mixture=[1.0, 3.0, math.nan, -4.0, 2.0])
    close(advantages(Centred(), rows), [-1.0, 1.0, 0.0, 0.25 - 3.0, 0.25 + 3.0])


def test_pooled_by_hand() -> None:
    """Means 2 and −1 of the log-ratio that is known; the token without keeps A."""
    rows = table([3, 2], advantage=[0.0, 0.25], mixture=[1.0, 3.0, math.nan, -4.0, 2.0])
    close(advantages(Pooled(), rows), [2.0, 2.0, 0.0, 0.25 - 1.0, 0.25 - 1.0])
    forward = [(math.expm1(-4.0) + math.expm1(2.0)) / 2] * 2
    close(advantages(Pooled(ForwardKL()), rows)[3:], [0.25 + value for value in forward])


def test_centred_sums_to_the_verdict() -> None:
    rows = table([3], advantage=[0.5], mixture=[0.3, -2.0, 5.0])
    assert advantages(Centred(), rows, 0.7).sum().item() == pytest.approx(1.5)


@pytest.mark.parametrize("shaping", COUPLINGS, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda mixture: ([math.nan] * 4, 1.0),
        lambda mixture: ([0.0] * 4, 1.0),
        lambda mixture: (mixture, 0.0),
    ],
    ids=["no log-ratio", "log-ratio 0", "strength 0"],
)
def test_without_evidence_or_strength_the_verdict_stays_exactly(
    shaping: AdvantageShaping, change: Callable[[list[float]], tuple[list[float], float]]
) -> None:
    mixture, strength = change([0.7, -1e9, math.inf, 30.0])
    rows = table([3, 1], advantage=[0.1, -0.3], mixture=mixture)
    assert torch.equal(advantages(shaping, rows, strength), rows.advantage_N)


@pytest.mark.parametrize("shaping", [*COUPLINGS, Additive(ForwardKL())], ids=str)
def test_a_token_that_became_impossible_stays_finite(shaping: AdvantageShaping) -> None:
    rows = table([4], advantage=[0.5], mixture=[1e30, -1e30, math.inf, -math.inf], logprobs=[-1e30, -1, -1, -1])
    assert advantages(shaping, rows).isfinite().all()


def test_only_separate_needs_no_evidence() -> None:
    assert not Separate().needs_log_ratio
    assert all(shaping.needs_log_ratio for shaping in COUPLINGS)


def test_a_relative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resolve it with \.at"):
        Additive(clipping=Relative())


@pytest.mark.parametrize("wrong", [-0.1, math.inf, math.nan])
def test_thresholds_and_path_weights_out_of_range_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"(?s)^threshold.*use threshold 0"):
        Additive(threshold=wrong)
    with pytest.raises(ValueError, match=r"(?s)^two_path.*two_path None"):
        Additive(two_path=wrong)


@pytest.mark.parametrize("clip", [0.0, -0.2, 1.1, math.nan])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match=r"use 0\.2 as RLSD does"):
        Multiplicative(clip)
