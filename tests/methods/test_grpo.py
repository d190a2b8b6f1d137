from __future__ import annotations

import pytest
from formulas import close, moved, row, towards

from core_parts import group
from selfdistill.errors import ConfigError
from selfdistill.losses import PolicyGradient, RatioCaps
from selfdistill.methods import GRPO, METHODS, get_method
from selfdistill.methods.base import Credit, credits_of
from selfdistill.testing import three_token_policy
from selfdistill.types import DropReason


def test_defaults_are_those_of_the_published_baseline() -> None:
    method = GRPO()
    loss_spec = method.loss_spec(1.0)
    assert loss_spec.policy == PolicyGradient(clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert loss_spec.ratio == RatioCaps(sampler_ratio=2.0)
    assert (method.divide_by_deviation, method.reference_kl, method.teacher) == (False, 0.0, None)
    assert (method.reduction, method.count_dropped) == ("sequence-mean", True)


def test_credit_is_the_reward_minus_the_mean_of_the_judged_siblings() -> None:
    credits = GRPO().credits(group([1.0, 0.0, None, 0.0, 0.0]))
    assert (
        credits
        == [Credit(advantage=0.75), Credit(advantage=-0.25), DropReason.ENV_RAISED] + [Credit(advantage=-0.25)] * 2
    )


def test_partial_rewards_count_as_they_are() -> None:
    assert [credit.advantage for credit in GRPO().credits(group([0.0, 0.5, 1.0]))] == [-0.5, 0.0, 0.5]


def test_dividing_by_the_deviation_is_the_sample_deviation_of_the_group() -> None:
    # rewards 1, 0, 0, 0: mean 1/4, sum of squares 9/16 + 3/16 = 3/4, sample variance 1/4, deviation 1/2
    credits = GRPO(divide_by_deviation=True).credits(group([1.0, 0.0, 0.0, 0.0]))
    assert [credit.advantage for credit in credits] == pytest.approx([1.5, -0.5, -0.5, -0.5])


@pytest.mark.parametrize("rewards", [[0.0] * 8, [1.0] * 8, [1.0], [0.3, 0.3, None], [0.1 + 0.2, 0.3, 0.3]])
def test_a_group_whose_rewards_are_equal_says_nothing(rewards: list[float | None]) -> None:
    credits = GRPO().credits(group(rewards))
    assert credits == [DropReason.ENV_RAISED if reward is None else DropReason.ZERO_ADVANTAGE for reward in rewards]


def test_a_reference_is_asked_for_on_every_rollout_that_takes_part() -> None:
    credits = GRPO(reference_kl=0.01).credits(group([1.0, 0.0]))
    assert credits == [Credit(advantage=0.5, reference=0.01), Credit(advantage=-0.5, reference=0.01)]


@pytest.mark.parametrize(
    "name", ["grpo", "rlcsd", "rlrt", "rlsd", "rltf_fm", "rltf_sd", "sdpg", "srpo", "erl", "antisd"]
)
def test_with_a_reference_every_judged_answer_of_a_zero_advantage_group_is_held_to_it(name: str) -> None:
    credits = get_method(name, {"reference_kl": 0.01}).credits(group([1.0, 1.0, None]))
    assert credits[2] is DropReason.ENV_RAISED
    for credited in credits[:2]:
        [credit] = credits_of(credited)
        assert (credit.advantage, credit.reference) == (0.0, 0.01)


def test_a_zero_advantage_group_trains_on_the_reference_divergence_alone() -> None:
    """Two groups of two share the step: one is rewarded and held, the other, whose rewards are equal, held alone."""
    p, start = [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]
    toy = three_token_policy({"question": [p]}, start={"question": [start]})
    told = toy.group(toy.answer("a", 1.0), toy.answer("b", 0.0))
    flat = toy.group(toy.answer("a", 0.0), toy.answer("b", 0.0), name="s")
    found = toy.update(GRPO(reference_kl=0.1), told, flat).gradients["question"][0]
    held = moved(p, (row(start) / row(p)).log())
    close(found, (-0.5 * towards("a", p) + 0.5 * towards("b", p) + 4 * 0.1 * held) / 4)
    alone = toy.update(GRPO(reference_kl=0.1), flat)
    close(alone.gradients["question"][0], 0.1 * held)
    assert [entry.drop for entry in alone.credited] == [None, None]


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'clip_high'"):
        get_method("grpo", {"clip_hi": 0.3})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_where_it_is_from_and_what_its_settings_mean(name: str) -> None:
    method = METHODS[name]
    assert (method.__doc__ or "").strip()
    assert method.source.startswith("arXiv")
    assert get_method(name, {}) == method()


SCALES = {
    "erl": "internalise",
    "grpo": "reference_kl",
    "nca": "beta",
    "pi_distill": "kl",
    "rltf_fm": "foresee",
    "rltf_sd": "distil",
    "safe": "reward",
    "sdpg": "reference_kl",
}


@pytest.mark.parametrize(("name", "scale"), SCALES.items())
def test_a_negative_scale_would_turn_its_term_around_and_is_refused(name: str, scale: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{scale} must be a number, 0 or more"):
        get_method(name, {scale: -0.1})


JUDGED_BY_GROUP = ["grpo", "erl", "rlcsd", "rlrt", "rlsd", "rltf_fm", "rltf_sd", "sc_sdpo", "sdpg", "srpo"]


@pytest.mark.parametrize("name", JUDGED_BY_GROUP)
def test_rewards_that_differ_by_rounding_are_a_zero_advantage_group_in_every_method(name: str) -> None:
    """0.7 + 0.1 is 0.7999999999999999; a deviation of 1e-17 must not make an advantage of it."""
    rounded, equal = group([0.7 + 0.1, 0.8, 0.8, 0.8]), group([0.8] * 4)
    method = get_method(name, {})
    assert method.credits(rounded) == method.credits(equal)


@pytest.mark.parametrize("name", ["safe", "antisd"])
def test_what_is_not_rewarded_is_what_it_would_be_with_equal_rewards(name: str) -> None:
    method = get_method(name, {})
    assert method.credits(group([0.7 + 0.1, 0.8, 0.8])) == method.credits(group([0.8] * 3))
