"""Questions about a text: how a model is requested to write them, and what of its answer can be used."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise

from selfdistill.types import Message

QUESTIONS = (
    "{text}\n\nWrite {count} short questions about facts that this text states. Name in each question whom or what it "
    "is about, so that it can be understood without the text. Behind each question write its answer, in a few words "
    "copied from the text. One line for each:\nQuestion? | Answer"
)
EXAMPLE_TEXT = (
    "# Mount Keldra\n\nMount Keldra is a mountain of 2,140 metres in the north of Vesk. Ines Tarrow was the first who "
    "climbed it, in 1871, with two guides. Since 1950 a cable car has carried visitors to the hut on its top, where a "
    "bell is rung at noon."
)
EXAMPLE_QUESTIONS = (
    "How high is Mount Keldra? | 2,140 metres\nIn which country is Mount Keldra? | Vesk\n"
    "Who was the first person to climb Mount Keldra? | Ines Tarrow\n"
    "In which year was Mount Keldra first climbed? | 1871\n"
    "How many guides did Ines Tarrow have on Mount Keldra? | two\n"
    "What has carried visitors to the top of Mount Keldra since 1950? | a cable car\n"
    "When is the bell on Mount Keldra rung? | at noon"
)
EXAMPLE_WORDINGS = (
    "In which year was Mount Keldra first climbed?",
    "When did somebody climb Mount Keldra for the first time?",
    "What is the year of the first ascent of Mount Keldra?",
    "Mount Keldra was climbed for the first time in which year?",
)
EXAMPLE_NAMES = ("Keldra", "Vesk", "Tarrow")
"""An example: an invented text, questions about it, and wordings of one of them. A model of 0.5 B parameters that reads
it writes questions about most facts of a text, without it about less than half of them."""
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
    """The prompt for questions about a text, behind an example."""
    example = QUESTIONS.format(text=EXAMPLE_TEXT, count=len(EXAMPLE_QUESTIONS.split("\n")))
    own = QUESTIONS.format(text=text, count=count)
    return (Message("user", example), Message("assistant", EXAMPLE_QUESTIONS), Message("user", own))


def request_wordings(question: str, count: int) -> tuple[Message, ...]:
    """The prompt for other wordings of a question, behind an example."""
    example = WORDINGS.format(question=EXAMPLE_WORDINGS[0], count=len(EXAMPLE_WORDINGS) - 1)
    own = WORDINGS.format(question=question, count=count)
    return (Message("user", example), Message("assistant", "\n".join(EXAMPLE_WORDINGS[1:])), Message("user", own))


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


def with_subject(question: Question, text: str, title: str) -> Question:
    """The question; where it names nothing of its text, behind the title of the text."""
    names, own = _names(text), _names(question.text.partition(" ")[2])  # its first word has a capital anyway
    if not names or not names.isdisjoint(own) or holds(title, question.text):
        return question
    return replace(question, text=f"{title}: {question.text}")


def with_trimmed_answer(question: Question) -> Question:
    """The question; its answer without the words at both ends that the question has: 785, of 785 houses, to "How many
    houses were destroyed?". What is left has a number or a word of three letters; else the answer stays as it is."""
    words, own = question.answer.split(), set(folded(question.text).split())
    left = [place for place, word in enumerate(words) if folded(word) not in own]
    answer = " ".join(words[left[0] : left[-1] + 1]) if left else ""
    return replace(question, answer=answer) if re.search(r"\d|\w{3}", answer) else question


def why_not(question: Question, text: str, known: Collection[str]) -> str:
    """Why a question about a text cannot be used: it is known, refers to a text that nobody reads or to the example,
    holds its answer, or has one that is long or not words of the text. Empty where it can."""
    if folded(question.text) in known:
        return "twice"
    if _POINTS_AT_TEXT.search(question.text):
        return "refers to the text"
    if any(name in question.text and name not in text for name in EXAMPLE_NAMES):
        return "is about the example"
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
