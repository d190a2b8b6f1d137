"""Agreement of a judge with an environment, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from selfdistill.analysis.judge_agreement import agreement_of, judge_agreement
from selfdistill.envs.base import Fault
from selfdistill.errors import DataError
from selfdistill.types import Completion, DropReason, Message, Outcome, Task

LOST = Fault(DropReason.BAD_OUTCOME, "no JSON")


def outcomes(text: str) -> list[tuple[Outcome | Fault, Outcome | Fault]]:
    """Decisions of environment and judge: "10" is a right answer that the judge fails, "?" none."""
    made = {"1": Outcome(1.0), "0": Outcome(0.4), "?": LOST}
    return [(made[right], made[passed]) for right, passed in text.split()]


def test_shares_and_kappa_are_those_of_the_table() -> None:
    found = agreement_of(list("aabbcd"), outcomes("11 11 10 01 00 00"))
    assert found.equal.value == pytest.approx(4 / 6)
    assert found.kappa.value == pytest.approx(1 / 3)  # (4/6 − 1/2) / (1 − 1/2)
    assert found.kappa.low < 1 / 3 < found.kappa.high
    assert found.false_passes is not None
    assert (found.false_passes.value, found.false_passes.n) == (pytest.approx(1 / 3), 3)
    assert found.false_failures is not None
    assert (found.false_failures.value, found.false_failures.n) == (pytest.approx(1 / 3), 3)
    assert "of 3 wrong answers" in str(found)


def test_one_who_decides_alike_about_all_knows_nothing() -> None:
    found = agreement_of(list("abcd"), outcomes("11 01 11 11"))
    assert (found.equal.value, found.kappa.value) == (0.75, 0.0)
    found = agreement_of(list("ab"), outcomes("11 11"))
    assert (found.kappa.value, found.false_passes) == (0.0, None)


def test_answers_without_a_decision_are_counted_and_left_out() -> None:
    found = agreement_of(list("abcd"), outcomes("11 1? ?0 ??"))
    assert found.equal.n == 1
    assert found.dropped == {"judge bad_outcome": 2, "environment bad_outcome": 2}
    with pytest.raises(DataError, match="decisions of both") as error:
        agreement_of(["a"], outcomes("1?"))
    assert error.value.got == "1 judge bad_outcome"


def test_both_score_the_same_answers() -> None:
    class Contains:
        name = "contains"

        def __init__(self, word: str) -> None:
            self.word = word

        def score(self, task: Task, completion: Completion) -> Outcome:
            return Outcome(float(self.word in completion.text))

    task = Task("q", (Message("user", "?"),))
    pairs = [(task, Completion(str(n), text)) for n, text in enumerate(("ab", "a", "b", ""))]
    found, scored = judge_agreement(Contains("a"), Contains("b"), pairs)
    assert [(env.reward, judge.reward) for env, judge in scored] == [(1, 1), (1, 0), (0, 1), (0, 0)]
    assert found.equal.value == 0.5
