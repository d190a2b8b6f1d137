"""Which exchanges teach something now, what the teacher reads of them, and the past questions to which they apply."""

from pathlib import Path

import pytest

from selfdistill.live.exchange import Feedback
from selfdistill.live.journal import Journal
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import (
    RIGHT,
    WRONG,
    LiveLesson,
    bounded,
    choose,
    context_of,
    past_questions,
    related,
    waiting,
)
from selfdistill.live.updates import History
from selfdistill.types import Context, Message, WholePrompt
from tests.live_parts import ask, assistant, served, system, user

OPTIONS = LiveLearning()


def everything(_: WholePrompt) -> bool:
    return True


def said(text: str, role: str = "user") -> tuple[Message, ...]:
    return (Message(role, text),)  # type: ignore[arg-type]


def replied(journal: Journal, session: str, question: str, reply: str) -> str:
    """A question, our answer and the user's reply; the receipt of the answer."""
    headers = {"x-session-id": session}
    first = ask(journal, user(question), answer=f"An answer to {question}", headers=headers)
    ask(journal, user(question), assistant(first.text), user(reply), answer=f"Then: {reply}", headers=headers)
    return first.receipt


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return served(tmp_path / "journal.db")


def test_a_reply_is_a_lesson_with_its_question_and_our_answer(journal: Journal) -> None:
    replied(journal, "one", "What is a list?", "Shorter, please.")
    (lesson,) = choose(journal, History(), OPTIONS, everything, seed=0).new
    assert (lesson.session, lesson.answer) == ("one", "An answer to What is a list?")
    assert lesson.question == WholePrompt((Message("user", "What is a list?"),))
    assert (lesson.context, lesson.words) == (Context("reply", reply="Shorter, please."), "Shorter, please.")
    assert lesson.next_turn


def test_lessons_that_were_learned_or_barred_do_not_wait_and_more_feedback_makes_another(journal: Journal) -> None:
    receipt = replied(journal, "one", "What is a list?", "Shorter, please.")
    ((_, key),) = waiting(journal, History())
    assert "Shorter" not in key
    assert not waiting(journal, History([key]))
    assert not waiting(journal, History((), {key}))
    journal.add_feedback(Feedback(receipt, text="And no code."))
    ((_, other),) = waiting(journal, History([key]))
    assert other != key


def test_side_calls_and_answers_of_undone_versions_give_no_lesson(journal: Journal) -> None:
    journal.versions.publish("sapling", "adapter", parent=1)
    replied(journal, "one", "What is a list?", "Shorter, please.")
    journal.versions.undo()
    found = choose(journal, History(), OPTIONS, everything, seed=0)
    assert not found.new
    assert found.left_out["of an undone version"]


def test_no_conversation_has_more_than_its_share_beside_others(journal: Journal) -> None:
    for number in range(9):
        replied(journal, "loud", f"Question {number}?", f"Always say {number}.")
    for number in range(3):
        replied(journal, f"quiet-{number}", f"What is {number}?", "Shorter.")
    found = choose(journal, History(), LiveLearning(lessons=6), everything, seed=0)
    sessions = [lesson.session for lesson in found.new]
    assert sessions.count("loud") == 3
    assert len(sessions) == 6
    assert found.left_out["more than one update takes"] == 6
    alone = [lesson.session for lesson in choose(journal, History(), LiveLearning(), everything, seed=0).new]
    assert alone.count("loud") == 4


def test_a_long_conversation_is_not_read_beyond_what_an_update_takes(journal: Journal) -> None:
    for number in range(30):
        replied(journal, "long", f"Question {number}?", f"Shorter {number}.")
    replied(journal, "other", "What is a list?", "Shorter.")
    read, refused = list[LiveLesson](), list[LiveLesson]()

    def reads(lesson: LiveLesson) -> bool:
        read.append(lesson)
        if lesson.words == "Shorter 28.":
            refused.append(lesson)
        return lesson not in refused

    found = choose(journal, History(), LiveLearning(lessons=4), everything, reads, seed=0)
    assert [lesson.words for lesson in found.new] == ["Shorter.", "Shorter 29.", "Shorter 27."]
    assert (len(read), len(refused)) == (6, 1)
    assert (found.left_out["more than one update takes"], found.left_out["a reply that is too long"]) == (27, 1)


