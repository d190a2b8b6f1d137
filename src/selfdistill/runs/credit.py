"""The credit of one answer: probabilities of each token under student and teacher, and a test of their meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import log, nan

from selfdistill.types import Context, Message

HALVED = log(2)  # the smallest fall of a log-probability that counts


def sections_of(context: Context) -> dict[str, str]:
    """The texts of a context, by section."""
    texts = {item.name: getattr(context, item.name) for item in fields(context) if item.name != "kind"}
    return {name: text for name, text in texts.items() if text}


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another token at this place, and its probabilities."""

    text: str
    student: float
    teacher: float


@dataclass(frozen=True, slots=True)
class TokenCredit:
    """One token of the answer: its log-probabilities in nats, and the likeliest alternatives, the teacher's first.
    `text` is empty for a part of a character; the last part has it. `own` is the log-ratio minus that under control
    contexts; None: not measured. `entropy` is the student's here, in nats."""

    text: str
    student: float
    teacher: float
    alternatives: tuple[Alternative, ...]
    own: float | None = None
    recorded: float | None = None
    entropy: float = nan

    @property
    def log_ratio(self) -> float:
        """u = log q − log p, below 0 where the teacher gives the token less probability."""
        return self.teacher - self.student

    @property
    def halved(self) -> bool:
        """Whether the probability at least halved, or doubled."""
        return abs(self.log_ratio) >= HALVED


@dataclass(frozen=True, slots=True)
class ErrorVisibility:
    """Whether the model uses the content of the context, by a permutation test among contexts.

    With a corrected answer, `value` is the change in nats that the context makes to the log-odds of the corrected
    answer against the given one; else the largest fall of a token's log-probability beyond the controls. `control` are
    the values under control contexts: a model that ignores the content ranks all of them alike. `before` is the
    log-odds without any context.
    """

    corrected: bool
    value: float
    control: tuple[float, ...]
    before: float = 0.0

    @property
    def seen(self) -> bool:
        """Above the smallest value that counts, and above every control."""
        return self.value > (0.0 if self.corrected else HALVED) and self.value > max(self.control)

    @property
    def rule(self) -> str:
        """The criterion, as a sentence."""
        count = len(self.control)
        chance = f"than under each of {count} unrelated contexts (by chance: 1 in {count + 1})"
        if self.corrected:
            return f"Rule: the context must raise the odds of the corrected answer against this one, and more {chance}."
        return (
            "Rule: beyond the effect of unrelated contexts, the probability of some token must at least halve, and "
            f"fall deeper {chance}."
        )


@dataclass(frozen=True, slots=True)
class TurnBegin:
    """Where a turn of a conversation begins: the `place` of its first sampled token, the messages that were read before
    it, and the `context` of this turn alone. `fresh`: the template wrote the history anew, in a segment of its own."""

    place: int
    read: tuple[Message, ...]
    context: Context | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class AnswerCredit:
    """The credit of every token of one answer, or of all sampled tokens of a conversation. `cut`: a context was
    shortened to fit. `turns`: of a conversation; what was read between them has no credit."""

    model: str
    question: tuple[Message, ...]
    context: Context
    tokens: tuple[TokenCredit, ...]
    cut: bool
    error_visibility: ErrorVisibility | None
    advantage: float | None = None
    turns: tuple[TurnBegin, ...] = ()

    @property
    def sections(self) -> dict[str, str]:
        """The texts of the context, by section."""
        return sections_of(self.context)

    @property
    def parts(self) -> Iterator[tuple[TurnBegin | None, range]]:
        """The turns, each with the places of its tokens; an answer is one part."""
        ends = [*(turn.place for turn in self.turns[1:]), len(self.tokens)]
        yield from zip(self.turns, map(range, (turn.place for turn in self.turns), ends), strict=True)
        if not self.turns:
            yield None, range(len(self.tokens))

    @property
    def total(self) -> float:
        """log q − log p of the whole answer."""
        return sum(token.log_ratio for token in self.tokens)

    @property
    def blamed(self) -> tuple[TokenCredit, ...]:
        """Tokens that lost at least half of their probability, lowest log-ratio first."""
        return tuple(sorted((t for t in self.tokens if t.halved and t.log_ratio < 0), key=lambda t: t.log_ratio))

    @property
    def conclusion(self) -> str:
        """The outcome of the test, as a sentence."""
        test = self.error_visibility
        if test is None:
            return "Whether the model sees what the context is about was not tested."
        value = f"{test.value:+.2f} nats for the corrected answer"
        if not test.corrected:
            value = f"deepest blame of its own {test.value:.2f} nats"
        most = format(max(test.control), "+.2f" if test.corrected else ".2f")
        found = f"{value}; unrelated contexts reach {most}"
        if test.seen:
            place = f"; the blame falls on {self.blamed[0].text!r}" if self.blamed else ""
            return f"The model sees what the context is about{place} ({found})."
        if test.corrected and test.before > HALVED:
            preference = f"Without the context this model prefers the corrected answer, by {test.before:.2f} nats"
            return f"{preference}: there is little left to see ({found})."
        if test.corrected:
            return f"This model is too weak to see the mistake: its colours mean little ({found})."
        return (
            "Either this model is too weak to see a mistake, or there is none, or any context of this kind blames it "
            f"as much ({found})." + ("" if self.turns else " A corrected answer (--correct) would decide.")
        )
