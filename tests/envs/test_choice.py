"""Multiple choice: which letter an answer holds, by the corrected and by the published scorer."""

from __future__ import annotations

import pytest

from envs.row_parts import CUT_OFF, data_file, environment, reward, rewards, row, scored
from selfdistill.data.load import load_data
from selfdistill.data.tasks import training_tasks
from selfdistill.envs.choice import SYSTEM
from selfdistill.types import Message, StopReason, Task

FORM = "Put the letter of your choice alone, as a capital, between <answer> and </answer>."
CASES = [
    ("<reasoning>\nB, then.\n</reasoning>\n<answer>\nB\n</answer>", 1.0),
    ("<answer>B</answer>", 1.0),
    ("<answer>A</answer> no: <answer> B </answer>", 1.0),
    ("<answer>B</answer> no: <answer>A</answer>", 0.0),
    ("<reasoning>Is it <answer>A</answer>?</reasoning><answer>B</answer>", 1.0),
    ("<reasoning>It is <answer>B</answer></reasoning>", 1.0),
    ("<answer>\nB", 1.0),
    ("B", 1.0),
    (" B\n", 1.0),
    ("The answer is B.", 0.0),
    ("<answer>b</answer>", 0.0),
    ("<answer>B.</answer>", 0.0),
    ("<answer>B)</answer>", 0.0),
    ("<answer>(B)</answer>", 0.0),
    ("<answer>B: 56 pC</answer>", 0.0),
    ("<answer></answer>", 0.0),
    ("<ANSWER>B</ANSWER>", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize("scorer", ["corrected", "published"])
@pytest.mark.parametrize(("text", "expected"), CASES)
def test_the_letter_in_the_last_tag_is_compared_exactly(text: str, expected: float, scorer: str) -> None:
    assert reward(environment("choice", scorer=scorer), "B", text) == expected


def test_thinking_is_no_answer_to_the_corrected_scorer_alone() -> None:
    text = "<think>Surely <answer>B</answer></think>I do not know."
    unclosed = "<think>Surely <answer>B</answer>"
    assert [reward(environment("choice"), "B", t) for t in (text, unclosed)] == [0, 0]
    assert [reward(environment("choice", scorer="published"), "B", t) for t in (text, unclosed)] == [1, 1]
    assert reward(environment("choice"), "B", "<think>A? <answer>A</answer></think><answer>B</answer>") == 1


def test_feedback_says_what_is_wrong_and_never_the_letter() -> None:
    env = environment("choice")
    assert scored(env, "D", "<answer>B</answer>").feedback == "B is not the right answer."
    assert scored(env, "D", "I think so").feedback == f"No complete <answer> tag was found. {FORM}"
    assert scored(env, "D", "<answer>b</answer>").feedback == (
        f"The <answer> tag holds 'b', not one capital letter alone. {FORM}"
    )
    assert scored(env, "D", "<answer>D</answer>").feedback == ""
    cut = scored(env, "D", "<reasoning>Let us", StopReason.LENGTH)
    assert (cut.feedback, cut.details["failure"]) == (CUT_OFF, "truncated")
    for text, _ in CASES:
        assert "D" not in scored(env, "D", text).feedback.replace("D", "", text.count("D"))


def test_a_right_answer_ends_the_feedback_on_request() -> None:
    outcome = scored(environment("choice", reveal_answer=True), "D", "<answer>B</answer>")
    assert outcome.feedback == "B is not the right answer.\nA right answer:\n<answer>\nD\n</answer>"
    assert scored(environment("choice", reveal_answer=True), "D", "<answer>D</answer>").feedback == ""


def test_the_published_scorer_has_no_feedback_and_an_inverted_format_metric() -> None:
    for scorer, well_formed, unformed in (("corrected", False, True), ("published", True, False)):
        env = environment("choice", scorer=scorer)
        assert scored(env, "B", "So <answer>\nA\n</answer>").details["incorrect_format"] is well_formed
        assert scored(env, "B", "It is A").details["incorrect_format"] is unformed
    assert scored(environment("choice", scorer="published"), "B", "<answer>A</answer>").feedback == ""


def test_the_system_message_is_the_prompts_the_rows_or_the_papers() -> None:
    env = environment("choice")
    question = Message("user", "Question?")
    assert env.prepare(row("A")).messages == (Message("system", SYSTEM), question)
    assert env.prepare(row("A", system="Own.")).messages == (Message("system", "Own."), question)
    own = Task("t", (Message("system", "Mine."), question), {"answer": "A", "system": "Own."})
    assert env.prepare(own) == own
    assert environment("choice", system="").prepare(row("A", system=None)) == row("A", system=None)
    assert env.prepare(env.prepare(row("A"))) == env.prepare(row("A"))


def test_a_row_needs_a_capital_letter_as_its_answer() -> None:
    env = environment("choice")
    task = Task("t", (Message("user", "Question?"),), {"answr": "A", "prompt": "Question?"})
    assert "no column 'answer'" in env.unusable(task)
    assert "did you mean 'answr'?" in env.unusable(task)
    for answer in ("a", "AB", "", None, True, 3, ["A"]):
        assert "expected one capital letter" in env.unusable(row(answer)), answer
    assert env.unusable(row("B")) == ""


@pytest.mark.parametrize("name", ["chemistry_train", "chemistry_test", "physics_train", "physics_test"])
@pytest.mark.parametrize("scorer", ["corrected", "published"])
def test_every_row_of_sciknoweval_loads_and_its_answer_is_right(name: str, scorer: str) -> None:
    env = environment("choice", scorer=scorer)
    tasks = training_tasks(env, str(data_file(f"sciknoweval/{name}.jsonl")))
    assert (
        len(tasks) == {"chemistry_train": 1890, "chemistry_test": 210, "physics_train": 720, "physics_test": 80}[name]
    )
    assert {task.messages[0] for task in tasks} == {Message("system", SYSTEM)}
    assert all(task["system"] == SYSTEM for task in tasks)
    assert rewards(env, [(task, env.reference(task)) for task in tasks]) == [1] * len(tasks)
    others = [(task, f"<answer>{'ABCD'['ABCD'.index(task['answer']) - 1]}</answer>") for task in tasks]
    assert rewards(env, others) == [0] * len(tasks)


def test_tasks_of_load_data_are_prepared_once() -> None:
    rows = [{"prompt": "Question?", "answer": "A"}]
    env = environment("choice")
    once = training_tasks(env, load_data(rows))
    assert once[0].messages[0].role == "system"
    assert training_tasks(env, once) == once


def test_long_hostile_answers_take_little_time() -> None:
    for text in ("<answer>" * 200_000, "<answer> " * 200_000 + "</answer>", "<answer>" + " " * 10**6, "<" * 10**6):
        for scorer in ("corrected", "published"):
            outcome = scored(environment("choice", scorer=scorer), "B", text)
            assert outcome.reward == 0
            assert len(outcome.feedback) <= 2000