def test_earlier_lessons_are_drawn_again_recent_ones_rather_and_undone_ones_never(journal: Journal) -> None:
    for number in range(12):
        replied(journal, f"s{number}", f"Question {number}?", f"Shorter {number}.")
    keys = [key for _, key in reversed(waiting(journal, History()))]
    history, options = History(keys[:10], {keys[10]}), LiveLearning(older=3)
    drawn = [choose(journal, history, options, everything, seed=seed) for seed in range(30)]
    assert all([lesson.key for lesson in found.new] == [keys[11]] for found in drawn)
    assert {lesson.older for found in drawn for lesson in found.older} == {True}
    older = [lesson.key for found in drawn for lesson in found.older]
    assert len(older) == 90
    assert set(older) <= set(keys[:10])
    assert sum(key in keys[5:10] for key in older) > sum(key in keys[:5] for key in older)
    assert drawn[0].older == choose(journal, history, options, everything, seed=0).older


@pytest.mark.parametrize(
    ("came", "context", "words"),
    [
        ([("user", said("Shorter."))], Context("reply", reply="Shorter."), "Shorter."),
        ([("text", said("No code."))], Context("reply", reply="No code."), "No code."),
        ([("tool", said("exit code 1", "tool"))], Context("observation", feedback="exit code 1"), "exit code 1"),
        ([("user", said("もっと短く、bitte."))], Context("reply", reply="もっと短く、bitte."), "もっと短く、bitte."),
        ([("rating", said("0.2"))], Context("disliked", feedback="The user rated it 0.2 of 1."), WRONG),
        ([("rating", said("1"))], Context("liked", demonstration="42"), RIGHT),
        ([("user", said("Next: 3 * 4?")), ("rating", said("1"))], Context("liked", demonstration="42"), RIGHT),
        ([("solution", said("43"))], Context("solution", demonstration="43"), f"{WRONG} 43"),
        (
            [("user", said("Wrong.")), ("solution", said("43"))],
            Context("solution", demonstration="43", reply="Wrong."),
            "Wrong.",
        ),
    ],
)
def test_what_the_teacher_reads_of_what_came_back(came: list, context: Context, words: str) -> None:  # type: ignore[type-arg]
    assert context_of(came, "<think>6 * 7</think>42") == (context, words)


def test_a_session_of_500_turns_is_read_from_its_newest_turns_on(journal: Journal) -> None:
    turns = [system("Be kind.")]
    for number in range(500):
        turns += [user(f"Turn {number}"), assistant(f"Reply {number}")]
    turns.append(user("What is a list?"))
    answer = "A list is a list of things that a program keeps in order."
    ask(journal, *turns, answer=answer)
    ask(journal, *turns, assistant(answer), user("Shorter."))
    (lesson,) = choose(journal, History(), OPTIONS, lambda whole: len(whole.messages) <= 8, seed=0).new
    assert lesson.question.messages[0] == Message("system", "Be kind.")
    assert [m.content for m in lesson.question.messages[1::2]] == [
        "Turn 497",
        "Turn 498",
        "Turn 499",
        "What is a list?",
    ]
    left_out = choose(journal, History(), OPTIONS, lambda whole: len(whole.messages) < 2, seed=0).left_out
    assert left_out["a question that is too long"] == 1


def test_a_conversation_is_cut_before_a_turn_of_the_user() -> None:
    whole = WholePrompt((Message("user", "a"), Message("assistant", "b"), Message("tool", "c"), Message("user", "d")))
    assert bounded(whole, lambda each: len(each.messages) < 4) == WholePrompt((Message("user", "d"),))
    assert bounded(whole, everything) == whole
    assert bounded(whole, lambda _: False) is None


def test_related_questions_share_words_and_are_other_questions(journal: Journal) -> None:
    for number, text in enumerate(["How do I sort a list?", "How do I sort a list?", "Why is the sky blue?"]):
        ask(journal, user(text), headers={"x-session-id": str(number)})
    past = past_questions(journal, everything)
    assert sorted(each.messages[-1].content for each in past) == ["How do I sort a list?", "Why is the sky blue?"]
    question = WholePrompt((Message("user", "How do I sort a tuple?"),))
    assert related(question, past, 1, seed="0") == [WholePrompt((Message("user", "How do I sort a list?"),))]
    assert related(past[0], past, 5, seed="0") == [past[1]]
