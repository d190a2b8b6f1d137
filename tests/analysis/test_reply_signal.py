"""For how many replies the log-ratio moves, on the embedded model, whose users reply with what a verb means."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from selfdistill.analysis.reply_signal import reply_signal
from selfdistill.analysis.token_credit import CreditQuery, credit
from selfdistill.envs.verbs.env import fresh_verbs
from selfdistill.types import Context, Task


@pytest.fixture(scope="module")
def log() -> list[Task]:
    """Twelve conversations; the answer of each is the program of another verb."""
    verbs = fresh_verbs(12, (1, 2), seed=3)
    return [replace(task, logged_answer=verbs[n - 1].demonstration) for n, task in enumerate(verbs)]


def test_more_answers_are_moved_by_their_own_reply_than_by_chance(policy, renderer, log: list[Task]) -> None:
    found = reply_signal(policy, renderer, log, controls=3)
    assert (len(found.own), len(found.unrelated), found.left_out, found.by_chance) == (12, 12, 0, 0.25)
    assert found.share == fmean(own > other for own, other in zip(found.own, found.unrelated, strict=True))
    assert found.share >= 0.5
    answer, context = renderer.answer(log[0].logged_answer), Context("reply", reply=log[0].user_reply)
    by_hand = credit(policy, renderer, CreditQuery(log[0].messages, answer, context)).tokens
    assert found.own[0] == pytest.approx(fmean(abs(token.log_ratio) for token in by_hand), abs=1e-4)


def test_unrelated_replies_are_those_of_other_conversations(policy, renderer, log: list[Task]) -> None:
    first, second, third = log[:3]
    (of_second,) = reply_signal(policy, renderer, [first, second], controls=1).unrelated[:1]
    (of_third,) = reply_signal(policy, renderer, [first, third], controls=1).unrelated[:1]
    assert reply_signal(policy, renderer, log[:3], controls=2).unrelated[0] == max(of_second, of_third)
    later = replace(second, messages=first.messages)  # another answer of the first conversation
    assert reply_signal(policy, renderer, [first, later], controls=1).left_out == 2


def test_what_does_not_fit_is_left_out(policy, renderer, log: list[Task]) -> None:
    long = replace(log[0], logged_answer=log[0].logged_answer * 200)
    found = reply_signal(policy, renderer, [long, *log[1:4]], controls=2)
    assert (len(found.own), found.left_out) == (3, 1)
    assert reply_signal(policy, renderer, []).share == 0
