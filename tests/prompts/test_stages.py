from __future__ import annotations

from dataclasses import replace

from core_parts import QUESTION, group, rollout
from selfdistill.prompts.context import Demonstration, Instruction, teacher_messages
from selfdistill.prompts.stages import (
    REFLECT,
    Attempts,
    DemonstrationCompletions,
    FixedCompletion,
    LoggedCompletions,
    PrivilegedRollouts,
    ReflectedAttempts,
    Reflections,
    SampleRequest,
    SecondAttempts,
)
from selfdistill.types import Context, Message, Outcome, RolloutGroup, Task

EMPTY = RolloutGroup(QUESTION, ())
TRIED = group([1.0, 0.0, None, 0.0], "wrong")  # feedback "wrong 1" and "wrong 3"


def knowing(**texts: str) -> RolloutGroup:
    return RolloutGroup(replace(QUESTION, **texts), ())


def after(number: int) -> tuple[Message, ...]:
    """The question, the attempt of that number and what was said of it."""
    return (*QUESTION.messages, Message("assistant", f"answer {number}"), Message("user", f"wrong {number}"))


def test_attempts_request_as_many_samples_as_the_run_has_rollouts() -> None:
    assert Attempts().requests(EMPTY, 3) == [SampleRequest(QUESTION.messages)] * 3


def test_a_demonstration_is_there_already_and_counts_as_solved() -> None:
    assert DemonstrationCompletions().requests(knowing(demonstration="twelve"), 8) == [
        FixedCompletion("twelve", Outcome(1.0))
    ]
    assert DemonstrationCompletions().requests(knowing(demonstration=" \n"), 8) == []


def test_a_logged_answer_comes_with_what_the_user_said_to_it() -> None:
    logged = knowing(logged_answer="eleven", user_reply="No, more.")
    assert LoggedCompletions().requests(logged, 8) == [FixedCompletion("eleven", Outcome(0.0, reply="No, more."))]
    assert LoggedCompletions().requests(knowing(user_reply="No, more."), 8) == []


def test_privileged_rollouts_read_the_rules_context_and_are_none_without_it() -> None:
    told = SampleRequest(QUESTION.messages, context=Context("demonstration", demonstration="twelve"))
    assert PrivilegedRollouts(Demonstration()).requests(knowing(demonstration="twelve"), 2) == [told] * 2
    assert PrivilegedRollouts(Demonstration()).requests(EMPTY, 2) == []
    [ask] = PrivilegedRollouts(Instruction("Be brief.")).requests(EMPTY, 1)
    assert ask == SampleRequest(QUESTION.messages, context=Context("instruction", instruction="Be brief."))


def test_failures_with_feedback_try_again_in_one_conversation() -> None:
    assert SecondAttempts().requests(TRIED, 8) == [SampleRequest(after(1), 1), SampleRequest(after(3), 3)]


def test_failures_without_feedback_and_attempts_of_other_stages_are_left_alone() -> None:
    mute = RolloutGroup(QUESTION, (rollout(0, 0.0, " \n"), replace(rollout(1, 0.0, "wrong"), stage="second_attempt")))
    assert SecondAttempts().requests(mute, 8) == []
    assert Reflections().requests(mute, 8) == []


def test_the_threshold_decides_who_failed() -> None:
    partly = RolloutGroup(QUESTION, (rollout(0, 0.6, "almost"),))
    assert SecondAttempts().requests(partly, 8) == []
    assert [ask.of for ask in SecondAttempts(success=0.7).requests(partly, 8)] == [0]
    assert [ask.of for ask in Reflections(success=0.7).requests(partly, 8)] == [0]


def test_a_reflection_follows_the_feedback_and_is_not_scored() -> None:
    *before, last = after(1)
    wanted = SampleRequest((*before, Message("user", f"wrong 1\n\n{REFLECT}")), 1, scored=False)
    assert Reflections().requests(TRIED, 8)[0] == wanted
    assert last.content in wanted.messages[-1].content
    assert [ask.of for ask in Reflections().requests(TRIED, 8)] == [1, 3]


def test_a_reflection_is_the_system_message_of_the_next_attempt_about_its_own_place() -> None:
    noted = [
        replace(rollout(4 + number, text=text), stage=Reflections.name, outcome=None, of=of)
        for number, (text, of) in enumerate((("Add, then say.", 1), ("<think>hm</think> Count.", 3), ("<think>hm", 3)))
    ]
    found = ReflectedAttempts().requests(RolloutGroup(QUESTION, (*TRIED.rollouts, *noted)), 8)
    assert found == [
        SampleRequest(QUESTION.messages, 4, context=Context("reflection", instruction="Add, then say.")),
        SampleRequest(QUESTION.messages, 5, context=Context("reflection", instruction="Count.")),
    ]


def test_a_reflection_joins_a_system_message_that_is_there() -> None:
    task = Task("t", (Message("system", "Be brief."), Message("user", "?")))
    noted = replace(rollout(0, text="Count.", task=task), stage=Reflections.name, outcome=None)
    [ask] = ReflectedAttempts().requests(RolloutGroup(task, (noted,)), 8)
    written = teacher_messages(ask.messages, ask.context)
    assert written == (Message("system", "Count.\n\nBe brief."), Message("user", "?"))
