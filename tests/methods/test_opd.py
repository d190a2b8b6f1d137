from __future__ import annotations

import pytest
import torch

from core_parts import group
from selfdistill.losses import FullVocabulary, ReverseKL
from selfdistill.methods import OPD
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Other
from selfdistill.testing import three_token_policy
from selfdistill.types import Context

BARE, STRONGER = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]


def test_defaults_compare_with_another_model_over_the_full_vocabulary() -> None:
    method = OPD()
    assert (method.loss_spec(1.0).support, method.loss_spec(1.0).divergence) == (FullVocabulary(), ReverseKL())
    assert (method.teacher, method.needs_reward) == (Other(), "no")


def test_every_answer_counts_one_and_the_teacher_reads_nothing_more() -> None:
    assert OPD().credits(group([1.0, 0.0])) == [Credit(Context("bare"), distil=1.0)] * 2


def test_the_gradient_is_that_of_the_reverse_kl_to_the_other_model() -> None:
    """∂KL(p‖q)/∂z = p (log(p/q) − KL), and each of two tokens weighs a half."""
    toy = three_token_policy({"question": BARE}, other={"question": STRONGER})
    found = toy.update(OPD(), toy.group(toy.answer("b.")), teacher=Other("stronger"))
    p, q = torch.tensor(BARE).double(), torch.tensor(STRONGER).double()
    kl = (p * (p / q).log()).sum(-1, keepdim=True)
    torch.testing.assert_close(found.gradients["question"], p * ((p / q).log() - kl) / 2, atol=1e-6, rtol=0)
    assert found.report.loss == pytest.approx(float(kl.mean()))
