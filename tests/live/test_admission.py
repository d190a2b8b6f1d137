"""Decisions from measured numbers: what is admitted, what is refused, and what cannot be decided."""

import random
from dataclasses import replace

import pytest

from selfdistill.live.admission import (
    Admission,
    Answers,
    Compared,
    Criterion,
    Finding,
    Trained,
    after_training,
    before_training,
    relief,
)
from selfdistill.live.learning import LiveLearning
from selfdistill.live.probe import changes
from selfdistill.types import Completion, StopReason

OPTIONS = LiveLearning()
FORM = Answers((20,) * 24)


def pairs_of(
    gain: float, *, questions: int = 12, noise: float = 1.0, session: str = "s", seed: int = 0
) -> list[Compared]:
    """Two answers of each reader to each question; those of the second follow the lesson by `gain` nats more."""
    rng = random.Random(seed)

    def scores(mean: float) -> tuple[float, float]:
        return rng.gauss(mean, 1.0), rng.gauss(mean, 1.0)

    return [Compared(session, scores(0.0), scores(-gain)) for _ in range(questions)]


def trained(**changes: object) -> Trained:
    good = Trained(pairs_of(2.0), (0.05,) * 24, FORM, (0.001, 0.003, 0.002) * 10, (0.0,) * 60)
    return replace(good, **changes)  # type: ignore[arg-type]


def decided(found: Trained, gain: float = 2.0, student: Answers = FORM) -> Admission:
    return after_training(pairs_of(gain), student, FORM, found, OPTIONS)


def finding(admission: Admission, name: str) -> str:
    return next(criterion.finding for criterion in admission.criteria if criterion.name == name)


def test_a_candidate_that_helps_and_harms_nothing_is_admitted() -> None:
    found = decided(trained())
    assert found.admitted
    assert found.reason == "every criterion is met"
    assert {criterion.finding for criterion in found.criteria} == {"pass"}
    assert {"complete", "gain", "moved", "kl_cap", "follows", "probe", "tasks", "length"} <= {
        criterion.name for criterion in found.criteria
    }


def test_a_teacher_that_is_no_better_is_refused_before_training() -> None:
    """SDPO's feedback section on the 0.5 B model: .53 of the teacher's answers were good, and .56 of the student's."""
    rng = random.Random(1)

    def scores(good: float) -> tuple[float, ...]:
        return tuple(rng.gauss(-3.0 if rng.random() < good else 0.0, 1.0) for _ in range(2))

    bad = [Compared("s", scores(0.56), scores(0.53)) for _ in range(32)]
    found = before_training(bad, FORM, FORM)
    assert not found.admitted
    assert found.reason.startswith("gain: ")
    good = [Compared("s", scores(0.56), scores(0.94)) for _ in range(32)]
    assert before_training(good, FORM, FORM).admitted


def test_no_gain_is_admitted_by_chance_in_more_than_one_case_of_twenty() -> None:
    admitted = [before_training(pairs_of(0.0, seed=seed), FORM, FORM).admitted for seed in range(400)]
    assert sum(admitted) / 400 <= 0.05


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"moved": (0.0001,) * 24}, "moved"),
        ({"moved": (3.0,) * 24}, "kl_cap"),
        ({"follows": pairs_of(-2.0)}, "follows"),
        ({"follows": [*pairs_of(3.0), *pairs_of(-2.0, session="other")]}, "sessions"),
        ({"beside": pairs_of(-2.0, session="other")}, "sessions"),
        ({"cut": (0, 30)}, "tasks"),
        ({"probe": (0.4, 0.5, 0.3) * 10}, "probe"),
        ({"tasks": (-1.0,) * 12 + (0.0,) * 20}, "tasks"),
        ({"answers": Answers((1,) * 24)}, "length"),
        ({"answers": Answers((900,) * 24)}, "length"),
        ({"answers": Answers((20,) * 24, repeated=10)}, "repeated"),
        ({"answers": Answers((20,) * 14, empty=10)}, "empty"),
        ({"answers": Answers((20,) * 14, truncated=10)}, "truncated"),
    ],
)
def test_each_harm_is_refused_by_its_name(changes: dict[str, object], name: str) -> None:
    found = decided(trained(**changes))
    assert not found.admitted
    assert finding(found, name) == "fail"
    assert f"{name}: " in found.reason


def test_truncated_answers_are_not_measured_and_too_many_of_them_decide_nothing() -> None:
    found = before_training(pairs_of(2.0), Answers((20,) * 4, truncated=20), FORM)
    assert found.admitted
    found = before_training(pairs_of(2.0), Answers((), truncated=24), Answers((20,) * 4, truncated=20))
    assert not found.admitted
    assert finding(found, "complete") == "undecided"
    assert "44 of 48" in found.reason
    assert "max_new_tokens" in found.reason


def test_a_probe_set_that_cannot_decide_says_how_many_prompts_would() -> None:
    found = decided(trained(probe=(-0.3, 0.3, 0.1, -0.1), tasks=(0.0, 1.0, -1.0)))
    assert found.admitted
    assert finding(found, "probe") == finding(found, "tasks") == "undecided"
    assert "too few prompts to exclude a harm of 0.1, about" in found.reason
    assert finding(decided(trained(probe=(), tasks=())), "probe") == "undecided"


def test_exact_answers_that_were_cut_are_none_that_were_lost() -> None:
    found = decided(trained(cut=(2, 4)))
    assert found.admitted
    (tasks,) = (criterion for criterion in found.criteria if criterion.name == "tasks")
    assert "exact answers to 60 probe prompts" in tasks.reason
    assert "4 others were cut before (2 of the served weights)" in tasks.reason
    whole = Completion("a", "It is Paris.", (1, 2))
    cut, right = replace(whole, text="To begin", stop=StopReason.LENGTH), replace(whole, stop=StopReason.LENGTH)
    wrong = replace(whole, text="Rome.")
    both = [("Paris", *pair) for pair in ((whole, cut), (cut, whole), (whole, right), (whole, wrong), (wrong, whole))]
    assert changes(both) == ([0.0, -1.0, 1.0], (1, 1))


def test_too_few_questions_for_an_interval_are_said() -> None:
    (one,) = pairs_of(3.0, questions=1)
    assert relief([one]) is not None
    single = Compared("s", one.before[:1], one.after[:1])
    assert relief([single]) is None
    assert relief([one, single]) == relief([one]), "a question with a single answer has no spread"
    found = before_training([single], FORM, FORM)
    assert not found.admitted
    assert "it needs 6" in found.reason


def test_the_interval_is_students_over_questions() -> None:
    pairs = [Compared("s", (float(n),), (0.0,)) for n in range(1, 7)]
    found = relief(pairs)
    assert found is not None
    assert found.value == pytest.approx(3.5)
    assert found.high - found.value == pytest.approx(2.571 * (3.5 / 6) ** 0.5, rel=1e-3)  # t(5) · s / √6, s² = 3.5


def test_only_what_goes_too_far_is_taken_back_half_of_the_way() -> None:
    def decided(**findings: Finding) -> Admission:
        return Admission(tuple(Criterion(name, 0.0, 0.0, finding, "why") for name, finding in findings.items()))

    assert decided(tasks="fail", follows="pass").too_far
    assert decided(kl_cap="fail", probe="fail").too_far
    assert not decided(tasks="fail", follows="fail").too_far
    assert not decided(gain="undecided").too_far
    assert not decided(tasks="pass").too_far
