"""Text, numbers, regular expressions and JSON, compared with the answer of a row."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest

from envs.row_parts import CUT_OFF, data_file, environment, reward, rewards, row, scored
from selfdistill.data.load import RowOptions
from selfdistill.data.tasks import training_tasks
from selfdistill.envs.limited import LimitedCall
from selfdistill.envs.text import last_number
from selfdistill.errors import ConfigError, EnvError
from selfdistill.types import StopReason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 18.", "18"), ("1 or 2", "2"), ("-3", "-3"), ("x = -3.5!", "-3.5"), ("\u22123", "-3"), ("5-3", "3"),
        ("+4", "4"),
        ("$1,234.50", "1234.5"), ("-$5", "-5"), ("$-5", "-5"), ("€7", "7"), ("1e3", "1000"),
        ("1.5E-3 kg", "0.0015"), (".5", "0.5"),
        ("50%", "50"), ("3/4", "3/4"), ("-3 / 4 of it", "-3/4"), ("18/2 = 9", "9"), ("1,2", "2"),
        ("100, 200", "200"), ("12kg", "12"),
        ("v2", None), ("no digits", None), ("", None), ("1/0", None), ("9" * 500, None), ("2e1000", None),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, expected: str | None) -> None:
    found = last_number(text)
    assert (found and found[0]) == (expected and Fraction(expected))


CASES: list[tuple[dict[str, Any], Any, str, float]] = [
    ({}, "Paris", " Paris\n", 1),
    ({}, "Paris", "paris", 0),
    ({}, "Paris", "Paris.", 0),
    ({}, ["Paris", "Lutetia"], "Lutetia", 1),
    ({}, 7, "7", 1),
    ({"ignore_case": True}, "Paris", "PARIS", 1),
    ({}, "Paris", "<think>London</think>Paris", 1),
    ({"after": "Answer:"}, "Paris", "Not Answer: London. Answer: Paris", 1),
    ({"after": "Answer:"}, "Paris", "Paris", 0),
    ({"after": "Answer:"}, "Paris", "Paris. Answer:", 0),
    ({"compare": "contains"}, "Paris", "It is Paris, of course.", 1),
    ({"compare": "contains"}, "Paris", "It is paris.", 0),
    ({"compare": "contains", "ignore_case": True}, "Paris", "It is paris.", 1),
    ({"compare": "words"}, "12", "It is 12, or PARIS.", 1),
    ({"compare": "words"}, ["12", "paris"], "It is 120, or PARIS.", 1),
    ({"compare": "words"}, "12", "It is 120.", 0),
    ({"compare": "regex"}, r"^\d{4}-\d\d$", "2024-05", 1),
    ({"compare": "regex"}, r"^\d{4}-\d\d$", "in 2024-05", 0),
    ({"compare": "regex"}, ["x+", "y+"], "yy", 1),
    ({"compare": "regex", "ignore_case": True}, "paris", "PARIS", 1),
    ({"compare": "regex"}, "paris", "PARIS", 0),
    ({"compare": "number"}, "1,000", "So it costs $1000.00.", 1),
    ({"compare": "number"}, 0.75, "3/4", 1),
    ({"compare": "number"}, "1e3", "1000", 1),
    ({"compare": "number"}, "3.14", "3.1415", 0),
    ({"compare": "number", "tolerance": 0.01}, "3.14", "3.1415", 1),
    ({"compare": "number", "tolerance": 0.01}, "-100", "-101", 1),
    ({"compare": "number", "tolerance": 0.01}, "-100", "-102", 0),
    ({"compare": "number"}, "5", "five", 0),
    ({"compare": "number", "after": "####"}, "so 16 - 3\n#### 13", "2 + 3 #### 13", 1),
    ({"compare": "json"}, {"a": [1, 2]}, '{"a": [1, 2.0]}', 1),
    ({"compare": "json"}, '{"a": [1, 2]}', '```json\n{"a": [1, 2]}\n```', 1),
    ({"compare": "json"}, {"a": 1}, '```json\n{"a": 2}\n```\nRather:\n```json\n{"a": 1}\n```', 1),
    ({"compare": "json"}, {"a": 1}, '{"a": 1, "b": 2}', 0),
    ({"compare": "json"}, {"a": 1}, "{'a': 1}", 0),
    ({"compare": "json"}, {"a": 1}, 'Here: {"a": 1}', 0),
    ({"compare": "json"}, [1, 2], "[2, 1]", 0),
    ({"compare": "json"}, "null", "null", 1),
]


@pytest.mark.parametrize(("options", "answer", "text", "expected"), CASES)
def test_answers_are_compared(options: dict[str, Any], answer: Any, text: str, expected: float) -> None:
    assert reward(environment("text", **options), answer, text) == expected


FEEDBACK: list[tuple[dict[str, Any], Any, str, str]] = [
    ({}, "Paris", "London", "The answer is not the one expected."),
    ({}, "New York", "newyork", "The answer is right but for white space, or upper and lower case."),
    ({}, "Paris", "  ", "The answer is empty."),
    ({"after": "####"}, "5", "7", "Write the answer behind '####', which was not found."),
    ({"compare": "contains"}, "Paris", "London", "The answer does not hold the text that is expected."),
    ({"compare": "regex"}, "^Paris$", "London", "The answer does not have the form that is expected."),
    ({"compare": "number"}, "5", "It is $7.50", "The number $7.50 is wrong."),
    ({"compare": "number"}, "5", "It is many", "No number was found in the answer."),
    ({"compare": "json"}, {"a": 1}, "{a", "The answer is no JSON that can be used: not JSON, Expecting property name "
     "enclosed in double quotes, column 2."),
    ({"compare": "json"}, {"a": 1, "b": 2, "c": 3}, '{"a": 9, "d": 2, "c": 3}',
     "The JSON is readable, these keys are wrong. Wrong value: a. Not needed: d. Missing: 1."),
    ({"compare": "json"}, [1], "[2]", "The JSON is readable, its value is wrong."),
    ({"compare": "number", "feedback": "No, not {answer}. {reason}"}, "5", "7", "No, not 7. The number 7 is wrong."),
    ({"feedback": ""}, "5", "7", ""),
    ({"reveal_answer": True}, ["5", "five"], "7", "The answer is not the one expected.\nA right answer:\n5"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "answer", "text", "expected"), FEEDBACK)
def test_feedback_says_what_is_wrong(options: dict[str, Any], answer: Any, text: str, expected: str) -> None:
    assert scored(environment("text", **options), answer, text).feedback == expected


def test_right_answers_have_no_feedback_and_cut_ones_their_own() -> None:
    assert scored(environment("text", feedback="Hm: {answer}"), "5", "5").feedback == ""
    cut = scored(environment("text", compare="number"), "5", "Let me", StopReason.LENGTH)
    assert (cut.feedback, cut.details["failure"]) == (CUT_OFF, "truncated")
    wrong = scored(environment("text", compare="number"), "5", "Let me see 7", StopReason.LENGTH)
    assert (wrong.feedback, wrong.details["failure"]) == ("The number 7 is wrong.", "wrong")


def test_a_template_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown field[\s\S]*\{reasons\}[\s\S]*did you mean 'reason'"):
        environment("text", feedback="{reasons}")


def test_rows_that_cannot_be_used_say_why() -> None:
    for options, answer, why in (
        ({}, "", "expected text or a number"), ({}, None, "expected text or a number"), ({}, [], "expected an answer"),
        ({"compare": "number"}, "many", "expected a number"),
        ({"compare": "regex"}, "(", "a regular expression (missing"),
        ({"compare": "json"}, "{", "expected JSON (not JSON: "),
    ):  # fmt: skip
        assert why in environment("text", **options).unusable(row(answer)), answer
        assert environment("text", **options).unusable(row("5")) == ""


def test_a_regular_expression_that_takes_for_ever_is_ended() -> None:
    found = LimitedCall("selfdistill.envs.limited:found", 0.5)
    hostile = ("(a+)+$", "a" * 60 + "b")
    assert found("a", "abc") is True
    began = time.monotonic()
    assert found(*hostile) is None
    assert time.monotonic() - began < 5
    assert found("b", "abc") is True
    assert found("d", "abc") is False
    assert found("(", "abc") is False


def test_a_process_that_dies_between_two_calls_is_started_again() -> None:
    found = LimitedCall("selfdistill.envs.limited:found", 5)
    assert found("a", "abc") is True
    assert found._process is not None
    found._process.kill()
    assert found("a", "abc") is True


def test_a_function_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(EnvError, match=r"did not start: selfdistill\.envs\.limited:nothing"):
        LimitedCall("selfdistill.envs.limited:nothing", 5)("a", "b")


def test_numbers_of_gsm8k_and_letters_of_sciknoweval_are_text_too() -> None:
    env = environment("text", compare="number", after="####")
    mapped = RowOptions(columns={"prompt": "question"})
    tasks = training_tasks(env, str(data_file("gsm8k/test_300.jsonl")), mapped)
    assert rewards(env, [(task, task["answer"]) for task in tasks]) == [1] * 300
    letters = environment("text")
    tasks = training_tasks(letters, str(data_file("sciknoweval/physics_test.jsonl")))
    assert rewards(letters, [(task, letters.reference(task)) for task in tasks]) == [1] * 80
    assert tasks[0].messages[0].role == "system"  # the row's own


def test_long_hostile_answers_take_little_time() -> None:
    texts = [
        "1,234," * 150_000,
        "1" * 10**6,
        "1/" * 300_000,
        "-" * 10**6,
        "1e" * 300_000,
        '{"a":' * 100_000,
        "`" * 10**6,
    ]
    for text in [*texts, "```\n" * 200_000, "." * 10**6, "1.1." * 200_000, "a" * 10**6]:
        for compare in ("exact", "contains", "regex", "number", "json"):
            answer = "7" if compare != "regex" else "^7$"
            assert scored(environment("text", compare=compare), answer, text).reward == 0
