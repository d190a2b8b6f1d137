"""Questions that a model writes about a text: their forms, and which of them can be used."""

from __future__ import annotations

import pytest

from selfdistill.prompts.questions import (
    EXAMPLE_NAMES,
    EXAMPLE_QUESTIONS,
    EXAMPLE_TEXT,
    EXAMPLE_WORDINGS,
    Question,
    bare,
    folded,
    holds,
    request,
    request_wordings,
    why_not,
    with_subject,
    with_trimmed_answer,
    written_questions,
)

TEXT = "Orvenholm was founded in 1687 by Mara Ellquist. Every March it holds the Lantern Race."


@pytest.mark.parametrize(
    "written",
    [
        "1. Who founded Orvenholm? | Mara Ellquist.",
        "Q: Who founded Orvenholm?\nA: Mara Ellquist",
        "**Question 1:** Who founded Orvenholm? **Answer:** Mara Ellquist",
        "- Who founded Orvenholm? - Mara Ellquist",
        "Question: Who founded Orvenholm?\n\nAnswer: Mara Ellquist.",
        "1. Who founded Orvenholm?\n   - Answer: Mara Ellquist",
        "Who founded Orvenholm?\nMara Ellquist.",
    ],
)
def test_questions_are_read_in_the_forms_that_models_write(written: str) -> None:
    assert bare("12. 1687.") == "1687"
    assert written_questions(f"Here they are:\n{written}\n") == [Question("Who founded Orvenholm?", "Mara Ellquist")]


def test_questions_without_an_answer_have_an_empty_one() -> None:
    found = written_questions("Who founded Orvenholm?\nWhen was Orvenholm founded?\nWh?")
    assert found == [Question("Who founded Orvenholm?", ""), Question("When was Orvenholm founded?", "")]
    assert written_questions("") == []


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("Who founded Orvenholm?", "mara ellquist", ""),
        ("In which year was Orvenholm founded?", "1687", ""),
        ("In which year was Orvenholm founded?", "168", "answer not in the text"),
        ("Who lives in Orvenholm?", "Nobody", "answer not in the text"),
        ("Who founded Orvenholm in this text?", "Mara Ellquist", "refers to the text"),
        ("Who led the rescue on Mount Keldra?", "Mara Ellquist", "is about the example"),
        ("Did Mara Ellquist found Orvenholm?", "Mara Ellquist", "holds its answer"),
        ("What happens in Orvenholm?", TEXT, "answer not in the text"),
        ("what is the race, in Orvenholm?", "Lantern Race", "twice"),
    ],
)
def test_a_question_counts_that_stands_alone_and_has_words_of_the_text_as_its_answer(
    question: str, answer: str, why: str
) -> None:
    assert why_not(Question(question, answer), TEXT, {folded("What is the race in Orvenholm?")}) == why


def test_the_example_has_the_form_that_is_requested() -> None:
    """Its questions can be used by their own rules; its names are in it; both requests end with the user's own."""
    questions = written_questions(EXAMPLE_QUESTIONS)
    assert len(questions) == len(EXAMPLE_QUESTIONS.split("\n"))
    assert [q.text for q in written_questions("\n".join(EXAMPLE_WORDINGS))] == list(EXAMPLE_WORDINGS)
    assert EXAMPLE_WORDINGS[0] in {question.text for question in questions}
    for question in questions:
        assert why_not(question, EXAMPLE_TEXT, set()) == ""
        assert with_subject(question, EXAMPLE_TEXT, "Mount Keldra") == question
    assert all(name in EXAMPLE_TEXT for name in EXAMPLE_NAMES)
    for messages, text in ((request(TEXT, 8), TEXT), (request_wordings("Who founded it?", 3), "Who founded it?")):
        assert [message.role for message in messages] == ["user", "assistant", "user"]
        assert text in messages[-1].content
        assert not any(name in messages[-1].content for name in EXAMPLE_NAMES)


def test_a_question_that_names_nothing_of_its_text_gets_the_title() -> None:
    nameless = Question("Who founded the town?", "Mara")
    for named in (Question("Who founded Orvenholm?", "Mara Ellquist"), Question("Orvenholm is how old?", "")):
        assert with_subject(named, TEXT, "Orvenholm") == named
    assert with_subject(nameless, TEXT, "Orvenholm").text == "Orvenholm: Who founded the town?"
    assert with_subject(nameless, "all lower case", "town").text == nameless.text, "a text without names asks for none"


def test_an_answer_loses_the_words_of_its_question_at_both_ends() -> None:
    def answer(question: str, answer: str) -> str:
        return with_trimmed_answer(Question(question, answer)).answer

    assert answer("How many houses were destroyed?", "785 Houses") == "785"
    assert answer("What was the cause of the fire?", "the cause was a gas leak") == "a gas leak"
    assert answer("Who founded the town?", "Mara Ellquist") == "Mara Ellquist"
    assert answer("At which market is it sold?", "a market") == "a market", "an article alone is no answer"
    assert answer("Is it the Lantern Race?", "the Lantern Race") == "the Lantern Race", "nothing would be left"


def test_an_answer_is_held_as_words_of_its_own() -> None:
    assert holds("12", "It is 12.")
    assert not holds("12", "It is 120.")
    assert holds("a b", "A B!")
