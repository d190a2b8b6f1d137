from __future__ import annotations

from dataclasses import replace
from math import log, nan

import pytest
import torch

from core_parts import group, rollout
from selfdistill.errors import ConfigError
from selfdistill.losses import ForwardKL, RatioCaps, ReverseKL
from selfdistill.methods import PiDistill, get_method
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Live
from selfdistill.prompts.context import Demonstration, Instruction
from selfdistill.prompts.stages import PrivilegedRollouts
from selfdistill.testing import QUESTION, Update, three_token_policy
from selfdistill.types import Context, DropReason, Message, RolloutGroup

TASK = replace(QUESTION, demonstration="hint")
TOLD = Context("demonstration", demonstration="hint")
S, T = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]


def informed(*rewards: float) -> RolloutGroup:
    said = [
        replace(rollout(number, reward, task=TASK), stage=PrivilegedRollouts.name)
        for number, reward in enumerate(rewards)
    ]
    return RolloutGroup(TASK, tuple(said))


def test_defaults_share_evenly_and_answer_with_the_demonstration_at_hand() -> None:
    method = PiDistill()
    assert (method.share, method.kl, method.teacher) == (0.5, 0.1, Live())
    assert method.stages == (PrivilegedRollouts(Demonstration()),)
    own, other = method.loss_specs(0.7)
    assert (own.divergence, other.divergence) == (ReverseKL(), ForwardKL())
    assert own.ratio == other.ratio == RatioCaps(2.0, 2.0)
    assert (own.temperature, other.temperature) == (0.7, 0.7)


def test_each_answer_is_used_by_both_readers() -> None:
    bare = TASK.messages
    assert PiDistill().credits(informed(1.0, 0.0))[0] == (
        Credit(TOLD, distil=0.05, question=bare, spec_index=1),
        Credit(TOLD, advantage=0.25, distil=0.05, question=bare, student_reads_context=True),
        Credit(advantage=0.25, question=bare, correct=True, spec_index=1),
    )


def test_what_weighs_nothing_is_no_use() -> None:
    bare, flat = TASK.messages, informed(1.0, 1.0)
    assert PiDistill(share=1.0).credits(flat)[0] == (
        Credit(TOLD, distil=0.1, question=bare, student_reads_context=True),
    )
    assert PiDistill(share=0.0, kl=0.0).credits(informed(1.0, 0.0))[1] == (
        Credit(advantage=-0.5, question=bare, correct=True, spec_index=1),
    )
    assert PiDistill(kl=0.0).credits(flat) == [DropReason.ZERO_ADVANTAGE] * 2
    assert PiDistill().credits(group([1.0])) == [DropReason.NO_CONTEXT]
    assert get_method("pi_distill", {"context": {"kind": "instruction", "text": "hm"}}).context == Instruction("hm")


@pytest.mark.parametrize("share", [-0.1, 1.5, nan])
def test_a_share_that_would_train_one_reader_against_itself_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share must be a number from 0 to 1"):
        PiDistill(share=share)
    with pytest.raises(ConfigError, match=r"method\.share must be a number from 0 to 1"):
        get_method("pi_distill", {"share": share})


def learned(method: PiDistill) -> Update:
    """Two answers, "b" with reward 1 and "a" with 0: A = ±1/2. Both were sampled by the informed reader."""
    toy = three_token_policy({"question": [S], "hint": [T]}, task=TASK)
    read = (Message("user", "question, hint"),)
    said = [
        toy.answer(letter, reward, stage=PrivilegedRollouts.name, messages=read, logprobs=(log(T["ab".index(letter)]),))
        for letter, reward in (("b", 1.0), ("a", 0.0))
    ]
    return toy.update(method, toy.group(*said))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_the_joint_objective(share: float) -> None:
    """J = share · J_T + (1 − share) · J_S by autograd, S/T = 0.3/0.7 on "b" and 0.5/0.2 = 2.5, cut at 2, on "a"."""
    method = PiDistill(share=share, kl=0.3)
    z_s, z_t = (torch.tensor(row).double().log().requires_grad_() for row in (S, T))
    log_s, log_t = z_s.log_softmax(-1), z_t.log_softmax(-1)
    objective = torch.zeros(()).double()
    for token, advantage, ratio in ((1, 0.5, 0.3 / 0.7), (0, -0.5, 2.0)):
        own = advantage * log_t[token] - 0.3 * (log_t.exp() * (log_t - log_s.detach())).sum()
        other = ratio * advantage * log_s[token] - 0.3 * (log_t.detach().exp() * (log_t.detach() - log_s)).sum()
        objective = objective + (share * own + (1 - share) * other) / 2
    (-objective).backward()
    found = learned(method).gradients
    torch.testing.assert_close(found["question"][0], z_s.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["hint"][0], z_t.grad, atol=1e-6, rtol=0)
