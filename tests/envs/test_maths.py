r"""Mathematics: which box of an answer counts, and which expressions are equal."""

from __future__ import annotations

import time
from typing import Any

import pytest

from envs.row_parts import CUT_OFF, data_file, environment, reward, rewards, row, scored
from selfdistill.data.load import RowOptions
from selfdistill.data.tasks import training_tasks
from selfdistill.envs import maths
from selfdistill.envs.maths import last_boxed, plain_number
from selfdistill.envs.rows import RowsEnvironment
from selfdistill.errors import ConfigError
from selfdistill.types import StopReason

FORM = r"Put the final answer, and nothing else, into \boxed{…}."


def plain(**options: Any) -> RowsEnvironment[Any]:
    return environment("maths", equivalence=False, **options)


def verified(**options: Any) -> RowsEnvironment[Any]:
    pytest.importorskip("math_verify")
    return environment("maths", **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So \boxed{18}.", "18"),
        (r"\boxed{1}, no: $\boxed{2}$", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"{ \boxed{5} and } }", "5"),
        (r"\boxed{4} but then \boxed{5", "4"),
        (r"\boxed{}", ""),
        (r"\boxed 5", None),
        (r"boxed{5}", None),
        (r"\boxed{5", None),
        ("", None),
    ],
)
def test_the_last_closed_box_counts(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", 18), ("-3.50", -3.5), ("1,000", 1000), ("1{,}000", 1000), (r"1\,000", 1000), (r"\$18", 18), ("$18$", 18),
        (r"50\%", 50), ("50%", 50), (r"18 \text{ cm}", 18), (r"18\mathrm{kg}", 18), (r"\frac{1}{2}", 0.5),
        (r"-\dfrac{3}{4}", -0.75), ("3/4", 0.75), ("1e3", 1000), ("x", None), ("18 and 19", None), ("1/0", None),
        ("", None),
        ("x + 18", None), (r"2\pi", None), ("1" * 500, None), ("1e999999999", None),
    ],
)  # fmt: skip
def test_numbers_need_no_algebra(text: str, expected: float | None) -> None:
    assert plain_number(text) == expected


def test_the_final_answer_of_a_row_stands_behind_the_hashes_or_in_a_box() -> None:
    env = plain()
    for answer in ("18", 18, "16 - 3 = <<16-3=13>>13 eggs.\n#### 18", r"Thus \boxed{18}.", " 18 "):
        assert reward(env, answer, r"It is \boxed{18}") == 1, answer
        assert env.reference(row(answer)) == r"\boxed{18}"
    for answer in ("", "13 eggs\n#### ", None, True, [18]):
        assert "column 'answer'" in env.unusable(row(answer)), answer


def test_text_and_numbers_are_compared_without_math_verify() -> None:
    env = plain()
    for answer, boxed in (
        ("18", "18.0"),
        ("70000", "70,000"),
        ("50", r"50\%"),
        ("x+1", "x+1"),
        (r"\frac{1}{2}", "0.5"),
    ):
        assert reward(env, answer, f"\\boxed{{{boxed}}}") == 1, boxed
    for answer, boxed in (("18", "19"), ("x+1", "1+x"), ("18", "")):
        assert reward(env, answer, f"\\boxed{{{boxed}}}") == 0, boxed


def test_feedback_says_what_is_wrong_and_never_the_answer() -> None:
    env = plain()
    assert scored(env, "18", r"\boxed{17}").feedback == "17 is wrong."
    assert scored(env, "18", "It is 17.").feedback == rf"No complete \boxed{{…}} was found. {FORM}"
    assert scored(env, "18", r"\boxed{17", StopReason.LENGTH).feedback == CUT_OFF
    assert scored(env, "18", r"\boxed{18}").feedback == ""
    assert (
        scored(plain(reveal_answer=True), "18", r"\boxed{17}").feedback == "17 is wrong.\nA right answer:\n\\boxed{18}"
    )


def test_thinking_holds_no_answer() -> None:
    assert reward(plain(), "18", r"<think>\boxed{18}</think>No idea.") == 0
    assert reward(plain(), "18", r"<think>\boxed{17}</think>\boxed{18}") == 1


