"""The loss that is shown and recorded, method by method, against the objective written out on three tokens.

Distillation: the divergence in nats. Policy gradients: the clipped surrogate −min(rA, clip(r)A), which is −A as long as
the weights have not moved. Words that nobody sampled: the cross-entropy −A log p(y).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log, sqrt, tanh
from typing import Any

import pytest
import torch
from formulas import ROOT, Row, entropy, moved, row, toward_mean, towards

from selfdistill.losses import LOSS_TERMS, SampledToken, divergence
from selfdistill.methods import METHODS, Method, get_method
from selfdistill.methods.erl import ERL
from selfdistill.methods.rltf_fm import RLTFFM
from selfdistill.models.teacher import Other
from selfdistill.prompts.stages import (
    DemonstrationCompletions,
    LoggedCompletions,
    PrivilegedRollouts,
    ReflectedAttempts,
    SecondAttempts,
)
from selfdistill.testing import QUESTION, TOKENS, Table, ThreeTokenPolicy, three_token_policy
from selfdistill.types import Message, Rollout

P, Q, START = [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]
RIGHT, WRONG, WORSE = [0.505, 0.3, 0.195], [0.6, 0.3, 0.1], [0.4, 0.3, 0.3]
DEMONSTRATED = replace(QUESTION, demonstration="hint")


def kl(p: Row, q: Row) -> float:
    return float((row(p) * (row(p) / row(q)).log()).sum())


def js(p: Row, q: Row) -> float:
    mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, mean) + kl(q, mean)) / 2


def cut_kl(q: Row, p: Row, limit: float) -> float:
    return sum(min(b * log(b / a), limit) for a, b in zip(p, q, strict=True))


@dataclass(frozen=True)
class Case:
    """What a method learns from, and the terms of its loss that are not 0. `said` are answers of one group."""

    toy: ThreeTokenPolicy
    said: Sequence[Rollout]
    wanted: Mapping[str, float]
    method: Method | None = None
    also: Sequence[Rollout] = ()
    how: Mapping[str, Any] = field(default_factory=dict)


def toy(told: Row = Q, **more: Any) -> ThreeTokenPolicy:
    return three_token_policy({"question": [P], "right": [told], "hint": [told]}, **more)


def sampled(env: ThreeTokenPolicy, letters: str, reward: float | None = 0.0, at: Table = (P,), **more: Any) -> Rollout:
    logprobs = tuple(log(row[TOKENS.index(letter)]) for letter, row in zip(letters, at, strict=True))
    return env.answer(letters, reward, logprobs=logprobs, **more)


def solved_and_failed(of: ThreeTokenPolicy) -> list[Rollout]:
    return [sampled(of, "b", 1.0, text="right"), sampled(of, "a")]


def two_and_two(of: ThreeTokenPolicy) -> list[Rollout]:
    """Advantages ±√3/2 once divided by their deviation; all on tokens of their own."""
    solved = [sampled(of, "b", 1.0, text="right"), sampled(of, "a", 1.0, text="right")]
    return [*solved, sampled(of, "a"), sampled(of, ".")]


def grpo() -> Case:
    """Sampled at (.4, .4, .2), before an update: A = ½ on "a" has r = 1.25, A = −½ on "b" r = .75, clipped to .8."""
    before = [[0.4, 0.4, 0.2]]
    of = three_token_policy({"question": before}, start={"question": [START]})
    said = [sampled(of, "a", 1.0, before), sampled(of, "b", 0.0, before)]
    wanted = {"surrogate": (-1.25 * 0.5 + 0.8 * 0.5) / 2, "reference_kl": 0.1 * kl(P, START)}
    method = get_method("grpo", {"reference_kl": 0.1})
    return Case(of, said, wanted, method, also=said, how={"later": [{"question": [P]}]})


def sft() -> Case:
    of = three_token_policy({"question": [P, Q]})
    said, also = ([of.answer(words, None, stage=DemonstrationCompletions.name)] for words in ("ba", "a"))
    return Case(of, said, {"cross_entropy": -(log(0.3) + log(0.2) + log(0.5)) / 3}, also=also)


def sdpo() -> Case:
    of = toy()
    return Case(of, solved_and_failed(of), {"divergence": js(P, Q)})


def sdpo_rich_feedback() -> Case:
    """The lone success is dropped, and counts in the mean."""
    of = toy()
    return Case(of, solved_and_failed(of), {"divergence": kl(P, Q) / 2})


def sdpo_outcome() -> Case:
    of = toy()
    return Case(of, solved_and_failed(of), {"divergence": js(P, Q) / 2})


def sc_sdpo() -> Case:
    """One of three solved: both failures weigh 2 √(2/9)."""
    of = toy()
    said = [*solved_and_failed(of), sampled(of, ".")]
    return Case(of, said, {"divergence": 2 * sqrt(2 / 9) * js(P, Q) * 2 / 3})


def opd() -> Case:
    of = three_token_policy({"question": [P]}, other={"question": [Q]})
    return Case(of, [sampled(of, "b")], {"divergence": kl(P, Q)}, how={"teacher": Other("stronger")})


def opcd() -> Case:
    of = toy()
    return Case(of, [sampled(of, "b")], {"divergence": kl(P, Q)}, get_method("opcd", {"context": {"text": "hint"}}))


def nca() -> Case:
    """The second use: what is read with the context is drawn to what is said without it."""
    of = toy()
    method = get_method("nca", {"context": {"kind": "instruction", "text": "hint"}})
    return Case(of, [sampled(of, "b")], {"divergence": 1.5 * kl(P, Q)}, method)


def opsd() -> Case:
    of = toy(task=DEMONSTRATED)
    return Case(of, [sampled(of, "b")], {"divergence": cut_kl(Q, P, 0.05)})


def sdft() -> Case:
    """Of five tokens the first three are left out, and count in the mean."""
    of = three_token_policy({"question": [P] * 5, "hint": [Q] * 5}, task=DEMONSTRATED)
    return Case(of, [sampled(of, "abab.", at=[P] * 5)], {"divergence": 2 / 5 * kl(Q, P)})


def user_replies() -> Case:
    """A log: two tokens with e = log(.7/.3) and log(.1/.2) as their advantages."""
    of = three_token_policy({"question": [P, P], "hint": [Q, Q]})
    e_b, e_end = log(0.7 / 0.3), log(0.1 / 0.2)
    wanted = {"cross_entropy": -(e_b * log(0.3) + e_end * log(0.2)) / 2}
    said = [of.answer("b.", None, stage=LoggedCompletions.name)]
    said = [replace(said[0], outcome=of.answer("b.", reply="hint").outcome)]
    return Case(of, said, wanted, get_method("user_replies", {"logged": True}))


def erl() -> Case:
    """A lone second attempt: only its words under the bare question are left, and the hold of both on the start."""
    of = three_token_policy({"question": [P], "reflected": [Q]}, start={"question": [START]})
    read = (Message("system", "reflected"), *QUESTION.messages)
    again = sampled(of, "b", 0.8, [Q], stage=ReflectedAttempts.name, messages=read, of=0)
    wanted = {"cross_entropy": -0.8 * log(0.3) / 2, "reference_kl": 0.001 * kl(P, START) / 2}
    return Case(of, [sampled(of, "a"), again], wanted, ERL())


def rltf_fm() -> Case:
    """The feedback, "ab" and the end of turn, after a request for a critique."""
    critique = [[0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]]
    of = three_token_policy({"question": [P], "critique": critique})
    said = [sampled(of, "a", 0.0, feedback="ab"), sampled(of, "b", 1.0)]
    return Case(of, said, {"cross_entropy": -0.1 * (log(0.2) + log(0.3) + log(0.7)) / 3 / 2}, RLTFFM())


def rltf_sd() -> Case:
    """First attempts with a mean of ½; the second one, right, gains ½ under the first question."""
    of = three_token_policy({"question": [P], "wrong": [Q]})
    read = (*QUESTION.messages, Message("assistant", "a"), Message("user", "wrong"))
    again = sampled(of, "b", 1.0, [Q], stage=SecondAttempts.name, messages=read, of=0)
    said = [sampled(of, "a", 0.0, feedback="wrong"), sampled(of, "b", 1.0), again]
    return Case(of, said, {"cross_entropy": -0.1 * 0.5 * log(0.3) / 3})


def pi_distill() -> Case:
    """Both answers were sampled by the informed reader: A = ±½, S/T = .3/.7 on "b" and 2.5, cut at 2, on "a". The bare
    reader's divergence is KL(T‖S) and the informed one's too, each with a half of 0.1."""
    of, read = toy(task=DEMONSTRATED), (Message("user", "question, hint"),)
    said = [
        sampled(of, letter, reward, [Q], stage=PrivilegedRollouts.name, messages=read)
        for letter, reward in (("b", 1.0), ("a", 0.0))
    ]
    corrected = 0.5 * (-0.3 / 0.7 * 0.5 + 2 * 0.5) / 2
    return Case(of, said, {"divergence": 0.1 * kl(Q, P), "surrogate": corrected})


def rlsd() -> Case:
    """Where A > 0, q/p is 7/3, cut at 1.2, on "b" and .4, cut at .8, on "a"; below, p/q is 2.5 and 2, cut at 1.2."""
    of = toy(task=replace(QUESTION, demonstration="right"))
    total = 0.5 * (1.2 + 0.8 - 1.2 - 1.2)  # the other half of each advantage is plain, and adds up to 0
    return Case(of, two_and_two(of), {"surrogate": -ROOT * total / 4})


def rlrt() -> Case:
    """Solved answers: p/q is .3/.7, cut at ½, on "b" and 2.5, cut at 1.5, on "a". Failures keep A."""
    of = toy()
    total = (0.5 + 0.5 * 0.5) + (0.5 + 0.5 * 1.5) - 1 - 1
    return Case(of, two_and_two(of), {"surrogate": -ROOT * total / 4})


def rlcsd() -> Case:
    """As in test_rlcsd: "b" keeps its advantage, three tokens are changed and share the other mean."""
    of = three_token_policy({"question": [P], "right": [RIGHT], "wrong": [WRONG], "worse": [WORSE]})
    said = [sampled(of, "b", 1.0, text="right"), sampled(of, "a", 1.0, text="right")]
    said += [sampled(of, "a", text="wrong"), sampled(of, ".", text="worse")]
    changed = ROOT + 0.5 * tanh(log(1.01) / 0.02) + 2 * (0.5 - ROOT)
    return Case(of, said, {"surrogate": -(ROOT + changed / 3)})


def antisd() -> Case:
    """The gate is open: A − ½ h(e), h of the Jensen-Shannon divergence, on each sampled token."""
    good, bad = Q, [0.4, 0.2, 0.4]
    of = three_token_policy({"question": [P], "This is correct": [good], "This is incorrect": [bad]})
    said = [sampled(of, "b", 1.0), sampled(of, "a", 1.0), sampled(of, "a"), sampled(of, ".")]
    pushed = [("b", good), ("a", good), ("a", bad), (".", bad)]
    total = -0.5 * sum(float(toward_mean(P, told)[TOKENS.index(token)]) for token, told in pushed)
    memory = {"gate_seen": 5.0, "gate_reference": entropy(good), "gate_open": 1.0}
    return Case(of, said, {"surrogate": -total / 4}, how={"memory": memory})


def sdpg() -> Case:
    """At the peak of its schedule; only what is better than its group members is distilled."""
    of = toy(start={"question": [START]})
    wanted = {"divergence": 1e-3 * kl(P, Q) * 2 / 4, "reference_kl": 1e-3 * kl(P, START)}
    return Case(of, two_and_two(of), wanted, how={"step": 50})


def srpo() -> Case:
    """The success has A = ½; both tokens of the failure are distilled, weighed by how sure the teacher is."""
    other = [0.3, 0.3, 0.4]
    of = three_token_policy({"question": [P, P], "right": [Q, other]})
    sure = [exp(-entropy(Q)), exp(-entropy(other))]
    weighed = (sure[0] * js(P, Q) + sure[1] * js(P, other)) / sum(sure)
    said = [sampled(of, "b", 1.0, text="right"), sampled(of, "ab", at=[P, P])]
    return Case(of, said, {"divergence": weighed / 2, "surrogate": -0.5 / 2})


def safe() -> Case:
    """A bound that cuts the push leaves the value a divergence."""
    of = toy()
    wanted = {"divergence": js(P, Q) / 2, "surrogate": -0.1 * 0.5 / 2}
    return Case(of, solved_and_failed(of), wanted, how={"memory": {"magnitude": 0.015}})


CASES: Mapping[str, Callable[[], Case]] = {
    "antisd": antisd, "erl": erl, "grpo": grpo, "nca": nca, "opcd": opcd, "opd": opd, "opsd": opsd,
    "pi_distill": pi_distill, "rlcsd": rlcsd, "rlrt": rlrt, "rlsd": rlsd, "rltf_fm": rltf_fm, "rltf_sd": rltf_sd,
    "safe": safe, "sc_sdpo": sc_sdpo, "sdft": sdft, "sdpg": sdpg, "sdpo": sdpo, "sdpo_outcome": sdpo_outcome,
    "sdpo_rich_feedback": sdpo_rich_feedback, "sft": sft, "srpo": srpo, "user_replies": user_replies,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_the_objective_of_the_method_in_its_terms(name: str) -> None:
    case = CASES[name]()
    groups = [case.toy.group(*case.said), *([case.toy.group(*case.also, name="s")] if case.also else [])]
    report = case.toy.update(case.method or get_method(name, {}), *groups, **case.how).report
    wanted = {term: case.wanted.get(term, 0.0) for term in LOSS_TERMS}
    assert report.terms == pytest.approx(wanted, abs=1e-6)
    assert report.loss == pytest.approx(sum(wanted.values()), abs=1e-6)


def test_fresh_answers_learned_from_replies_have_the_surrogate_of_centred_advantages() -> None:
    """Nothing moved, so that r = 1 and centred advantages add up to 0."""
    of = three_token_policy({"question": [P, P], "hint": [Q, Q]})
    report = of.update(METHODS["user_replies"](), of.group(sampled(of, "b.", at=[P, P], reply="hint"))).report
    assert report.terms == pytest.approx(dict.fromkeys(LOSS_TERMS, 0.0), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_on_sampled_tokens_the_loss_is_an_unbiased_estimate_of_the_divergence(alpha: float) -> None:
    """Its mean over y ~ p is the divergence, and the mean of its gradient is the divergence's."""
    of, method = toy(), get_method("sdpo", {"level": "token", "alpha": alpha})
    assert method.loss_spec(1.0).support == SampledToken()
    value, gradient = 0.0, torch.zeros(3).double()
    for letter, probability in zip(TOKENS, P, strict=True):
        found = of.update(method, of.group(sampled(of, "b", 1.0, text="right"), sampled(of, letter)))
        value += probability * found.report.loss
        gradient += probability * found.gradients["question"][0]
    shape, logs = divergence(alpha), (row(P).log()[None], row(Q).log()[None])
    assert value == pytest.approx(float(shape.evaluate(*logs).divergence_N), abs=1e-6)
    torch.testing.assert_close(gradient, moved(P, shape.advantage(*logs)[0]), atol=1e-6, rtol=0)


def test_what_was_sampled_from_this_prompt_keeps_the_surrogate_and_both_have_one_gradient() -> None:
    """The same answer as a demonstration and as a sample of the student: only the value that is shown differs."""
    of = three_token_policy({"question": [P]})
    given, drawn = (
        of.update(METHODS["sft"](), of.group(said)) for said in (of.answer("b", 1.0), sampled(of, "b", 1.0))
    )
    assert (given.report.loss, drawn.report.loss) == pytest.approx((-log(0.3), -1.0), abs=1e-6)
    for found in (given, drawn):
        torch.testing.assert_close(found.gradients["question"][0], -towards("b", P), atol=1e-6, rtol=0)
