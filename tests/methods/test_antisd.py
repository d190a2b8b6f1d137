from __future__ import annotations

from dataclasses import replace

import pytest
from formulas import ROOT, close, entropy, toward_mean, towards

from core_parts import QUESTION, group
from selfdistill.losses import Additive, Constant, EntropyGate, JensenShannon, Repel, SampledToken
from selfdistill.methods import AntiSD
from selfdistill.methods.base import Credit
from selfdistill.models.teacher import Live
from selfdistill.testing import TOKENS, three_token_policy
from selfdistill.types import Context, DropReason

P, GOOD, BAD = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.4, 0.2, 0.4]


def test_defaults_are_the_published_ones() -> None:
    method, loss_spec = AntiSD(), AntiSD().loss_spec(1.0)
    assert (loss_spec.distil_sign, loss_spec.shaping) == (Repel(), Additive(JensenShannon(0.5)))
    assert (loss_spec.schedule, loss_spec.gate) == (Constant(0.5), EntropyGate(0.93, 5))
    assert (loss_spec.support, method.teacher, method.reference_kl) == (SampledToken(), Live(), 0.0)


def test_the_teacher_reads_a_solution_and_whether_the_attempt_was_right() -> None:
    good, bad, other = AntiSD().credits(group([1.0, 0.0, 1.0]))
    assert good.context == Context("solution+verdict", solution="answer 2", reply="This is correct.")
    assert bad.context == Context("solution+verdict", solution="answer 0", reply="This is incorrect.")
    assert (bad.distil, bad.advantage < 0, other.advantage > 0) == (1.0, True, True)


def test_without_a_solved_sibling_it_is_the_demonstration_or_nothing() -> None:
    lone, _ = AntiSD().credits(group([1.0, 0.0]))
    assert (lone.context, lone.distil, lone.advantage > 0) == (None, 0.0, True)
    assert AntiSD().credits(group([0.0, 0.0])) == [DropReason.ZERO_ADVANTAGE] * 2
    taught = group([0.0, 0.0], task=replace(QUESTION, demonstration="12"))
    told = Context("solution+verdict", solution="12", reply="This is incorrect.")
    assert AntiSD().credits(taught) == [Credit(told, distil=1.0)] * 2, "a group that agrees is pushed away all the same"


def memory(is_open: bool, reference: float) -> dict[str, float]:
    return {"gate_seen": 5.0, "gate_reference": reference, "gate_open": float(is_open)}


@pytest.mark.parametrize(("reference", "strength"), [(entropy(GOOD), 0.5), (entropy(GOOD) / 0.9, 0.0)])
def test_the_gradient_goes_up_the_divergence_while_the_teacher_hesitates_enough(
    reference: float, strength: float
) -> None:
    """The lower median of the teacher's entropies is that of GOOD; once the first batches had 1/0.9 of it, nothing is
    added."""
    toy = three_token_policy({"question": [P], "This is correct": [GOOD], "This is incorrect": [BAD]})
    said = [toy.answer("b", 1.0), toy.answer("a", 1.0), toy.answer("a"), toy.answer(".")]
    learned = toy.update(AntiSD(), toy.group(*said), memory=memory(True, reference))
    advantages = [
        credited * ROOT - strength * float(toward_mean(P, told)[TOKENS.index(token)])
        for token, credited, told in (("b", 1, GOOD), ("a", 1, GOOD), ("a", -1, BAD), (".", -1, BAD))
    ]
    expected = -sum(a * towards(token, P) for a, token in zip(advantages, "baa.", strict=True)) / 4
    close(learned.gradients["question"][0], expected)
    assert learned.memory["gate_open"] == float(strength > 0)


def test_while_warming_up_it_is_grpo() -> None:
    toy = three_token_policy({"question": [P], "This is": [GOOD]})
    learned = toy.update(
        AntiSD(), toy.group(toy.answer("b", 1.0), toy.answer("a", 1.0), toy.answer("a"), toy.answer("."))
    )
    close(learned.gradients["question"][0], -ROOT * (towards("b", P) - towards(".", P)) / 4)
    assert learned.memory["gate_seen"] == 1
