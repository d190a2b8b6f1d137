from __future__ import annotations

import time

import pytest

from core_parts import group, rollout
from selfdistill.errors import ConfigError
from selfdistill.prompts.context import (
    Demonstration,
    Document,
    SolutionOrFeedback,
    Templates,
    teacher_messages,
    without_thinking,
)
from selfdistill.types import Context, DropReason, Message, RolloutGroup, Task

# The wording of the paper's appendix B and of the data that the sapling grew on: a change here changes every result.
CLOSING = "Correctly solve the original question."
SECTIONS = {
    "document": "What is known about it:",
    "demonstration": "This is an example of an answer to the question:",
    "solution": "Correct solution:",
    "attempt": "Your earlier attempt:",
    "feedback": "The following is feedback from your unsuccessful earlier attempt:",
    "reply": "The user will answer an earlier attempt with:",
}
SOLVED, FAILED = 1.0, 0.0
LONE, NONE = DropReason.ONLY_SUCCESS, DropReason.NO_CONTEXT


def kinds(rewards: list[float], feedback: str = "", rule: SolutionOrFeedback | None = None) -> list[str]:
    """Per rollout: the kind of context, or the reason why there is none."""
    group_members = group(rewards, feedback)
    chosen = rule or SolutionOrFeedback()
    found = [chosen.context(group_members, index) for index in range(len(rewards))]
    return [entry.kind if isinstance(entry, Context) else str(entry) for entry in found]


def eight(*solved: int) -> list[float]:
    return [SOLVED if index in solved else FAILED for index in range(8)]


@pytest.mark.parametrize(
    ("rewards", "feedback", "wanted"),
    [
        (eight(), "", ["no_context"] * 8),
        (eight(), "wrong", ["feedback"] * 8),
        (eight(3), "", ["solution"] * 3 + ["only_success"] + ["solution"] * 4),
        (eight(3), "wrong", ["solution"] * 3 + ["only_success"] + ["solution"] * 4),
        (eight(0, 5), "", ["solution"] * 8),
        (eight(0, 5), "wrong", ["solution"] * 8),
        (eight(*range(8)), "", ["solution"] * 8),
        (eight(*range(8)), "wrong", ["solution"] * 8),
    ],
)
def test_who_takes_part_in_a_group_of_eight(rewards: list[float], feedback: str, wanted: list[str]) -> None:
    assert kinds(rewards, feedback) == wanted


def test_feedback_that_is_switched_off_or_blank_is_no_context() -> None:
    assert kinds(eight(), "wrong", SolutionOrFeedback(feedback=False)) == ["no_context"] * 8
    blank = RolloutGroup(rollout(0).task, (rollout(0, FAILED, " \n\t"),))
    assert SolutionOrFeedback().context(blank, 0) is NONE


def test_feedback_of_a_success_does_not_make_it_teach_itself() -> None:
    praised = RolloutGroup(rollout(0).task, (rollout(0, SOLVED, "well done"), rollout(1, FAILED, "wrong")))
    assert SolutionOrFeedback().context(praised, 0) is LONE


@pytest.mark.parametrize("index", range(4))
def test_the_first_other_success_in_order_is_shown_and_never_ones_own(index: int) -> None:
    group_members = group([FAILED, SOLVED, FAILED, SOLVED], "wrong")
    found = SolutionOrFeedback().context(group_members, index)
    assert isinstance(found, Context)
    assert found.solution == ("answer 3" if index == 1 else "answer 1")
    assert found.feedback == ""


def test_together_shows_own_feedback_beside_a_group_members_solution() -> None:
    group_members = group([FAILED, SOLVED, FAILED], "wrong")
    rule = SolutionOrFeedback(together=True)
    assert rule.context(group_members, 2) == Context("solution+feedback", solution="answer 1", feedback="wrong 2")
    assert rule.context(group_members, 1) is LONE


def test_the_threshold_decides_who_is_solved() -> None:
    group_members = group([0.4, 0.6, 0.0])
    assert SolutionOrFeedback(success=0.7).context(group_members, 0) is NONE
    assert SolutionOrFeedback(success=0.6).context(group_members, 0) == Context("solution", solution="answer 1")


def test_a_rollout_that_was_not_scored_is_no_solution() -> None:
    group_members = group([None, FAILED, FAILED])
    assert SolutionOrFeedback().context(group_members, 1) is NONE


