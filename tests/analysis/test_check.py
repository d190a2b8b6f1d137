"""What is wrong with rows, before a run: with real programs in the real sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfdistill.analysis.check import CheckReport, Score, check_rows, every_row, read_answers, score_answers
from selfdistill.envs.base import Environment
from selfdistill.envs.code import CodeEnvironment, CodeOptions
from selfdistill.envs.registry import make_environment
from selfdistill.envs.rewards import FunctionEnvironment
from selfdistill.errors import DataError
from selfdistill.prompts.render import Renderer
from selfdistill.runs.events import no_callback
from selfdistill.types import Message, Outcome, Task
from tiny_models import tiny_tokenizer

ADD = {
    "id": "add",
    "prompt": "Add.",
    "fn_name": "add",
    "tests": [{"input": [1, 2], "output": 3}],
    "private_tests": [{"input": [2, 2], "output": 4}],
    "solution": "def add(a, b):\n    return a + b",
}
MBPP = {"task_id": "m", "text": "Square.", "code": "def sq(x):\n    return x * x", "test_list": ["assert sq(3) == 9"]}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def checked(data: str, env: Environment | None = None, **options) -> CheckReport:
    env = env or CodeEnvironment()
    return check_rows(env, every_row(env, data), no_callback, **options)


def test_rows_that_are_well_have_nothing_to_correct(tmp_path: Path) -> None:
    echo = {"prompt": "Repeat the input.", "tests": [{"input": "a", "output": "a"}], "solution": "print(input())"}
    found = checked(write(tmp_path / "rows.jsonl", ADD, MBPP, echo))
    assert (found.rows, found.usable, found.references, found.passed) == (3, 3, 3, 3)
    assert (found.problems, found.notes, found.longest, found.limit) == ([], [], None, None)
    assert [example.task for example in found.examples] == ["add", "m"]
    assert found.examples[0].feedback == "Wrong answer.\nInput: 1, 2\nOutput: None\nExpected: 3"
    assert "def sq(" in found.examples[1].answer
    assert "sq(3)" in found.examples[1].feedback


def test_every_row_that_cannot_be_used_is_listed_and_the_others_are_scored(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        ADD,
        "{",
        {**ADD, "id": "half", "prompt": "\ud83d"},
        {**MBPP, "test_list": ["import numpy"]},
        ADD,
        {**ADD, "id": "talk", "prompt": [{"role": "assistant", "content": "So"}]},
    )
    found = checked(path)
    assert (found.rows, found.usable, found.passed) == (6, 1, 1)
    expected = [
        ("2: not JSON", "column"),
        ("3: field 'prompt': half of a surrogate pair", "ud83d"),
        ("4: MBPP row: field 'test_list[0]'", "numpy"),
        ("5: field 'id': the id 'add' was used in ", ""),
        ("6: simple row: field 'prompt[0].role'", "user turn"),
    ]
    for problem, (start, within) in zip(found.problems, expected, strict=True):
        assert problem.startswith(f"{path}:{start}")
        assert within in problem


def test_references_are_scored_by_all_tests_and_named_where_they_fail(tmp_path: Path) -> None:
    """The first passes the public tests alone, the second loops, the third is no program."""
    path = write(
        tmp_path / "rows.jsonl",
        {**ADD, "id": "shallow", "solution": "def add(a, b):\n    return 3"},
        {**ADD, "id": "slow", "prompt": "b", "solution": "def add(a, b):\n    while True: pass", "time_limit": 0.2},
        {**ADD, "id": "text", "prompt": "c", "solution": "add a and b"},
        {**ADD, "prompt": "d", "solution": ""},
    )
    found = checked(path)
    assert (found.references, found.passed) == (3, 0)
    assert [problem.split(": ", 1)[1].split("\n")[0] for problem in found.problems] == [
        "the reference solution fails: wrong",
        "the reference solution fails: timeout",
        "the reference solution fails: error",
    ]
    assert "Input: 2, 2\nOutput: 3\nExpected: 4" in found.problems[0]
    assert [problem.split(": ")[0] for problem in found.problems] == [f"{path}:{line}" for line in (1, 2, 3)]
    assert found.notes == ["1 of 4 rows have no reference solution"]


def test_tests_that_anything_passes_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"task_id": 1, "text": "Whatever.", "test_list": ["assert True"]},
        {"id": 2, "prompt": "Print nothing.", "tests": [{"input": "", "output": ""}]},
    )
    problems = checked(path).problems
    assert [problem.split("\n")[0] for problem in problems] == [
        f"{path}:{line}: a program that does nothing passes" for line in (1, 2)
    ]


@pytest.mark.parametrize("part", [50_000, 1])
def test_the_same_task_twice_is_a_problem_and_the_same_prompt_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("selfdistill.analysis.check.CHECKED_ROWS", part)
    other = {**ADD, "id": "c", "tests": [{"input": [0, 5], "output": 5}]}
    path = write(tmp_path / "rows.jsonl", ADD, {**ADD, "id": "b"}, other)
    found = checked(path)
    assert found.problems == [f"{path}:2: the same prompt and tests as {path}:1"]
    assert found.notes == [f"{path}:3: the same prompt as {path}:1, with other tests"]


def test_prompts_are_measured_as_the_model_reads_them(tmp_path: Path) -> None:
    renderer = Renderer(tiny_tokenizer(), context_length=4000, max_teacher_tokens=100)
    path = write(tmp_path / "rows.jsonl", ADD, {**MBPP, "text": "Square it. " * 40})
    sizes = [len(renderer.prompt(row.found.messages)) for row in every_row(CodeEnvironment(), path)]  # type: ignore[union-attr]
    found = checked(path, renderer=renderer, max_prompt_tokens=sizes[0])
    assert (found.longest, found.limit) == (max(sizes), sizes[0])
    assert found.problems == [f"{path}:2: the prompt has {sizes[1]:,} tokens; a run skips those over {sizes[0]:,}"]


def shout(task: Task, done: str) -> Outcome:
    if done == "crash":
        raise KeyError("boom")
    return Outcome(float(done == task.spec["answer"]), "Say it louder.")


def test_questions_are_checked_with_the_users_own_function(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "Say A.", "answer": "A", "demonstration": "A"},
        {"prompt": "Say B.", "answer": "B", "demonstration": "b"},
        {"prompt": "Say nothing.", "answer": ""},
        {"prompt": "Say C.", "demonstration": "C"},
    )
    found = checked(path, FunctionEnvironment(shout, "shout"))
    assert (found.usable, found.references, found.passed) == (4, 3, 1)
    assert [problem.split(": ", 1)[1] for problem in found.problems] == [
        "the reference solution fails: wrong\nSay it louder.",
        "the reference solution was not scored: KeyError: 'answer'",
        "an empty answer passes",
        "a wrong answer was not scored: KeyError: 'answer'",
    ]
    assert [example.feedback for example in found.examples] == ["Say it louder."] * 2
    own = FunctionEnvironment(shout, "own", [Task("a", (Message("user", "Say A."),), {"answer": "A"})])
    assert checked("", own).usable == 1


def test_answers_are_scored_in_order_and_those_without_a_reward_say_why(tmp_path: Path) -> None:
    env = CodeEnvironment(CodeOptions(split="all"))
    rows = every_row(env, write(tmp_path / "rows.jsonl", ADD, {**MBPP, "task_id": 7}))
    good, bad = "```python\ndef add(a, b):\n    return a + b\n```", "```python\ndef add(a, b):\n    return 3\n```"
    answers = read_answers(
        Path(
            write(
                tmp_path / "answers.jsonl",
                {"id": "add", "answer": bad, "model": "x"},
                {"id": "nobody", "answer": good},
                {"id": "add", "answer": good},
                {"id": 7, "answer": ""},
            )
        )
    )
    assert list(score_answers(env, rows, answers, no_callback)) == [
        Score("add", 0.0, "Wrong answer.\nInput: 2, 2\nOutput: 3\nExpected: 4", "wrong"),
        Score(
            "nobody",
            None,
            "",
            "unknown_id",
            f"{tmp_path / 'answers.jsonl'}:2: no row that can be used has the id 'nobody'",
        ),
        Score("add", 1.0, "", "none"),
        Score("7", 0.0, "No code was found. Put the whole program into one fenced block: ```python ... ```", "missing"),
    ]


def test_answers_that_a_users_function_cannot_score_have_no_reward(tmp_path: Path) -> None:
    env = FunctionEnvironment(shout, "shout")
    rows = every_row(env, write(tmp_path / "rows.jsonl", {"id": "a", "prompt": "Say A.", "answer": "A"}))
    texts = ["A", "crash", "b"]
    answers = read_answers(Path(write(tmp_path / "a.jsonl", *({"id": "a", "answer": text} for text in texts))))
    scores = list(score_answers(env, rows, answers, no_callback))
    assert [(score.reward, score.failure) for score in scores] == [
        (1.0, "none"),
        (None, "env_raised"),
        (0.0, "wrong"),
    ]
    assert "KeyError: 'boom'" in scores[1].fault


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, "field 'answer': expected text"),
        ({"answer": "x"}, "field 'id': expected text"),
        ({"id": "a", "answer": 3}, "field 'answer': expected text"),
        ({"id": [1], "answer": "x"}, "field 'id': expected text or an integer"),
        ({"id": "a", "answer": "\udc00"}, "field 'answer': half of a surrogate pair"),
        ("[]", "expected a JSON object"),
    ],
)
def test_answers_that_are_none_are_refused_with_their_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "answers.jsonl", {"id": "a", "answer": ""}, row)
    with pytest.raises(DataError, match=message) as caught:
        read_answers(Path(path))
    assert str(caught.value).startswith(f"{path}:2: ")


def test_reference_answers_of_rows_are_scored_by_each_environment(tmp_path: Path) -> None:
    """The environment writes the row's answer in its own form; a `demonstration` of the row takes its place."""
    calls = [{"Action": "[Optional]find", "Action_Input": {"x": {"y": 1}}}]
    answers = {"choice": "B", "tools-text": json.dumps(calls), "maths": "9 eggs\n#### 9", "text": "Paris"}
    for name, answer in answers.items():
        env = make_environment(name, {"equivalence": False} if name == "maths" else {}, seed=0)
        row = {"prompt": "Question?", "answer": answer}
        own = {"prompt": "Another?", "answer": answer, "demonstration": "I do not know."}
        path = write(tmp_path / f"{name}.jsonl", row, own, {"prompt": "A third?", "anser": answer})
        found = checked(path, env)
        assert (found.rows, found.usable, found.references, found.passed) == (3, 2, 2, 1)
        (unusable, failing) = found.problems
        assert unusable.startswith(f"{path}:3: task '{name}-3': there is no column 'answer'")
        assert "did you mean 'anser'?" in unusable
        assert failing.startswith(f"{path}:2: the reference solution fails: ")
        assert found.examples[0].feedback
        assert answer not in found.examples[0].feedback.replace("'", "")


def test_two_references_of_toolalpaca_fail_the_published_scorer() -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "tooluse" / "test.jsonl"
    if not path.exists():
        pytest.skip("the rows of ToolAlpaca are not here")
    passed = {}
    for scorer in ("corrected", "published"):
        passed[scorer] = checked(str(path), make_environment("tools-text", {"scorer": scorer}, seed=0)).passed
    assert passed == {"corrected": 68, "published": 66}
