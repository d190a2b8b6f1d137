"""Advantage shapings, distillation signs and the token table, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from token_tables import table

from selfdistill.losses import Clip, Constant, ForwardKL, JensenShannon, LossSpec, Relative, Tanh, weigh_tokens
from selfdistill.losses.shaping import (
    Additive,
    AdvantageShaping,
    AdvantageSign,
    Attract,
    Centred,
    Multiplicative,
    OppositeAdvantageSign,
    Pooled,
    Repel,
    Separate,
    TokenTable,
)

SHAPINGS: list[AdvantageShaping] = [
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
    return shaping.advantages(rows, strength * ones_N, distil_sign * ones_N)


def close(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_separate_keeps_two_terms() -> None:
    rows = table([2, 1], advantage=[0.5, -1.0], log_ratio=[3.0, -2.0, 1.0])
    spec = LossSpec(distil_sign=AdvantageSign(), schedule=Constant(0.1))
    weighed = weigh_tokens(spec, rows, 0, {})
    close(weighed.distil_N, [0.1, 0.1, -0.1])
    assert weighed.advantage_N.tolist() == [0.5, 0.5, -1.0]
    for shaping in SHAPINGS:
        assert not weigh_tokens(replace(spec, shaping=shaping), rows, 0, {}).distil_N.any()


def test_additive_by_hand() -> None:
    rows = table([3], advantage=[0.5], log_ratio=[2.0, 0.0, -4.0])
    close(advantages(Additive(), rows, 0.25), [0.5 + 0.5, 0.5, 0.5 - 1.0])
    close(advantages(Additive(), rows, 0.25, -1.0), [0.5 - 0.5, 0.5, 0.5 + 1.0])


def test_the_shape_maps_log_ratios_as_it_does_in_a_divergence() -> None:
    """Half a Jensen-Shannon divergence gives ½(softplus(e) − log 2), the forward KL e^e − 1."""
    rows = table([3], advantage=[0.0], log_ratio=[1.5, 0.0, -3.0])
    half = [0.5 * (math.log1p(math.exp(e)) - math.log(2)) for e in (1.5, 0.0, -3.0)]
    close(advantages(Additive(JensenShannon()), rows), half)
    close(advantages(Additive(ForwardKL()), rows), [math.expm1(e) for e in (1.5, 0.0, -3.0)])


def test_the_published_rule_of_ascent() -> None:
    """AntiSD: A − λ ½ (softplus(u) − log 2)."""
    rows = table([2], advantage=[1.0], log_ratio=[math.log(3), -math.log(3)])
    # softplus(log 3) − log 2 = log 4 − log 2 = log 2; softplus(−log 3) − log 2 = log(4/3) − log 2 = log(2/3)
    expected = [1 - 0.5 * 0.5 * math.log(2), 1 - 0.5 * 0.5 * math.log(2 / 3)]
    close(advantages(Additive(JensenShannon(0.5)), rows, 0.5, -1.0), expected)


def test_tanh_bounds_and_the_threshold_leaves_small_changes_out() -> None:
    """λ = 0.5, τ = 0.02, δ = 0.02: r = ½ tanh(e/τ) is 0.0249979 at 0.001 and 0.0149955 at 0.0006."""
    rows = table([4], advantage=[1.0], log_ratio=[0.001, 0.0006, -0.01, 5.0])
    shaping = Additive(clipping=Tanh(0.02), threshold=0.02)
    expected = [1 + 0.5 * math.tanh(0.05), 1.0, 1 - 0.5 * math.tanh(0.5), 1.5]
    close(advantages(shaping, rows, 0.5), expected)


def test_other_bounds() -> None:
    rows = table([3], advantage=[1.0], log_ratio=[3.0, 0.5, -2.0])
    close(advantages(Additive(clipping=Clip(1.0)), rows, 0.5), [1.5, 1.25, 0.5])


def test_a_change_exactly_at_the_threshold_is_left_out() -> None:
    close(advantages(Additive(threshold=0.5), table([2], advantage=[0.0], log_ratio=[0.5, 0.75])), [0.0, 0.75])


def test_the_sign_of_the_advantage_is_kept_on_request() -> None:
    rows = table([2, 2, 2], advantage=[0.5, -0.5, 0.0], log_ratio=[1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    close(advantages(Additive(), rows), [1.5, -0.5, 0.5, -1.5, 1.0, -1.0])
    close(advantages(Additive(keep_sign=True), rows), [1.5, 0.0, 0.0, -1.5, 0.0, 0.0])


def test_two_paths_are_two_means() -> None:
    """Tokens 0 and 3 change, 1 and 2 do not: the mean of all is the mean of these plus η times the mean of those."""
    rows = table([5], advantage=[1.0], log_ratio=[1.0, 0.0, 0.0, -3.0, 7.0], counted=[True] * 4 + [False])
    strength_N = rows.counted_N.double()
    for eta in (0.0, 0.5, 1.0):
        got = Additive(two_path=eta).advantages(rows, strength_N, torch.ones(5).double())[:4]
        assert got.mean().item() == pytest.approx((1 + 1) / 2 + eta * (2 - 2) / 2)
        close(got, [eta * 2 * 2, 2 * 1, 2 * 1, eta * 2 * -2])


def test_two_paths_of_which_one_is_empty() -> None:
    unchanged, changed = (table([2], advantage=[1.0], log_ratio=[e, e]) for e in (0.0, 1.0))
    close(advantages(Additive(two_path=0.5), unchanged), [1.0, 1.0])
    close(advantages(Additive(two_path=0.5), changed), [1.0, 1.0])


def test_multiplicative_by_hand() -> None:
    """RLSD at A = −2: e^{−u} of u = log 1.1, log 2, −log 2 is 1/1.1, clipped 0.8, clipped 1.2; half of it."""
    rows = table([3], advantage=[-2.0], log_ratio=[math.log(1.1), math.log(2), -math.log(2)])
    close(advantages(Multiplicative(0.2), rows, 0.5, -1.0), [-2 * (0.5 + 0.5 / 1.1), -2 * 0.9, -2 * 1.1])


def test_multiplicative_with_a_wide_clip() -> None:
    """RLRT on a solved answer: p/q = e^{−u}, clipped to [0, 2]."""
    rows = table([3], advantage=[1.0], log_ratio=[math.log(4), 0.0, -math.log(4)])
    close(advantages(Multiplicative(1.0), rows, 0.5, -1.0), [0.5 + 0.5 / 4, 1.0, 0.5 + 0.5 * 2])


@pytest.mark.parametrize("strength", [0.5, 1.0, 30.0])
def test_multiplicative_never_turns_a_advantage_around(strength: float) -> None:
    rows = table([2, 2], advantage=[0.5, -0.5], log_ratio=[9.0, -9.0, 9.0, -9.0])
    got = advantages(Multiplicative(1.0), rows, strength)
    assert (got * rows.advantage_R[rows.answer_N] >= 0).all()


def test_centred_by_hand() -> None:
    """Means 2 and −1; the token without log-ratio is in no mean and keeps A."""
    rows = table([3, 2], advantage=[0.0, 0.25], log_ratio=[1.0, 3.0, math.nan, -4.0, 2.0])
    close(advantages(Centred(), rows), [-1.0, 1.0, 0.0, 0.25 - 3.0, 0.25 + 3.0])


def test_pooled_by_hand() -> None:
    """Means 2 and −1 of the log-ratio that is known; the token without keeps A."""
    rows = table([3, 2], advantage=[0.0, 0.25], log_ratio=[1.0, 3.0, math.nan, -4.0, 2.0])
    close(advantages(Pooled(), rows), [2.0, 2.0, 0.0, 0.25 - 1.0, 0.25 - 1.0])
    forward = [(math.expm1(-4.0) + math.expm1(2.0)) / 2] * 2
    close(advantages(Pooled(ForwardKL()), rows)[3:], [0.25 + value for value in forward])


def test_centred_sums_to_the_advantage() -> None:
    rows = table([3], advantage=[0.5], log_ratio=[0.3, -2.0, 5.0])
    assert advantages(Centred(), rows, 0.7).sum().item() == pytest.approx(1.5)


@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda log_ratio: ([math.nan] * 4, 1.0),
        lambda log_ratio: ([0.0] * 4, 1.0),
        lambda log_ratio: (log_ratio, 0.0),
    ],
    ids=["no log-ratio", "log-ratio 0", "strength 0"],
)
def test_without_log_ratio_or_strength_the_advantage_stays_exactly(
    shaping: AdvantageShaping, change: Callable[[list[float]], tuple[list[float], float]]
) -> None:
    log_ratio, strength = change([0.7, -1e9, math.inf, 30.0])
    rows = table([3, 1], advantage=[0.1, -0.3], log_ratio=log_ratio)
    assert torch.equal(advantages(shaping, rows, strength), rows.advantage_R[rows.answer_N])


@pytest.mark.parametrize("shaping", [*SHAPINGS, Additive(ForwardKL())], ids=str)
def test_a_token_that_became_impossible_stays_finite(shaping: AdvantageShaping) -> None:
    rows = table([4], advantage=[0.5], log_ratio=[1e30, -1e30, math.inf, -math.inf], logprobs=[-1e30, -1, -1, -1])
    assert advantages(shaping, rows).isfinite().all()


def test_only_separate_needs_no_log_ratio() -> None:
    assert not Separate().needs_log_ratio
    assert all(shaping.needs_log_ratio for shaping in SHAPINGS)


def test_a_relative_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use \.resolve"):
        advantages(Additive(clipping=Relative()), table([1], log_ratio=[1.0]))


@pytest.mark.parametrize("wrong", [-0.1, math.inf, math.nan])
def test_thresholds_and_path_weights_out_of_range_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must be a number, 0 or more"):
        Additive(threshold=wrong)
    with pytest.raises(ValueError, match=r"two_path must be a number, 0 or more"):
        Additive(two_path=wrong)


@pytest.mark.parametrize("clip", [0.0, -0.2, 1.1, math.nan])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match=r"clip must be a number above 0, up to 1"):
        Multiplicative(clip)


def test_constant_directions() -> None:
    advantage = torch.tensor([-1.0, -1.0])
    assert Attract().signs(advantage).tolist() == [1, 1]
    assert Repel().signs(advantage).tolist() == [-1, -1]


def test_advantages_give_their_sign_and_a_flat_group_none() -> None:
    advantage = torch.tensor([0.75, -0.25, -0.25, 0.0])
    assert AdvantageSign().signs(advantage).tolist() == [1, -1, -1, 0]
    assert OppositeAdvantageSign().signs(advantage).tolist() == [-1, 1, 1, 0]


def test_answers_without_tokens_that_count_are_not_distilled() -> None:
    rows = table([2, 1], advantage=[0.5, -1.0], distil=[0.0, 2.0], counted=[True, True, False])
    weighed = weigh_tokens(LossSpec(), rows, 0, {})
    assert weighed.advantage_N.tolist() == [0.5, 0.5, 0.0]
    assert weighed.distil_N.tolist() == [0.0, 0.0, 0.0]
    assert rows.counted_N.tolist() == [True, True, False]
    whole = weigh_tokens(LossSpec(), replace(rows, counted_N=torch.ones(3, dtype=torch.bool)), 0, {})
    assert whole.distil_N.tolist() == [0.0, 0.0, 2.0]
    assert whole.advantage_N.tolist() == [0.5, 0.5, -1.0]


def test_means_are_per_answer_and_over_the_named_tokens() -> None:
    rows = table([3, 2, 1])
    values = torch.tensor([1.0, 2.0, 9.0, 4.0, 6.0, 5.0], dtype=torch.float64)
    over = torch.tensor([True, True, False, True, True, False])
    assert rows.answer_means(values, over).tolist() == [1.5, 1.5, 1.5, 5.0, 5.0, 0.0]


def test_a_mean_is_not_spoilt_by_what_it_leaves_out() -> None:
    rows, values = table([2]), torch.tensor([3.0, torch.nan], dtype=torch.float64)
    assert rows.answer_means(values, ~values.isnan()).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    rows = table([3], logprobs=[-0.5, -1.0, -2.0], log_ratio=[1.0, 2.0, 3.0], dtype=dtype)
    assert rows.logprobs_N.dtype == rows.log_ratio_N.dtype == rows.advantage_R.dtype == torch.float32
    assert rows.answer_N.dtype == torch.int64
    assert table([3], dtype=torch.float64).logprobs_N.dtype == torch.float64


def test_shapes_that_disagree_are_refused() -> None:
    rows = table([2, 1])
    with pytest.raises(ValueError, match=r"columns of \(3,\) tokens and \(2,\) answers"):
        replace(rows, logprobs_N=torch.ones(2))
    with pytest.raises(ValueError, match="one number per token, or one per answer"):
        replace(rows, distil_R=torch.ones(3))


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="weights_N > 0"):
        replace(table([2]), counted_N=torch.tensor([1, 0]))


@pytest.mark.parametrize("answers", [[-1, 0], [0, 2]])
def test_an_answer_without_a_advantage_is_refused(answers: list[int]) -> None:
    with pytest.raises(ValueError, match="number the answers 0 to 1"):
        replace(table([1, 1]), answer_N=torch.tensor(answers))


def test_tokens_of_one_answer_that_do_not_stand_together_are_refused() -> None:
    with pytest.raises(ValueError, match="must stand together"):
        replace(table([2, 1]), answer_N=torch.tensor([0, 1, 0]))


def test_an_answer_without_tokens_takes_no_part_in_the_means_of_others() -> None:
    rows = table([2, 0, 1])
    values, over = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), torch.tensor([True, True, True])
    assert rows.answer_means(values, over).tolist() == [1.5, 1.5, 5.0]
    assert table([]).answer_means(values[:0], over[:0]).tolist() == []


def test_a_table_may_be_empty() -> None:
    weighed = weigh_tokens(LossSpec(), table([]), 0, {})
    assert weighed.advantage_N.shape == weighed.distil_N.shape == (0,)
