"""The three-token policy, by methods whose gradients are known from elsewhere, and the scripted sampler."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import selfdistill as sd
from selfdistill.errors import ConfigError
from selfdistill.methods import GRPO, RLTFSD, SDPO
from selfdistill.models.sampler import SamplingOptions
from selfdistill.models.teacher import Frozen, Live, Other
from selfdistill.prompts.stages import SecondAttempts
from selfdistill.testing import scripted_sampler, three_token_policy

QUESTION, HINT = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]


def numbers(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).double()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_grpo_moves_each_token_by_its_advantage() -> None:
    """Rewards 1, 0, 0: advantages 2/3, −1/3, −1/3; answers of 1, 2 and 1 tokens, each worth a third.

    The gradient of −A log p(y) is −A (1[y] − p), here over 3 answers, and over 2 tokens for those of the second.
    """
    policy = three_token_policy({"question": QUESTION})
    group = policy.group(policy.answer("b", 1.0), policy.answer("a."), policy.answer("."))
    found = policy.update(GRPO(), group).gradients["question"]
    b, a, end = torch.eye(3).double()[[1, 0, 2]] - numbers(QUESTION)[0]
    close(found[0], -(2 / 3 * b - 1 / 3 * a / 2 - 1 / 3 * end) / 3)
    close(found[1], torch.tensor([-0.1, -0.2, 0.3]).double() / 18)


def test_sdpo_at_alpha_zero_moves_the_student_to_the_teacher() -> None:
    """KL(q‖p): p − q at every position, which weighs a half."""
    policy = three_token_policy()
    group = policy.group(policy.answer("b.", 0.0, feedback="hint"))
    found = policy.update(SDPO(alpha=0.0), group).gradients
    close(found["question"], (numbers(QUESTION) - numbers(HINT)) / 2)
    assert not found["hint"].any(), "the teacher has no gradient"


def test_a_kept_teacher_reads_with_the_weights_of_the_start_and_another_model_with_its_own() -> None:
    started, others = [[0.6, 0.2, 0.2], [0.2, 0.2, 0.6]], [[0.1, 0.1, 0.8], [0.4, 0.4, 0.2]]
    policy = three_token_policy(start={"hint": started}, other={"question": QUESTION, "hint": others})
    group = policy.group(policy.answer("b.", 0.0, feedback="hint"))
    for rule, q in ((Frozen(), started), (Live(), HINT), (Other("another"), others)):
        found = policy.update(SDPO(alpha=0.0), group, teacher=rule).gradients["question"]
        close(found, (numbers(QUESTION) - numbers(q)) / 2)


def test_an_update_moves_nothing_and_later_updates_have_the_tables_given() -> None:
    policy = three_token_policy()
    groups = [policy.roll_out(reward, ["a."], name=name) for name in "rs"]
    moved = [[0.3, 0.6, 0.1], [0.3, 0.4, 0.3]]
    first, second = policy.update(SDPO(alpha=0.0, ratio_cap=1e6), *groups, later=[{"question": moved}]).all_gradients
    close(first["question"], (numbers(QUESTION) - numbers(HINT)) / 2)
    ratio = torch.tensor([[0.3 / 0.5], [0.3 / 0.7]]).double()  # of the sampled tokens, now over then
    close(second["question"], ratio * (numbers(moved) - numbers(HINT)) / 2)
    close(policy.trainable()["question"].exp(), numbers(QUESTION))


def reward(task: sd.Task, completion: sd.Completion) -> sd.Outcome:
    right = completion.text.startswith("b")
    return sd.Outcome(float(right), feedback="" if right else "hint")


def test_scripted_answers_are_scored_and_carry_the_log_probabilities_of_the_policy() -> None:
    policy = three_token_policy()
    group = policy.roll_out(reward, ["b", "a."])
    assert [(r.completion.text, r.completion.token_ids, str(r.completion.stop)) for r in group.rollouts] == [
        ("b", (1,), "length"), ("a.", (0, 2), "end"),
    ]  # fmt: skip
    assert [r.outcome.reward for r in group.rollouts] == [1.0, 0.0]
    close(torch.tensor(group.rollouts[1].completion.logprobs).exp(), torch.tensor([0.5, 0.7]))
    close(
        policy.update(GRPO(), group).gradients["question"], policy.update(GRPO(), by_hand(policy)).gradients["question"]
    )


def by_hand(policy: sd.testing.ThreeTokenPolicy) -> sd.RolloutGroup:
    return policy.group(policy.answer("b", 1.0), policy.answer("a.", 0.0, feedback="hint"))


def test_later_stages_go_on_with_the_script() -> None:
    group = three_token_policy().roll_out(reward, ["a", "b", "b"], stages=RLTFSD().stages, count=2)
    assert [(r.stage, r.completion.text, r.of) for r in group.rollouts] == [
        ("answer", "a", None), ("answer", "b", None), (SecondAttempts.name, "b", 0),
    ]  # fmt: skip


def test_the_scripted_sampler_works_with_a_real_policy(tiny_policy) -> None:
    policy, options = tiny_policy(), SamplingOptions(max_new_tokens=8, temperature=0.5)
    prompt = tuple(policy.tokenizer("What is seven?")["input_ids"])
    [found] = scripted_sampler(["It is."])(policy, [prompt], options, seed=0, uids=["u"], version=3)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *found.token_ids]])).logits[
            0, len(prompt) - 1 : -1, : policy.vocabulary
        ]
    wanted = (logits / 0.5).log_softmax(-1).gather(-1, torch.tensor(found.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.logprobs), wanted, rtol=1e-4, atol=1e-5)
    assert (found.text, found.uid, found.policy_version, str(found.stop)) == ("It is.", "u", 3, "length")


@dataclass(frozen=True, slots=True)
class NoReward(sd.Method):
    """A method of a user's own that raises."""

    def loss_spec(self, temperature: float) -> sd.LossSpec:
        return sd.LossSpec()

    def credit(self, group: sd.RolloutGroup, index: int) -> sd.Credit:
        return sd.Credit(advantage=group.rollouts[index].nothing)


def test_what_cannot_be_is_refused_by_name() -> None:
    policy = three_token_policy({"question": [[0.5, 0.3, 0.2]]})
    for rows in ([[0.5, 0.3]], [[0.5, 0.5, 0.0]], [[0.5, 0.3, 0.3]]):
        with pytest.raises(ConfigError, match=r"in 'hint'[\s\S]*three positive numbers of sum 1"):
            three_token_policy({"question": [[0.5, 0.3, 0.2]], "hint": rows})
    with pytest.raises(ConfigError, match=r"other tokens[\s\S]*letters 'ab\.'"):
        policy.answer("c")
    with pytest.raises(ConfigError, match=r"longer than the table 'question'[\s\S]*2 tokens, 1 rows"):
        policy.update(GRPO(), policy.group(policy.answer("b.", 1.0), policy.answer("a")))
    with pytest.raises(ConfigError, match=r"no table is named[\s\S]*\['hint'\]"):
        three_token_policy({"hint": HINT}).answer("a")
    with pytest.raises(ConfigError, match="1 for 2 prompts"):
        policy.roll_out(reward, ["a"], count=2)
    with pytest.raises(AttributeError, match="nothing"):
        policy.update(NoReward(), policy.group(policy.answer("a")))