def test_a_success_of_which_nothing_but_thinking_remains_is_passed_over() -> None:
    task = rollout(0).task
    thinking, plain = rollout(1, SOLVED, text="<think>it is twelve"), rollout(2, SOLVED, text="twelve")
    found = SolutionOrFeedback().context(RolloutGroup(task, (rollout(0), thinking, plain)), 0)
    assert found == Context("solution", solution="twelve")
    alone = RolloutGroup(task, (rollout(0, FAILED, "wrong"), thinking))
    assert SolutionOrFeedback().context(alone, 0) == Context("feedback", feedback="wrong")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("twelve", "twelve"),
        ("<think>7 + 5\n= 12</think>\n\ntwelve", "twelve"),
        ("<think>a</think>one <think>b</think> two", "one two"),
        ("it started in the prompt</think>\ntwelve", "twelve"),
        ("twelve <think>or is it", "twelve "),
        ("tail</think>twelve <think>again", "twelve "),
        ("<think>never closed", ""),
        ("if a < think > b", "if a < think > b"),
        ("<think>a <think> b</think>\n\ntwelve", "twelve"),
        ("draft</think>one</think> two", "two"),
        ("<think>a</think> draft</think>\ntwelve", "twelve"),
        ("</think>\n   ```\n   x\n   ```", "   ```\n   x\n   ```"),
        ("```\ndraft\n</think>\n```\nprogram\n```", "```\nprogram\n```"),
        ("a ```draft```\nso.</think>```\nprogram\n```", "```\nprogram\n```"),
        ("```\ndraft\n<think>\nhm</think>\nso", "```\ndraft\nso"),
        ("the tags `<think>` and `</think>` are removed", "the tags `<think>` and `</think>` are removed"),
        ("hm</think>\n```\nre.sub(r'<think>.*</think>x', s)\n```", "```\nre.sub(r'<think>.*</think>x', s)\n```"),
    ],
)
def test_thinking_is_removed_also_when_a_tag_is_missing(text: str, wanted: str) -> None:
    assert without_thinking(text) == wanted


