"""Questions about a text: how a model is requested to write them, and what of its answer can be used."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

from selfdistill.types import Message

QUESTIONS = (
    "{text}\n\nWrite {count} short questions about facts that this text states. Name in each question whom or what it "
    "is about, so that it can be understood without the text. Behind each question write its answer, in a few words "
    "copied from the text. One line for each:\nQuestion? | Answer"
)
ANSWER = "{text}\n\n{question} Answer with a few words of this text, and write nothing else."
WORDINGS = "{question}\n\nWrite this question in {count} other ways that have the same answer, one on each line."
MOST_WORDS = 8  # of an answer
_MARKS = re.compile(
    r"^(?:[\s\-*•#|:–—\"']|\(?\d{1,2}[.):](?=\s)|\b(?:q(?:uestion)?|a(?:nswer)?)\s*\d*\**\s*[:.)])+", re.IGNORECASE
)
_SHORTEST = 8  # characters before a question mark
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


def request_answer(text: str, question: str) -> tuple[Message, ...]:
    """The prompt for the short answer to a question about a text."""
    return (Message("user", ANSWER.format(text=text, question=question)),)


def written_questions(written: str) -> list[Question]:
    """The questions that a model wrote, one a line, however they are marked, with the answers behind or below them;
    empty where there is none."""
    found, lines = list[Question](), [line for line in map(bare, written.split("\n")) if line]
    for line, below in pairwise([*lines, ""]):
        text, mark, rest = line.partition("?")
        if mark and len(text) >= _SHORTEST:
            found.append(Question(f"{text}?", bare(rest) or ("" if "?" in below else below)))
    return found


def bare(line: str) -> str:
    """A line without numbers, bullets, labels and quotes around it, and without a full stop."""
    return _MARKS.sub("", line).strip().strip("|*\"'`").rstrip(". *")


def why_not(question: Question, text: str, known: Collection[str]) -> str:
    """Why a question about a text cannot be used: it is known, refers to a text that nobody reads, names nothing of it,
    holds its answer, or has one that is long or not words of the text. Empty where it can."""
    if folded(question.text) in known:
        return "twice"
    if _POINTS_AT_TEXT.search(question.text):
        return "refers to the text"
    names = _names(text)
    if names and names.isdisjoint(_names(question.text.partition(" ")[2])):
        return "names nothing"
    if not short_answer(question.answer, text):
        return "answer not in the text"
    return "holds its answer" if holds(question.answer, question.text) else ""


def short_answer(answer: str, text: str) -> bool:
    """Whether an answer is a few words of the text."""
    return bool(answer) and len(answer.split()) <= MOST_WORDS and holds(answer, text)


def _names(text: str) -> set[str]:
    """The words with a capital letter or a digit."""
    return {word for word in re.findall(r"\w+", text) if not word.islower()}


def folded(text: str) -> str:
    """A text without case, punctuation and white space: equal for equal words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def holds(answer: str, text: str) -> bool:
    """Whether a text holds an answer as words of its own, upper and lower case alike."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))
