"""Whether a lesson helps: fresh answers of student and teacher, compared in a wording that the teacher did not read.

Which wording is the best, and which lessons have a gain, is chosen by one half of the answers and tested on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from statistics import fmean

from selfdistill.live.admission import Compared
from selfdistill.live.measuring import Frame, Scores, Situation, judges
from selfdistill.types import Completion

HALVES = (slice(None, None, 2), slice(1, None, 2))  # of the answers to one question


@dataclass(frozen=True, slots=True)
class Round:
    """The answers of one reader in every situation, and how little each takes the lesson into account, by the wording
    in which that was read."""

    answers: list[list[Completion]]
    scores: Mapping[Frame, list[Scores]]

    @property
    def count(self) -> int:
        """Answers to each question."""
        return len(self.answers[0])

    def at(self, places: Sequence[int]) -> Round:
        """Those of some situations."""
        scores = {frame: [own[place] for place in places] for frame, own in self.scores.items()}
        return Round([self.answers[place] for place in places], scores)

    def __add__(self, more: Round) -> Round:
        scores = {frame: [*map(add, self.scores[frame], own)] for frame, own in more.scores.items()}
        return Round([*map(add, self.answers, more.answers)], scores)

    def judged(self, place: int, situation: Situation, frame: Frame) -> Scores:
        """The scores in a situation, by the wordings that judge this one."""
        rows = [self.scores[judge][place] for judge in judges(frame, situation.lesson)]
        return tuple(
            fmean(known) if (known := [x for x in own if x is not None]) else None for own in zip(*rows, strict=True)
        )


def compared(
    situations: Sequence[Situation], before: Round, after: Round, frame: Frame, part: slice = slice(None)
) -> list[Compared]:
    """The scores of two readers' complete answers, or a part of them, in the situations in which both have some."""
    found = []
    for place, situation in enumerate(situations):
        both = (read.judged(place, situation, frame)[part] for read in (before, after))
        old, new = (tuple(score for score in scores if score is not None) for scores in both)
        if old and new:
            found.append(Compared(situation.lesson.session, old, new))
    return found


def measured(situations: Sequence[Situation], before: Round, after: Round, frame: Frame) -> set[str]:
    """The lessons, by their keys, with complete answers of both readers in some situation: the others cannot be
    judged."""
    return {
        situation.lesson.key
        for place, situation in enumerate(situations)
        if all(any(x is not None for x in read.judged(place, situation, frame)) for read in (before, after))
    }


def with_gain(
    situations: Sequence[Situation], student: Round, teachers: Mapping[Frame, Round]
) -> tuple[Frame, list[int], list[Compared]]:
    """The wording under which the teacher's answers take the lessons most into account; the places of the situations
    whose lesson they follow more than the student's, over all its questions (all of them where none is); and scores
    that were not chosen by their own size: those of each half of the answers, of the wording and the lessons with a
    gain in the other half.

    A lesson without a gain asks for something new rather than for another answer, or the teacher cannot follow it.
    """
    by_lesson: dict[str, list[int]] = {}
    for place, situation in enumerate(situations):
        by_lesson.setdefault(situation.lesson.key, []).append(place)
    best = best_frame(situations, student, teachers)
    kept, scores = list[int](), [(list[float](), list[float]()) for _ in situations]
    for places in by_lesson.values():
        if mean_gain(situations, student, teachers[best], best, places=places) > 0:
            kept += places
        for chosen, tested in (HALVES, HALVES[::-1]):
            frame = best_frame(situations, student, teachers, chosen)
            helps = mean_gain(situations, student, teachers[frame], frame, chosen, places) > 0
            for place in places if helps else ():
                for read, found in zip(scores[place], (student, teachers[frame]), strict=True):
                    judged = found.judged(place, situations[place], frame)[tested]
                    read += [score for score in judged if score is not None]
    gain = [
        Compared(situation.lesson.session, tuple(before), tuple(after))
        for situation, (before, after) in zip(situations, scores, strict=True)
        if before and after
    ]
    if not kept:
        return best, list(range(len(situations))), compared(situations, student, teachers[best], best)
    return best, kept, gain


def best_of_halves(
    situations: Sequence[Situation], student: Round, teachers: Mapping[Frame, Round]
) -> dict[Frame, None]:
    """The wordings with the largest gain in either half: mostly one."""
    return {best_frame(situations, student, teachers, part): None for part in HALVES}


def best_frame(
    situations: Sequence[Situation], student: Round, teachers: Mapping[Frame, Round], part: slice = slice(None)
) -> Frame:
    """The wording with the largest gain for the new lessons, in a part of the answers."""
    return max(teachers, key=lambda frame: gain_of_new(situations, student, teachers[frame], frame, part))


def gain_of_new(
    situations: Sequence[Situation], student: Round, teacher: Round, frame: Frame, part: slice = slice(None)
) -> float:
    """The mean gain for the new lessons, by which a wording is chosen: an earlier lesson is followed already, or a new
    one takes it back."""
    new = [place for place, situation in enumerate(situations) if not situation.lesson.older]
    return mean_gain(situations, student, teacher, frame, part, new)


def mean_gain(
    situations: Sequence[Situation],
    student: Round,
    teacher: Round,
    frame: Frame,
    part: slice = slice(None),
    places: Sequence[int] | None = None,
) -> float:
    """By how many nats the teacher's answers take the lessons more into account, in a part of them: the mean of the
    situations at these places (all), and 0 where none can be compared."""
    if places is not None:
        situations, student, teacher = [situations[place] for place in places], student.at(places), teacher.at(places)
    pairs = compared(situations, student, teacher, frame, part)
    return fmean([fmean(p.before) - fmean(p.after) for p in pairs] or [0.0])
