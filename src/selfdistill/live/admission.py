"""Whether a trained candidate may be served: pure functions from measured numbers to a decision.

A score says how little an answer takes a lesson into account: log p(answer | question and a content user) − log
p(answer | question and lesson) in nats, read by the served weights. By Bayes' rule it is, but for a constant, log
p(content) − log p(lesson) after the answer. It needs no criterion of what a good answer is. A teacher is judged in
another wording of the lesson than it read.

    complete    most sampled answers ended by themselves, so that they can be measured
    gain        before training: the teacher's answers take the lesson more into account than the student's
    moved       KL(candidate‖served) on the lessons' questions is a movement
    kl_cap      and not too large a one
    follows     the candidate's answers, without the lesson, take it more into account than the student's
    sessions    those of no conversation less
    probe       the served answers to probe prompts without an exact answer have kept their likelihood
    tasks       probe prompts with exact answers are solved as before
    length, repeated, empty     the candidate's answers have the form of answers

`gain`, and whether the answers of `complete` can be measured at all, are known before anything is trained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from statistics import fmean, median, variance
from typing import Any, Literal

from selfdistill.live.learning import LiveLearning
from selfdistill.runs import Estimate
from selfdistill.runs.stats import mean, paired_difference, t_quantile

FEWEST = 6  # questions, from which on they are the units of an interval, and not the answers to them
LEAST_COMPLETE = 0.5  # of the answers
TASK_MARGIN = 0.1  # of a change of accuracy that a probe set should be able to see
MORE = 0.25  # of the answers, by which repetition or emptiness may not grow
LONGER = 3.0  # times: a median length outside of those of student and teacher by more is not theirs

TOO_FAR = frozenset({"kl_cap", "probe", "tasks"})  # a candidate that goes less far may meet them

Finding = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """One comparison: a value with its interval where it has one, what it was compared with, and the finding.
    `blocks`: the candidate is not served while it is undecided."""

    name: str
    value: float
    threshold: float
    finding: Finding
    reason: str
    low: float | None = None
    high: float | None = None
    blocks: bool = True


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision with all that led to it."""

    criteria: tuple[Criterion, ...]

    @property
    def obstacles(self) -> tuple[Criterion, ...]:
        """What speaks against the candidate."""
        return tuple(c for c in self.criteria if c.finding == "fail" or (c.finding == "undecided" and c.blocks))

    @property
    def admitted(self) -> bool:
        """Whether nothing does."""
        return not self.obstacles

    @property
    def too_far(self) -> bool:
        """Whether nothing speaks against the candidate but what comes of going too far."""
        return not self.admitted and all(criterion.name in TOO_FAR for criterion in self.obstacles)

    @property
    def undecided(self) -> bool:
        """Whether more lessons might change the decision."""
        return not self.admitted and all(criterion.finding == "undecided" for criterion in self.obstacles)

    @property
    def reason(self) -> str:
        """In words: what speaks against it, or what could not be decided."""
        found = self.obstacles or tuple(c for c in self.criteria if c.finding == "undecided")
        return "; ".join(f"{c.name}: {c.reason}" for c in found) or "every criterion is met"

    @property
    def numbers(self) -> dict[str, Any]:
        """Every criterion, for the journal."""
        rows = [{key: value for key, value in asdict(c).items() if key != "blocks"} for c in self.criteria]
        return {"undecided": self.undecided, "criteria": rows}


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of the answers to one question under one lesson: by the student before training, and by the teacher or the
    candidate."""

    session: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one reader: lengths in tokens of the complete ones, and how many were cut, empty or repeat
    themselves."""

    lengths: tuple[int, ...]
    truncated: int = 0
    empty: int = 0
    repeated: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.lengths) + self.truncated + self.empty

    @property
    def numbers(self) -> dict[str, int]:
        """How many there are of each form, for the journal."""
        return {"count": self.count, "truncated": self.truncated, "empty": self.empty, "repeated": self.repeated}

    def share(self, name: Literal["truncated", "empty", "repeated"]) -> float:
        """Of the answers that are so."""
        return float(getattr(self, name)) / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What is measured after training. `follows` are the lessons that were learned, `beside` the other new ones.
    `moved` are KLs per answer, in nats a token. `probe` are losses of likelihood of the served answers, in nats a
    token, one for each prompt; `tasks` differences of exact answers, 1 for one that was gained and −1 for one that was
    lost; `cut` are how many of the served weights and of the candidate were cut at the limit before they were given.
    `skipped` updates were not finite."""

    follows: Sequence[Compared]
    moved: Sequence[float]
    answers: Answers
    probe: Sequence[float] = ()
    tasks: Sequence[float] = ()
    skipped: int = 0
    beside: Sequence[Compared] = ()
    cut: tuple[int, int] = (0, 0)


def relief(pairs: Sequence[Compared]) -> Estimate | None:
    """By how many nats lessons are taken more into account, with its 95 % interval: Student's over the questions or, of
    fewer than six, over the answers within those that have several. None where neither has an interval."""
    pairs = [pair for pair in pairs if pair.before and pair.after]
    gains = [fmean(pair.before) - fmean(pair.after) for pair in pairs]
    if len(gains) >= FEWEST:
        return mean(gains)
    pairs = [pair for pair in pairs if min(len(pair.before), len(pair.after)) > 1]
    if not pairs:
        return None
    gain = fmean(fmean(pair.before) - fmean(pair.after) for pair in pairs)
    sides = [side for pair in pairs for side in (pair.before, pair.after)]
    error = sqrt(sum(variance(side) / len(side) for side in sides)) / len(pairs)
    half = t_quantile(sum(len(side) - 1 for side in sides)) * error
    return Estimate(gain, len(pairs), gain - half, gain + half)


def certain(pairs: Sequence[Compared]) -> bool:
    """Whether lessons are taken more into account for sure."""
    found = relief(pairs)
    return found is not None and found.low > 0


def undecided(pairs: Sequence[Compared]) -> bool:
    """Whether more answers might show it."""
    found = relief(pairs)
    return bool(pairs) and (found is None or found.low <= 0 < found.value)


def before_training(gain: Sequence[Compared], student: Answers, teacher: Answers) -> Admission:
    """Whether there is anything to distil."""
    return Admission((_complete(student, teacher), _gain(gain)))


def after_training(
    gain: Sequence[Compared], student: Answers, teacher: Answers, trained: Trained, options: LiveLearning
) -> Admission:
    """Whether the candidate may be served."""
    return Admission(
        (
            _complete(student, teacher, trained.answers),
            _gain(gain),
            *_movement(trained, options),
            _follows(trained.follows),
            *_sessions((*trained.follows, *trained.beside)),
            *_probe(trained, options),
            *_form(student, teacher, trained.answers),
        )
    )


def _shown(found: Estimate, digits: int = 2) -> str:
    return f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _complete(*answers: Answers) -> Criterion:
    cut, count = sum(each.truncated for each in answers), sum(each.count for each in answers)
    value = 1 - cut / count if count else 0.0
    reason = f"{cut} of {count} sampled answers were cut at the limit and cannot be measured"
    if value >= LEAST_COMPLETE:
        return Criterion("complete", value, LEAST_COMPLETE, "pass", reason)
    reason += ": raise max_new_tokens"
    return Criterion("complete", value, LEAST_COMPLETE, "undecided", reason)


def _gain(pairs: Sequence[Compared]) -> Criterion:
    found = relief(pairs)
    if found is None:
        reason = f"{len(pairs)} questions have answers that can be compared; it needs {FEWEST}, or two answers to each"
        return Criterion("gain", 0.0, 0.0, "undecided", reason)
    about = f"the teacher's answers take the lessons more into account by {_shown(found)} nats"
    if found.low > 0:
        return Criterion("gain", found.value, 0.0, "pass", about, found.low, found.high)
    if found.value > 0:
        reason = f"{about}: not certain on {found.n} questions, about {_needed(found)} would decide"
        return Criterion("gain", found.value, 0.0, "undecided", reason, found.low, found.high)
    reason = f"{about}: the teacher, which reads them, answers no better than the student"
    return Criterion("gain", found.value, 0.0, "fail", reason, found.low, found.high)


def _needed(found: Estimate, margin: float | None = None) -> int:
    """Observations with which the interval would be as narrow as the margin, or as the value is far from 0."""
    half, wanted = (found.high - found.low) / 2, abs(found.value) if margin is None else margin
    return min(1_000_000, max(found.n + 1, ceil(found.n * (half / max(wanted, 1e-9)) ** 2)))


def _movement(trained: Trained, options: LiveLearning) -> Iterator[Criterion]:
    value = fmean(trained.moved) if trained.moved else 0.0
    about = f"KL(candidate‖served) is {value:.4f} nats a token on the lessons' questions"
    if trained.skipped:
        about += f"; {trained.skipped} optimiser steps were not finite"
    moved: Finding = "pass" if value >= options.movement else "fail"
    yield Criterion("moved", value, options.movement, moved, about)
    yield Criterion("kl_cap", value, options.kl_cap, "pass" if value <= options.kl_cap else "fail", about)


def _follows(pairs: Sequence[Compared]) -> Criterion:
    found = relief(pairs)
    if found is None:
        return Criterion("follows", 0.0, 0.0, "undecided", "too few of the candidate's answers can be compared")
    about = f"the candidate's answers take the lessons more into account by {_shown(found)} nats"
    finding: Finding = "pass" if found.low > 0 else "undecided" if found.value > 0 else "fail"
    return Criterion("follows", found.value, 0.0, finding, about, found.low, found.high)


def _sessions(pairs: Sequence[Compared]) -> Iterator[Criterion]:
    """Each conversation by itself, where there are several: the one that fares worst."""
    by_session: defaultdict[str, list[Compared]] = defaultdict(list)
    for pair in pairs:
        by_session[pair.session].append(pair)
    found = [each for own in by_session.values() if (each := relief(own)) is not None]
    if len(by_session) < 2 or not found:
        return
    worst = min(found, key=lambda each: each.high)
    about = (
        f"of {len(by_session)} conversations, the lessons of one are taken more into account by {_shown(worst)} nats"
    )
    finding: Finding = "fail" if worst.high < 0 else "pass"
    yield Criterion("sessions", worst.value, 0.0, finding, about, worst.low, worst.high)


def _probe(trained: Trained, options: LiveLearning) -> Iterator[Criterion]:
    if len(trained.probe) > 1:
        found = mean(trained.probe)
        about = f"the served answers to {found.n} probe prompts lost {_shown(found, 3)} nats a token"
        finding: Finding = "fail" if found.value > options.harm and found.low > 0 else "pass"
        if finding == "pass" and found.high > options.harm:
            finding = "undecided"
            about += (
                f": too few prompts to exclude a harm of {options.harm:g}, about {_needed(found, options.harm)} would"
            )
        yield Criterion("probe", found.value, options.harm, finding, about, found.low, found.high, blocks=False)
    elif not trained.tasks and not any(trained.cut):
        reason = f"{len(trained.probe)} probe prompts cannot show harm; name a set of 20 or more with probe=FILE"
        yield Criterion("probe", 0.0, options.harm, "undecided", reason, blocks=False)
    served, cut = trained.cut
    if cut - served > MORE * (len(trained.tasks) + max(trained.cut)):
        about = f"{cut} exact answers to probe prompts were cut before they were given, {served} of the served weights"
        yield Criterion("tasks", float(served - cut), 0.0, "fail", about)
    elif trained.tasks:
        found = paired_difference(trained.tasks)
        about = f"exact answers to {found.n} probe prompts changed by {_shown(found)}"
        about += f", {cut} others were cut before ({served} of the served weights)" if any(trained.cut) else ""
        finding = "fail" if found.high < 0 else "pass"
        if finding == "pass" and found.low < -TASK_MARGIN:
            finding = "undecided"
            about += f": a loss of {TASK_MARGIN:g} is not excluded, about {_needed(found, TASK_MARGIN)} would"
        yield Criterion("tasks", found.value, 0.0, finding, about, found.low, found.high, blocks=False)


def _form(student: Answers, teacher: Answers, candidate: Answers) -> Iterator[Criterion]:
    known = [median(each.lengths) for each in (student, teacher) if each.lengths]
    if known and candidate.lengths:
        own, low, high = median(candidate.lengths), min(known) / LONGER, max(known) * LONGER
        about = f"a median of {own:g} tokens, between {low:.0f} and {high:.0f} expected"
        yield Criterion("length", own, high if own > high else low, "pass" if low <= own <= high else "fail", about)
    names: tuple[Literal["repeated", "empty", "truncated"], ...] = ("repeated", "empty", "truncated")
    for name in names:
        limit = max(student.share(name), teacher.share(name)) + MORE
        about = f"{candidate.share(name):.0%} of the candidate's answers, at most {limit:.0%} expected"
        yield Criterion(name, candidate.share(name), limit, "pass" if candidate.share(name) <= limit else "fail", about)
