"""Requests of real clients find the conversation they belong to, and the answer they reply to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from live_parts import answered, ask, assistant, request, served, system, user
from selfdistill.live.conversations import SESSION_HEADERS, locate, reply_hash, session_id, side_rule
from selfdistill.live.exchange import FollowUp
from selfdistill.live.journal import Journal
from selfdistill.protocol.chat import reply_to
from selfdistill.types import Completion, Message

LONG = "An answer that is long enough to be known without the words before it."


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with served(tmp_path / "journal.db") as opened:
        yield opened


@pytest.mark.parametrize("header", SESSION_HEADERS)
def test_headers_name_a_conversation(header: str):
    assert session_id({}, {header: " s-1 "}) == ("s-1", header)
    assert session_id({}, {header: "unknown"}) == session_id({}, {header: "{{CHAT_ID}}"}) == ("", "")


def test_a_header_comes_before_the_body_and_before_our_answers(journal: Journal):
    assert session_id({"metadata": {"chat_id": "b"}}, {"x-session-id": "h"}) == ("h", "x-session-id")
    assert session_id({"metadata": {"chat_id": "b"}}, {}) == ("b", "metadata.chat_id")
    assert session_id({"metadata": "b"}, {}) == ("", "")
    first = ask(journal, user("Hello"), answer=LONG, headers={"X-Session-Id": "s"})
    place = locate(journal, request(user("Hello"), assistant(LONG), user("No.")), {"X-Session-Id": "t"})
    assert (place.conversation, place.found_by) == ("t", "x-session-id")
    assert place.follow_up == FollowUp(first.receipt, (Message("user", "No."),))


def test_answers_are_known_without_white_space_and_thinking(journal: Journal):
    first = ask(journal, user("Hello"), answer="<think>\nHm.\n</think>\n\nWell,\n  hello there. ")
    for sent in ("Well,\n  hello there.", "Well, hello there.", "<think>\nHm.\n</think>\n\nWell,\n  hello there. "):
        place = locate(journal, request(user("Hello"), assistant(sent), user("No.")), {})
        assert (place.conversation, place.found_by) == (first.conversation, "reply")
        assert place.follow_up == FollowUp(first.receipt, (Message("user", "No."),))
    assert reply_hash(("assistant", "  ", ())) == ""


def test_aider_leaves_turns_out_and_invents_others(journal: Journal):
    """What it sends at the second turn: another system turn, the user's words without the reminder they had, our answer
    stripped, and answers that nobody sampled."""
    example = (user("Change the factorial."), assistant("Ok."))
    reminder = "\n\nReply with SEARCH/REPLACE blocks."
    first = ask(journal, system("Act as an expert."), *example, user(f"Add a test.{reminder}"), answer="\nDone.\n")
    again = request(
        system("Act as an expert developer."),
        *example,
        user("Add a test."),
        assistant("Done."),
        user("I committed the changes with git hash 1a2b3c4 & commit msg: add a test"),
        assistant("Ok."),
        user("I have *added these files to the chat*"),
        assistant("Ok, any changes I propose will be to those files."),
        user(f"It fails.{reminder}"),
    )
    place = locate(journal, again, {})
    assert (place.conversation, place.kind) == (first.conversation, "main")
    assert place.follow_up == FollowUp(first.receipt, (Message("user", f"It fails.{reminder}"),))
    assert place.new_text == f"It fails.{reminder}"


def test_an_answer_that_the_user_rewrote_is_not_ours(journal: Journal):
    """Nor is what follows it a reply to the answer of ours before it."""
    first = ask(journal, user("Hello"), answer=LONG)
    ask(journal, user("Hello"), assistant(LONG), user("More."), answer="Something else that is long enough.")
    rewritten = (user("Hello"), assistant(LONG), user("More."), assistant("What I would have written."))
    place = locate(journal, request(*rewritten, user("Go on.")), {})
    assert place.conversation == first.conversation
    assert place.follow_up == FollowUp(first.receipt, (Message("user", "More."),)), "which is known already"
    answered(journal, place, request(*rewritten, user("Go on.")), "Well.")
    assert len(list(journal.lessons())) == 1


def test_short_answers_of_different_conversations_are_told_apart(journal: Journal):
    ask(journal, user("Is it green?"), answer="Yes.")
    blue = ask(journal, user("Is it blue?"), answer="Yes.")
    other = locate(journal, request(user("Is it red?"), assistant("Yes."), user("No!")), {})
    assert (other.found_by, other.follow_up) == ("new", None)
    same = locate(journal, request(user("Is it blue?"), assistant("Yes."), user("No!")), {})
    assert same.conversation == blue.conversation


def test_two_equal_conversations_stay_two(journal: Journal):
    first = ask(journal, user("Hello"), answer=LONG)
    second = ask(journal, user("Hello"), answer=LONG)
    assert first.conversation != second.conversation
    turns = user("Hello"), assistant(LONG), user("No.")
    found = {ask(journal, *turns, answer=text).conversation for text in ("One.", "Two.")}
    assert found == {first.conversation, second.conversation}


def test_a_repeated_request_brings_a_reply_once(journal: Journal):
    ask(journal, user("Hello"), answer=LONG)
    for answer in ("One.", "Two."):
        ask(journal, user("Hello"), assistant(LONG), user("No."), answer=answer)
    ask(journal, user("Hello"), assistant(LONG), user("No, otherwise."))
    assert [lesson.messages[0].content for lesson in journal.lessons()] == ["No.", "No, otherwise."]


def test_an_answer_whose_client_went_brings_nothing(journal: Journal):
    asked = request(user("Hello"))
    answered(journal, locate(journal, asked, {}), asked, LONG, status="cancelled", stop="cancelled")
    place = locate(journal, request(user("Hello"), assistant(LONG), user("No.")), {})
    assert (place.found_by, place.follow_up) == ("reply", None)
    assert journal.unlearned() == {"cancelled": 1}


def test_results_of_tools_are_replies(journal: Journal):
    asked = request(user("List the files."))
    place = locate(journal, asked, {})
    completion = Completion("r", 'I look.\n<tool_call>\n{"name": "ls", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
                            (7,), (-1.0,), policy_version=1)  # fmt: skip
    reply = reply_to(asked, completion, (("ls", {"a": 1, "b": 2}),), "I look.")
    journal.record(place.exchange(completion, reply, (5,)))
    call = {"id": "x", "type": "function", "function": {"name": "ls", "arguments": '{"b":2, "a":1}'}}
    sent = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    results = [{"role": "tool", "tool_call_id": "x", "content": text} for text in ("error: no such directory", "")]
    ask(journal, user("List the files."), sent, *results)
    (lesson,) = journal.lessons()
    assert (lesson.origin, lesson.exchange.receipt) == ("tool", "r")
    assert lesson.messages == (Message("tool", "error: no such directory"),)


@pytest.mark.parametrize(
    ("messages", "headers", "rule"),
    [
        ([user("Write a commit message for this diff.")], {}, ""),
        ([user("Hello")], {"x-turn-type": "side"}, "header x-turn-type"),
        ([user("Hello")], {"x-openwebui-task": "title_generation"}, "header x-openwebui-task"),
        ([user("### Task:\nGenerate 1-3 broad tags")], {}, "the user's turn begins as task"),
        ([user("### Task:\nGenerate 1-3 broad tags")], {"x-turn-type": "main"}, ""),
        (
            [system("You are a title generator. You output ONLY a thread title."), user("Hello")],
            {},
            "instruction for a title",
        ),
        (
            [
                system("You are an expert software engineer that generates concise, one-line Git commit messages."),
                user("diff --git"),
            ],
            {},
            "instruction for a commit message",
        ),
        (
            [system("*Briefly* summarize this partial conversation about programming."), user("# USER")],
            {},
            "instruction for a summary",
        ),
        ([system("You are an agent. " * 30 + "Generate good commit messages."), user("Fix it.")], {}, ""),
    ],
)
def test_side_calls_are_known_by_rule(messages: list[dict[str, str]], headers: dict[str, str], rule: str):
    assert side_rule(request(*messages), headers, ours=False) == rule


def test_side_calls_are_kept_and_bring_nothing(journal: Journal):
    headers = {"x-session-id": "s"}
    ask(journal, user("Hello"), answer=LONG, headers=headers)
    title = ask(journal, user("Hello"), assistant(LONG), user("### Task:\nName it."), answer="A chat", headers=headers)
    assert (title.kind, title.conversation, title.follow_up) == ("side", "s", None)
    assert not list(journal.lessons())
    assert journal.unlearned() == {"nothing came back": 1, "a side call": 1}


def test_opencode_has_a_title_made_on_the_session_of_the_conversation(journal: Journal):
    """Before its first turn, with the same words of the user."""
    headers = {"x-session-id": "ses_1", "x-session-affinity": "ses_1"}
    titles = system("You are a title generator. You output ONLY a thread title. Nothing else.")
    ask(
        journal,
        titles,
        user("Generate a title for this conversation:\n"),
        user("Fix it."),
        answer="Fix",
        headers=headers,
    )
    first = ask(journal, system("You are opencode."), user("Fix it."), answer=LONG, headers=headers)
    ask(journal, system("You are opencode."), user("Fix it."), assistant(LONG), user("No."), headers=headers)
    assert [each.kind for each in journal.exchanges("ses_1")] == ["side", "main", "main"]
    assert [(lesson.exchange.receipt, lesson.origin) for lesson in journal.lessons()] == [(first.receipt, "user")]


def test_mini_brings_a_rejection_as_words_of_the_user(journal: Journal):
    first = ask(journal, user("Clean up."), answer="I remove it.")
    rejected = user("Commands not executed. The user rejected your commands with the following message: keep it")
    ask(journal, user("Clean up."), assistant("I remove it."), rejected)
    (lesson,) = journal.lessons()
    assert (lesson.exchange.receipt, lesson.origin) == (first.receipt, "user")