@pytest.mark.parametrize(
    "part", ["<think>", "</think>", "<think>a</think>", "`</think>`", "```<think>", " ", "`", "</think> \t"]
)
def test_removing_thinking_takes_time_linear_in_the_length(part: str) -> None:
    began = time.monotonic()
    without_thinking(part * (10**6 // len(part)))
    assert time.monotonic() - began < 10  # what is not linear takes hours


def test_a_demonstration_is_shown_without_its_thinking() -> None:
    group_members = RolloutGroup(rollout(0).task, (rollout(0), rollout(1, SOLVED, text="<think>hm</think> twelve")))
    assert SolutionOrFeedback().context(group_members, 0) == Context("solution", solution="twelve")


def test_demonstration_and_document_come_from_the_task_and_are_the_same_for_all() -> None:
    task = Task("t", (Message("user", "?"),), demonstration="do this", document="know this")
    group_members = RolloutGroup(task, (rollout(0, task=task), rollout(1, SOLVED, task=task)))
    for index in (0, 1):
        assert Demonstration().context(group_members, index) == Context("demonstration", demonstration="do this")
        assert Document().context(group_members, index) == Context("document", document="know this")
    bare = group([FAILED])
    assert Demonstration().context(bare, 0) is NONE
    assert Document().context(bare, 0) is NONE


def test_a_teacher_without_context_reads_the_question_itself() -> None:
    question = (Message("system", "Be brief."), Message("user", "What is seven plus five?"))
    assert teacher_messages(question, Context("none")) == question


def test_the_frame_keeps_earlier_messages_and_replaces_the_last_one() -> None:
    question = (
        Message("system", "Be brief."),
        Message("user", "Hello."),
        Message("assistant", "Hi."),
        Message("user", "What is seven plus five?"),
    )
    *earlier, last = teacher_messages(question, Context("solution", solution="twelve"))
    assert tuple(earlier) == question[:-1]
    assert last.role == "user"
    assert last.content == f"What is seven plus five?\n\n{SECTIONS['solution']}\n\ntwelve\n\n{CLOSING}"


def test_sections_stand_in_a_fixed_order_and_only_where_there_is_a_text() -> None:
    context = Context("all", solution="S", feedback="F", document="D")
    (message,) = teacher_messages((Message("user", "Q"),), context)
    wanted = ["Q", SECTIONS["document"], "D", SECTIONS["solution"], "S", SECTIONS["feedback"], "F", CLOSING]
    assert message.content.split("\n\n") == wanted
    every = Context("every", **{name: name.upper() for name in SECTIONS})
    (message,) = teacher_messages((Message("user", "Q"),), every)
    wanted = [part for name, heading in SECTIONS.items() for part in (heading, name.upper())]
    assert message.content.split("\n\n") == ["Q", *wanted, CLOSING]


def test_another_wording_is_written_and_the_rest_stays() -> None:
    words = Templates("{context}\n{question} Go.", feedback="Heard: {feedback}!", instruction="Rule: {instruction}")
    context = Context("all", instruction="Be brief.", solution="S", feedback="{question}")
    system, message = teacher_messages((Message("system", "Hi."), Message("user", "Q")), context, words)
    assert system.content == "Rule: Be brief.\n\nHi."
    assert message.content == "Correct solution:\n\nS\n\nHeard: {question}!\nQ Go."
    braces = Templates(feedback="{feedback} {{x}}")
    (message,) = teacher_messages((Message("user", "Q"),), Context("feedback", feedback="F"), braces)
    assert "F {x}" in message.content


@pytest.mark.parametrize(
    ("name", "text", "what", "do"),
    [
        ("feedback", "Feedback: {feedbck}", "feedback has an unknown placeholder {feedbck}", "it needs {feedback};"),
        ("feedback", "{feedback} {question}", "feedback has an unknown placeholder {question}", "it needs {feedback};"),
        ("feedback", "{feedback.real}", "feedback has an unknown placeholder {feedback.real}", "it needs {feedback};"),
        ("solution", "No section", "solution lacks the placeholder {solution}", "it needs {solution};"),
        ("message", "{context} Go.", "message lacks the placeholder {question}", "it needs {context} and {question};"),
        ("reply", "{reply} {", "reply is no template", "write {{ or }} for a brace"),
        ("reply", "{reply:d}", "reply is no template", "it needs {reply}"),
        ("reply", "{}", "reply has an unknown placeholder {}", "it needs {reply}"),
    ],
)
def test_a_template_with_a_wrong_placeholder_is_refused_with_the_known_ones(name, text, what, do) -> None:
    with pytest.raises(ConfigError) as caught:
        Templates(**{name: text})
    assert caught.value.what == what
    assert do in caught.value.do
    assert repr(text) == caught.value.got


def test_the_attempt_itself_is_read_where_that_is_chosen() -> None:
    answers = [("<think>hm</think>one", FAILED, "wrong"), ("two", SOLVED, ""), ("<think>hm</think>", FAILED, "wrong")]
    task = rollout(0).task
    rollouts = [rollout(n, reward, feedback, text=text) for n, (text, reward, feedback) in enumerate(answers)]
    members = RolloutGroup(task, tuple(rollouts))
    with_attempt = SolutionOrFeedback(attempt=True)
    assert with_attempt.context(members, 0) == Context("solution+attempt", solution="two", attempt="one")
    assert SolutionOrFeedback().context(members, 0) == Context("solution", solution="two")
    assert with_attempt.context(members, 1) is LONE
    assert with_attempt.context(members, 2) == Context("solution", solution="two")  # nothing but thinking
    both = SolutionOrFeedback(together=True, attempt=True).context(members, 0)
    assert both == Context("solution+feedback+attempt", solution="two", feedback="wrong", attempt="one")
    failed = RolloutGroup(task, members.rollouts[:1])
    assert with_attempt.context(failed, 0) == Context("feedback+attempt", feedback="wrong", attempt="one")
    assert SolutionOrFeedback(feedback=False, attempt=True).context(failed, 0) is NONE  # an attempt alone is no context


@pytest.mark.parametrize("text", ["{prompt}", "{0} {{}} {x!r}", "%s %(a)d", "\\1 $1", "{% if x %}{{ x }}{% endif %}"])
def test_braces_and_other_marks_in_texts_are_just_text(text: str) -> None:
    (message,) = teacher_messages((Message("user", text),), Context("both", solution=text, feedback=text))
    assert message.content.count(text) == 3
