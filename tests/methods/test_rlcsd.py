from __future__ import annotations

from math import log, tanh

from formulas import ROOT, close, towards

from core_parts import group
from selfdistill.losses import Additive, Constant, Contrast, SampledToken, Tanh
from selfdistill.methods import RLCSD
from selfdistill.models.teacher import Snapshot
from selfdistill.testing import three_token_policy
from selfdistill.types import Context, DropReason

P, RIGHT, WRONG, WORSE = [0.5, 0.3, 0.2], [0.505, 0.3, 0.195], [0.6, 0.3, 0.1], [0.4, 0.3, 0.3]


def solution(text: str) -> Context:
    return Context("solution", solution=text)


def test_defaults_are_the_published_ones() -> None:
    method, loss_spec = RLCSD(), RLCSD().loss_spec(1.0)
    assert (loss_spec.mixture, loss_spec.support) == (Contrast(normalise=False), SampledToken())
    assert loss_spec.shaping == Additive(clipping=Tanh(0.02), threshold=0.02, keep_sign=True, two_path=1.0)
    assert (loss_spec.schedule, method.teacher) == (Constant(0.5), Snapshot(10))
    assert (method.reduction, method.wrong, method.reference_kl) == ("token-mean", 4, 0.0)
    assert (method.clip_low, method.clip_high, method.count_dropped) == (0.2, 0.2, False)
    assert (loss_spec.policy.clip_low, loss_spec.policy.clip_high) == (0.2, 0.2)


def test_right_and_wrong_siblings_are_read_in_the_same_words_and_never_the_answer_itself() -> None:
    good, other, *bad = RLCSD().credits(group([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert (good.context, other.context) == (solution("answer 1"), solution("answer 0"))
    assert good.against == tuple(solution(f"answer {n}") for n in (2, 3, 4, 5)), "four at most"
    assert bad[0].context == solution("answer 0")
    assert bad[0].against == tuple(solution(f"answer {n}") for n in (3, 4, 5, 6))
    assert all(credit.distil == 1 for credit in (good, other, *bad))


def test_who_lacks_one_kind_of_sibling_keeps_the_plain_advantage() -> None:
    good, bad, worse = RLCSD().credits(group([1.0, 0.0, 0.0]))
    assert (good.context, good.distil, good.advantage > 0) == (None, 0.0, True)
    assert (bad.against, worse.against) == ((solution("answer 2"),), (solution("answer 1"),))
    _, _, lone = RLCSD().credits(group([1.0, 1.0, 0.0]))
    assert (lone.context, lone.against, lone.advantage < 0) == (None, (), True)
    assert RLCSD().credits(group([1.0, 1.0])) == [DropReason.ZERO_ADVANTAGE] * 2


def test_the_gradient_adds_the_bounded_contrast_on_two_paths() -> None:
    """Tokens "b", "a" of the solved answers are contrasted with both wrong ones, whose mean is (.5, .3, .2): "b" has no
    log-ratio, "a" log 1.01. The wrong "a" is contrasted with the other wrong answer alone, "." likewise: their tanh is
    1 to nine digits. Three of four tokens are changed, so each of these weighs 1/3 and "b" 1."""
    toy = three_token_policy({"question": [P], "right": [RIGHT], "wrong": [WRONG], "worse": [WORSE]})
    right, texts = "right", ("wrong", "worse")
    said = [toy.answer("b", 1.0, text=right), toy.answer("a", 1.0, text=right)]
    said += [toy.answer(token, text=text) for token, text in zip("a.", texts, strict=True)]
    found = toy.update(RLCSD(), toy.group(*said)).gradients["question"][0]
    turned = (0.5 - ROOT) * (towards("a", P) + towards(".", P))
    changed = (ROOT + 0.5 * tanh(log(1.01) / 0.02)) * towards("a", P) + turned
    close(found, -(ROOT * towards("b", P) + changed / 3))


def test_a_group_that_agrees_does_not_dilute_the_two_means() -> None:
    toy = three_token_policy({"question": [P], "right": [RIGHT], "wrong": [WRONG], "worse": [WORSE]})
    said = [toy.answer("b", 1.0, text="right"), toy.answer("a", 1.0, text="right")]
    said += [toy.answer("a", text="wrong"), toy.answer(".", text="worse")]
    flat = toy.group(toy.answer("b", 1.0), toy.answer("b", 1.0), name="flat")
    alone, beside = toy.update(RLCSD(), toy.group(*said)), toy.update(RLCSD(), toy.group(*said), flat)
    close(beside.gradients["question"][0], alone.gradients["question"][0])


def test_a_push_may_not_turn_a_verdict_around() -> None:
    """λ = 2: −√3/2 + 2 would reward a failure; it is cut to 0."""
    toy = three_token_policy({"question": [P], "right": [RIGHT], "wrong": [WRONG], "worse": [WORSE]})
    said = [toy.answer("b", 1.0, text="right"), toy.answer("b", 1.0, text="right")]
    said += [toy.answer("a", text="wrong"), toy.answer(".", text="worse")]
    found = toy.update(RLCSD(strength=2.0), toy.group(*said)).gradients["question"][0]
    close(found, -ROOT * towards("b", P))