def test_the_published_scorer_looks_at_the_last_hundred_characters() -> None:
    text = r"\boxed{18}" + " as I said." * 9
    assert len(text) > 100
    assert [reward(plain(scorer=scorer), "18", text) for scorer in ("corrected", "published")] == [1, 0]
    published = plain(scorer="published")
    assert reward(published, "18", r"\boxed{18}") == 1
    assert scored(published, "18", r"\boxed{17}").feedback == ""
    assert scored(published, "18", "17").feedback.startswith("Your answer had the wrong format.")
    assert scored(published, "18", "17", StopReason.LENGTH).feedback.startswith("Your response was truncated")
    assert reward(published, "18", r"\boxed{18} and \boxed{19") == 0


def test_the_instruction_stands_behind_the_question_once() -> None:
    env = plain()
    (message,) = env.prepare(row("1")).messages
    assert message.content == r"Question?" "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert env.prepare(env.prepare(row("1"))) == env.prepare(row("1"))
    assert plain(instruction="").prepare(row("1")) == row("1")


def test_without_math_verify_the_environment_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package math-verify[\s\S]*selfdistill\[maths\]"):
        environment("maths")
    assert reward(plain(), "18", r"\boxed{18}") == 1


@pytest.mark.parametrize("name", ["test_300", "train_1000"])
def test_every_row_of_gsm8k_loads_and_its_answer_is_right(name: str) -> None:
    path = str(data_file(f"gsm8k/{name}.jsonl"))
    for scorer in ("corrected", "published"):
        env = plain(scorer=scorer)
        tasks = training_tasks(env, path, RowOptions(columns={"prompt": "question"}))
        assert len(tasks) == int(name.rpartition("_")[2])
        assert rewards(env, [(task, env.reference(task)) for task in tasks]) == [1] * len(tasks)
        assert rewards(env, [(task, r"\boxed{-7}") for task in tasks]) == [0] * len(tasks)


def test_long_hostile_answers_take_little_time() -> None:
    texts = [
        r"\boxed{" * 150_000, r"\boxed{" * 100_000 + "}" * 100_000, "{" * 10**6, "\\" * 10**6,
        r"\boxed{" + "9" * 10**6 + "}",
        r"\boxed{" + r"\text{" * 100_000, r"\boxed{" + "1," * 10**5 + "}", r"\boxed" + " " * 10**6,
    ]  # fmt: skip
    for text in texts:
        for scorer in ("corrected", "published"):
            assert scored(plain(scorer=scorer), "18", text).reward == 0


EQUAL = [
    (r"\frac{1}{2}", r"\dfrac12"), ("0.5", r"\frac{2}{4}"), ("18", r"18\text{ dollars}"), ("0.5", r"50\%"),
    ("x^2+1", "1 + x^2"),
    ("(1,2)", "(1, 2)"), (r"\sqrt{2}", "2^{1/2}"), ("3", "x = 3"), ("120", "5!"), (r"\{1,2\}", r"\{2, 1\}"),
]  # fmt: skip
UNEQUAL = [("1", "2"), (r"\frac{1}{2}", r"\frac{1}{3}"), ("x", "y"), ("(1,2)", "(2,1)"), ("1", r"\frac{"), ("1", "猫")]


def test_math_verify_compares_what_is_not_equal_as_text() -> None:
    env = verified()
    for answer, boxed in EQUAL:
        assert reward(env, answer, f"\\boxed{{{boxed}}}") == 1, boxed
    for answer, boxed in UNEQUAL:
        assert reward(env, answer, f"\\boxed{{{boxed}}}") == 0, boxed


def test_the_published_scorer_gives_math_verify_bare_text() -> None:
    env = verified(scorer="published")
    assert reward(env, "18", r"\boxed{18.0}") == 1
    assert reward(env, "x^2+1", r"\boxed{1 + x^2}") == 0
    assert reward(env, "1000", r"\boxed{1{,}000}") == 0


def test_an_expression_that_takes_too_long_is_wrong_and_costs_its_limit_once() -> None:
    env = verified(limit_s=1.0)
    assert reward(env, r"\frac{1}{2}", r"\boxed{\dfrac12}") == 1
    began = time.monotonic()
    hanging = [scored(env, "2", r"\boxed{9^{9^{9^9}}}") for _ in range(3)]
    assert time.monotonic() - began < 10
    assert [outcome.details["failure"] for outcome in hanging] == ["timeout"] * 3
    assert hanging[0].feedback == f"The boxed answer takes too long to compare. {FORM}"
    assert reward(env, r"\frac{1}{2}", r"\boxed{\frac{2}{4}}") == 1  # the next process
