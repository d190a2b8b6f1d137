"""Questions about a text: how a model is requested to write them, and what of its answer can be used."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from selfdistill.types import Message

QUESTIONS = (
    "{text}\n\nWrite {count} short questions about facts that this text states. Name in each question whom or what it "
    "is about, so that it can be understood without the text. Behind each question write its answer, in a few words "
    "copied from the text. One line for each:\nQuestion? | Answer"
)
WORDINGS = "{question}\n\nWrite this question in {count} other ways that have the same answer, one on each line."
MOST_WORDS = 8  # of an answer
_MARK = r"[ \t]*(?:[-*•]+[ \t]*|\(?\d+[.):][ \t]*)*"
_LABEL = r"(?:\**(?:Q(?:uestion)?|A(?:nswer)?)[ \t]*\d*\**[ \t]*[:.)]\**[ \t]*)?"
_PAIR = re.compile(
    rf"^{_MARK}{_LABEL}(?P<question>[^\n?|]{{8,300}}\?)[ \t*]*(?:\n+(?=[ \t]*\**A)|[|:–—-])?[ \t]*{_MARK}"
    rf"(?:[|][ \t]*)?{_LABEL}(?P<answer>[^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
_POINTS_AT_TEXT = re.compile(
    r"\b(?:the|this|that|above|given)\s+(?:text|passage|article|document|paragraph|story|sentence|author|table)\b"
    r"|\baccording to\b|\bmentioned\b|\bdescribed (?:above|here)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its short answer, and other wordings of it."""

    text: str
    answer: str
    wordings: tuple[str, ...] = field(default=())


def request(text: str, count: int) -> tuple[Message, ...]:
    """The prompt for questions about a text."""
    return (Message("user", QUESTIONS.format(text=text, count=count)),)


def request_wordings(question: str, count: int) -> tuple[Message, ...]:
    """The prompt for other wordings of a question."""
    return (Message("user", WORDINGS.format(question=question, count=count)),)


def written_questions(written: str) -> list[Question]:
    """The questions with answers that a model wrote, one or two lines each, however they are marked."""
    pairs = ((m["question"].strip(" *\"'"), m["answer"].strip().strip("|*\"'.` ")) for m in _PAIR.finditer(written))
    return [Question(question, answer) for question, answer in pairs if answer]


def written_wordings(written: str) -> list[str]:
    """The questions that a model wrote, one a line."""
    found = re.findall(rf"^{_MARK}{_LABEL}[\"']?([^\n?]{{8,300}}\?)", written, re.MULTILINE | re.IGNORECASE)
    return [text.strip(" *\"'") for text in found]


def why_not(question: Question, text: str, known: Collection[str]) -> str:
    """Why a question about a text cannot be used: it is known, refers to a text that nobody reads, holds its answer, or
    has one that is long or not words of the text. Empty where it can."""
    if folded(question.text) in known:
        return "twice"
    if _POINTS_AT_TEXT.search(question.text):
        return "refers to the text"
    if len(question.answer.split()) > MOST_WORDS or not holds(question.answer, text):
        return "answer not in the text"
    return "holds its answer" if holds(question.answer, question.text) else ""


def folded(text: str) -> str:
    """A text without case, punctuation and white space: equal for equal words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def holds(answer: str, text: str) -> bool:
    """Whether a text holds an answer as words of its own, upper and lower case alike."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))
