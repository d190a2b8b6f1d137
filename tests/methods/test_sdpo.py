from __future__ import annotations

import pytest
import torch

from core_parts import group
from selfdistill.config import load_config
from selfdistill.errors import ConfigError
from selfdistill.losses import FullVocabulary, JensenShannon, RatioCaps, ReverseKL, TopK
from selfdistill.methods import SDPO, SDPOOutcome, SDPORichFeedback, get_method
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Ema, Frozen
from selfdistill.prompts.context import SolutionOrFeedback
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason


def test_sdpo_by_default_is_exact_and_has_a_teacher_that_does_not_move() -> None:
    method = SDPO()
    loss_spec = method.loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence) == (FullVocabulary(), JensenShannon(0.5))
    assert loss_spec.ratio == RatioCaps(policy_ratio=2.0, sampler_ratio=2.0)
    assert loss_spec.reference.coefficient == 0
    assert (method.teacher, method.context) == (Frozen(), SolutionOrFeedback(0.5, feedback=True, together=False))
    assert (method.reduction, method.count_dropped) == ("sequence-mean", False)


def test_rich_feedback_is_the_second_column_of_the_papers_table() -> None:
    method, config = SDPORichFeedback(), load_config(None, ["method=sdpo_rich_feedback", "model=tiny"])
    loss_spec = method.loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence) == (TopK(20), ReverseKL())
    assert loss_spec.ratio == RatioCaps(policy_ratio=2.0, sampler_ratio=2.0)
    assert (method.teacher, method.context.feedback) == (Ema(0.01), True)
    assert (config.tasks_per_step, config.rollouts_per_task, config.tasks_per_update) == (32, 8, 1)
    assert (config.optimiser.lr, config.optimiser.warmup_steps) == (1e-6, 0)


def test_outcome_is_the_first_column_of_the_papers_table() -> None:
    method, config = SDPOOutcome(), load_config(None, ["method=sdpo_outcome", "model=tiny"])
    loss_spec = method.loss_spec(1.0)
    assert (loss_spec.support, loss_spec.divergence) == (TopK(100), JensenShannon(0.5))
    assert loss_spec.ratio == RatioCaps(policy_ratio=2.0, sampler_ratio=2.0)
    assert (method.teacher, method.context.feedback) == (Ema(0.05), False)
    assert (config.tasks_per_step, config.rollouts_per_task, config.tasks_per_update) == (32, 8, 0)
    assert (config.optimiser.lr, config.optimiser.warmup_steps) == (1e-5, 10)


@pytest.mark.parametrize("name", ["sdpo_rich_feedback", "sdpo_outcome"])
def test_the_presets_share_the_rest_of_the_papers_settings(name: str) -> None:
    method, config = get_method(name, {}), load_config(None, [f"method={name}", "model=tiny"])
    optimiser = config.optimiser
    assert (optimiser.beta1, optimiser.beta2, optimiser.weight_decay) == (0.9, 0.999, 0.01)
    assert optimiser.max_grad_norm == 1.0
    assert (config.sampling.temperature, config.sampling.top_p, config.sampling.max_new_tokens) == (1.0, 1.0, 8192)
    assert (config.context.max_prompt_tokens, config.context.max_teacher_tokens) == (2048, 10240)
    assert (method.reduction, method.count_dropped) == ("sequence-mean", True)
    assert method.context.success == 0.5


def test_the_temperature_of_sampling_is_the_signals() -> None:
    assert SDPO().loss_spec(0.7).temperature == 0.7


def test_every_rollout_that_has_a_context_counts_one_and_the_score_counts_nothing() -> None:
    credits = SDPO().credits(group([0.0, 1.0, None, 0.0], "wrong"))
    shown = Context("solution", solution="answer 1")
    assert credits == [
        Credit(shown, distil=1.0),
        DropReason.ONLY_SUCCESS,
        DropReason.ENV_RAISED,
        Credit(shown, distil=1.0),
    ]


def test_options_are_checked_and_the_nearest_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        get_method("sdpo", {"topk": 20})
    with pytest.raises(ConfigError, match=r"method\.alpha should be a number"):
        get_method("sdpo", {"alpha": "half"})
    with pytest.raises(ConfigError, match=r"did you mean 'sdpo'\? \(a file of your own: --method [a-z_]+\.py:\w+\)$"):
        get_method("sdop", {})


def test_settings_of_the_context_rule_can_be_changed() -> None:
    method = get_method("sdpo", {"context": {"success": 0.9}})
    assert method.context == SolutionOrFeedback(success=0.9)


def test_credit_may_be_that_of_the_sampled_tokens_or_of_the_whole_answer() -> None:
    """p = (.5, .3, .2) and q = (.2, .7, .1) at both positions, the answer is b a: log-ratio log 7/3 and log 2/5."""
    toy = three_token_policy({"question": [[0.5, 0.3, 0.2]] * 2, "hint": [[0.2, 0.7, 0.1]] * 2})
    group, p = toy.group(toy.answer("ba", 0.0, feedback="hint")), torch.tensor([0.5, 0.3, 0.2]).double()
    log_ratio = torch.tensor([7 / 3, 2 / 5]).double().log()
    for level, advantages in (("token", log_ratio), ("sequence", log_ratio.mean().repeat(2))):
        found = toy.update(SDPO(alpha=1.0, level=level), group).gradients["question"]
        said = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).double()
        torch.testing.assert_close(found, -advantages[:, None] * (said - p) / 2, rtol=1e-6, atol=1e-8)


def test_top_tokens_at_another_level_are_refused() -> None:
    with pytest.raises(ConfigError, match="set top_k = 0"):
        get_method("sdpo_outcome", {"level": "token"})
