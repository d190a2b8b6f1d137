from __future__ import annotations

import pytest
from formulas import close, moved, row

from core_parts import group
from selfdistill.losses import ForwardKL, FullVocabulary, ReverseKL, TopK
from selfdistill.methods import NCA
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Frozen
from selfdistill.prompts.context import Instruction, SolutionOrFeedback
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, TOLD, START = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]


def test_defaults_are_the_published_ones() -> None:
    method = NCA()
    first, again = method.loss_specs(0.6)
    assert (first.support, first.divergence, first.temperature) == (TopK(256), ReverseKL(), 0.6)
    assert (again.support, again.divergence, again.temperature) == (FullVocabulary(), ForwardKL(), 0.6)
    assert (method.teacher, method.beta, method.context) == (Frozen(), 0.5, Instruction())
    assert not method.needs_reference


def test_every_answer_is_used_twice() -> None:
    told = Context("instruction", instruction="Be brief.")
    used = (Credit(told, distil=1.0), Credit(told, distil=0.5, student_reads_context=True, spec_index=1))
    assert NCA(context=Instruction("Be brief.")).credits(group([0.0, 1.0])) == [used] * 2
    assert NCA(context=Instruction("Be brief."), beta=0.0).credits(group([0.0])) == [used[0]]
    assert NCA().credits(group([0.0])) == [DropReason.NO_CONTEXT]
    assert NCA(context=SolutionOrFeedback()).credits(group([0.0], "wrong"))[0][1].context.feedback == "wrong 0"


@pytest.mark.parametrize("beta", [0.5, 0.2])
def test_the_gradient_learns_the_context_and_draws_what_is_said_with_it_back(beta: float) -> None:
    """Two uses of one token, which add up. Without the context: toward the teacher, which is as it was at the
    start. With it: KL(p‖p_c) has the gradient p_c − p, and p is that of now."""
    toy = three_token_policy({"question": [P], "hint": [TOLD]}, start={"question": [START], "hint": [START]})
    method = NCA(context=Instruction("hint"), beta=beta)
    learned = toy.update(method, toy.group(toy.answer("b")))
    close(learned.gradients["question"][0], moved(P, (row(START) / row(P)).log()))
    close(learned.gradients["hint"][0], beta * (row(TOLD) - row(P)))
