"""Questions that a model writes about a text: their forms, and which of them can be used."""

from __future__ import annotations

import pytest

from selfdistill.prompts.questions import Question, bare, folded, holds, why_not, written_questions

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
        ("Who founded the town?", "Mara Ellquist", "names nothing"),
        ("Did Mara Ellquist found Orvenholm?", "Mara Ellquist", "holds its answer"),
        ("What happens in Orvenholm?", TEXT, "answer not in the text"),
        ("what is the race, in Orvenholm?", "Lantern Race", "twice"),
    ],
)
def test_a_question_counts_that_stands_alone_and_has_words_of_the_text_as_its_answer(
    question: str, answer: str, why: str
) -> None:
    assert why_not(Question(question, answer), TEXT, {folded("What is the race in Orvenholm?")}) == why


def test_an_answer_is_held_as_words_of_its_own() -> None:
    assert holds("12", "It is 12.")
    assert not holds("12", "It is 120.")
    assert holds("a b", "A B!")
