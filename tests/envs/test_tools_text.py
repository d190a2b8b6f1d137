"""Calls of tools in text: which are read, how they are compared, and what the feedback shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from envs.row_parts import CUT_OFF, data_file, environment, reward, row, scored
from selfdistill.data.tasks import training_tasks
from selfdistill.envs.tools_text import Call, read_calls
from selfdistill.types import StopReason

FORM = 'Write "Action: " with the name of a tool, and on the next line "Action Input: " with one JSON object.'


def gold(*calls: tuple[str, Any]) -> str:
    return json.dumps([{"Action": name, "Action_Input": json.dumps(given)} for name, given in calls])


def call(name: str, given: Any) -> str:
    return f"Action: {name}\nAction Input: {given if isinstance(given, str) else json.dumps(given)}\n"


def test_calls_are_read_from_text() -> None:
    nested = {"user": {"name": {"first": "Ada"}}, "tags": [{"x": 1}, {}], "note": 'a "}" and Action: b'}
    cases = [
        ("Thought: look.\n" + call("find", {"a": 1}), [Call("find", {"a": 1})]),
        (call("save", nested), [Call("save", nested)]),
        (call("a", {}) + "Observation: no\n" + call("b", {"x": 2}), [Call("a", {}), Call("b", {"x": 2})]),
        ("Action: a Action Input: {}", [Call("a", {})]),
        ('**Action:** `a`\n**Action Input:** ```json\n{"x": 1}\n```', [Call("a", {"x": 1})]),
        ("Action: get-user.v2.\nAction Input: {}", [Call("get-user.v2", {})]),
        ("Action: [Optional]get\nAction Input: {}", [Call("[Optional]get", {})]),
        ("Action: a", [Call("a", {})]),
        ('Action Input: {"x": 1}', []),
        ("I would call find.", []),
        ("", []),
    ]
    for text, expected in cases:
        assert read_calls(text) == expected, text
    for text in ("{'a': 1}", '{"a": 1', '{"a": }', "[1]", "none", '{"a": ' + "1" * 5000 + "}", '{"a":' * 5000):
        (found,) = read_calls(call("a", text))
        assert found.fault, text


RIGHT = [
    (gold(("a", {})), call("a", {})),
    (gold(("a", {})), "Action: a"),
    (gold(("a", {"x": 1}), ("b", {"y": 2})), call("b", {"y": 2}) + call("a", {"x": 1})),
    (gold(("a", {"x": 1}), ("a", {"x": 2})), call("a", {"x": 2}) + call("a", {"x": 1})),
    (gold(("a", {"x": 1}), ("a", {"x": 2})), call("a", {"x": 1}) + call("a", {"x": 2})),
    (gold(("a", {"x": 1}), ("b", {"y": 2})), call("a", {"y": 2}) + call("b", {"x": 1})),  # merged
    (gold(("a", {"x": {"y": [1, {"z": None}]}})), call("a", {"x": {"y": [1, {"z": None}]}})),
    (gold(("a", {"x": 1})), call("a", {"x": 1.0})),
    ([{"Action": "a", "Action_Input": {"x": 1}}], call("a", {"x": 1})),
]
WRONG = [
    (gold(("a", {})), call("b", {})),
    (gold(("a", {})), call("a", {}) + call("a", {})),
    (gold(("a", {}), ("a", {})), call("a", {})),
    (gold(("a", {"x": 1})), call("a", {"x": "1"})),
    (gold(("a", {"x": 1})), call("a", {"x": 1, "y": 2})),
    (gold(("a", {"x": 1})), call("a", {})),
    (gold(("a", {"x": 1})), "Action: a\nAction Input: {'x': 1}"),
    (gold(("a", {})), "Action: a\nAction Input: nothing"),
    (gold(("a", {})), ""),
]


@pytest.mark.parametrize(("answer", "text", "expected"), [(*c, 1.0) for c in RIGHT] + [(*c, 0.0) for c in WRONG])
def test_names_are_a_multiset_and_arguments_are_merged(answer: Any, text: str, expected: float) -> None:
    assert reward(environment("tools-text"), answer, text) == expected


def test_an_optional_call_may_be_left_out() -> None:
    answer = gold(("get", {"id": 1}), ("[Optional]put", {"id": 1, "x": {"y": 2}}))
    get, put = call("get", {"id": 1}), call("put", {"id": 1, "x": {"y": 2}})
    env = environment("tools-text")
    for text in (get, get + put, put + get, get + call("[Optional]put", {"id": 1, "x": {"y": 2}})):
        assert reward(env, answer, text) == 1, text
    for text in (put, get + put + put, get + call("put", {"id": 1}), get + call("cut", {})):
        assert reward(env, answer, text) == 0, text


def test_thinking_holds_no_calls() -> None:
    text = f"<think>{call('b', {})}</think>{call('a', {})}"
    assert reward(environment("tools-text"), gold(("a", {})), text) == 1
    assert reward(environment("tools-text", scorer="published"), gold(("a", {})), text) == 0


def test_feedback_names_what_is_wrong_and_no_expected_value() -> None:
    env, answer = environment("tools-text"), gold(("secretTool", {"colour": "teal", "size": "large"}))
    cases = {
        call("find", {}): "The actions are not those that are needed. Not right: find. Missing: 1.",
        call("secretTool", {}) * 2: "The actions are not those that are needed. Not right: secretTool.",
        call("secretTool", {"colour": "red", "page": 1}): (
            "The actions are right, their arguments are not. Wrong value: colour. Not needed: page. Missing: size."
        ),
        "Action: secretTool\nAction Input: {colour}": (
            "The input of an action cannot be read. secretTool: no JSON: Expecting property name enclosed in double "
            f"quotes. {FORM}"
        ),
        "I would look.": f"No action was found. {FORM}",
    }
    for text, feedback in cases.items():
        assert scored(env, answer, text).feedback == feedback
        assert "teal" not in feedback
        assert "large" not in feedback
    assert [scored(env, answer, text).details["failure"] for text in cases] == ["wrong"] * 3 + ["missing"] * 2
    assert scored(env, answer, "Thought: I", StopReason.LENGTH).feedback == CUT_OFF
    revealing = scored(environment("tools-text", reveal_answer=True), answer, "no").feedback
    assert revealing.endswith('Action: secretTool\nAction Input: {"colour": "teal", "size": "large"}')


def test_the_published_scorer_keeps_its_defects() -> None:
    env = environment("tools-text", scorer="published")
    nested = gold(("a", {"x": {"y": 1}}))
    assert reward(env, nested, call("a", {"x": {"y": 1}})) == 0
    assert reward(env, gold(("[Optional]a", {})), call("[Optional]a", {})) == 0
    assert reward(env, gold(("a", {})), "Action: a\nAction Input: nothing") == 1
    assert reward(env, gold(("a", {"x": 1})), call("a", {"x": 1})) == 1
    outcome = scored(env, gold(("a", {"x": 1})), call("b", {"x": 2}))
    assert outcome.feedback == (
        "Actions mismatch: predicted ['b'], expected ['a']; "
        "Action inputs mismatch: predicted {'x': 2}, expected {'x': 1}"
    )
    assert outcome.details["incorrect_format"] is False
    assert scored(env, gold(("a", {})), "no").details["incorrect_format"] is True


def test_a_row_needs_calls_as_its_answer() -> None:
    env = environment("tools-text")
    bad = [
        "",
        "[]",
        "{}",
        "no JSON",
        [],
        [1],
        [{"Action": "a"}],
        [{"Action": "", "Action_Input": {}}],
        gold(("a", [1])),
    ]
    for answer in [*bad, [{"Action": 1, "Action_Input": {}}], [{"Action": "a", "Action_Input": "{"}], None]:
        assert "expected a list of" in env.unusable(row(answer)), answer
    for answer in (gold(("a", {})), [{"Action": "a", "Action_Input": " "}]):
        assert env.unusable(row(answer)) == ""
        assert reward(env, answer, "Action: a") == 1
    broken = [{"Action": "a", "Action_Input": "{"}]
    assert reward(environment("tools-text", scorer="published"), broken, "Action: a") == 1


def test_every_row_of_toolalpaca_can_be_solved_but_for_two_by_the_published_scorer() -> None:
    path = str(data_file("tooluse/test.jsonl"))
    for scorer, unsolved in (("corrected", []), ("published", [4072, 4079])):
        env = environment("tools-text", scorer=scorer)
        tasks = training_tasks(env, path)
        assert len(tasks) == 68
        assert [task["idx"] for task in tasks if not reward(env, task["answer"], env.reference(task))] == unsolved


def test_feedback_on_real_rows_shows_no_expected_value() -> None:
    env = environment("tools-text")
    for task in training_tasks(env, str(data_file("tooluse/test.jsonl"))):
        calls = env.gold(task)
        emptied = "".join(call(one.tool, {}) for one in calls)
        feedback = scored(env, task["answer"], emptied).feedback
        values = {str(value) for one in calls for value in one.arguments.values() if len(str(value)) > 3}
        names = " ".join(name for one in calls for name in one.arguments)
        assert not [value for value in values if value in feedback and value not in names]


def test_text_that_utf_8_cannot_hold_is_shown_escaped() -> None:
    outcome = scored(environment("tools-text"), gold(("a", {})), r"Action: a" + "\nAction Input: " + r'{"\ud800": 1}')
    assert outcome.feedback.endswith(r"Not needed: \ud800.")


def test_long_hostile_answers_take_little_time() -> None:
    texts = [
        "Action Input: {" * 60_000,
        "Action: a\nAction Input: {" * 60_000,
        'Action: a\nAction Input: {"k": "' * 60_000,
        "Action:" * 120_000,
        "Action:" + " " * 10**6,
        "Action: " + "a" * 10**6,
        "Action: a\nAction Input: " + '{"a":' * 10**5,
        "Action: a\nAction Input: " + "[" * 10**6,
        call("a", {"x": "y" * 10**6}),
        call("a", {}) * 60_000,
    ]
    for text in texts:
        for scorer in ("corrected", "published"):
            outcome = scored(environment("tools-text", scorer=scorer), gold(("a", {"x": 1})), text)
            assert outcome.reward == 0
            assert len(outcome.feedback) <= 2000
