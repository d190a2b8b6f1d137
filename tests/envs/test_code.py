"""The code environment on whole data sets: every reference solution is right."""

import math
from pathlib import Path

import pytest

from sandbox_parts import needs_isolation
from selfdistill.data.load import load_tasks
from selfdistill.data.rows import row_to_task
from selfdistill.envs.code import CodeEnvironment, CodeOptions
from selfdistill.envs.registry import environment_options
from selfdistill.errors import ConfigError, DataError
from selfdistill.types import Completion, Task

pytestmark = needs_isolation
MBPP = Path(__file__).parents[3] / "shared" / "data" / "mbpp" / "mbpp.jsonl"
HUMANEVAL_SHAPE = Path(__file__).parent / "data" / "humaneval_shape.jsonl"
UNSOLVED: dict[str, str] = {}  # task id of MBPP -> why its own reference solution cannot pass here


@pytest.mark.skipif(not MBPP.is_file(), reason=f"the MBPP data set is not at {MBPP}")
def test_the_reference_solutions_of_mbpp_pass():
    tasks = load_tasks(MBPP)
    env = CodeEnvironment(CodeOptions(time_limit_s=60))  # one of them searches for several seconds
    outcomes = env.score_batch([(task, Completion(task.id, task.demonstration)) for task in tasks])
    failed = {task.id: outcome.feedback for task, outcome in zip(tasks, outcomes, strict=True) if outcome.reward < 1}
    assert len(tasks) == 974
    assert failed.keys() == UNSOLVED.keys(), failed


def test_rows_of_humaneval_s_shape():
    tasks = load_tasks(HUMANEVAL_SHAPE)
    env = CodeEnvironment(CodeOptions(time_limit_s=5))
    right = [Completion(task.id, task.demonstration) for task in tasks]
    outcomes = env.score_batch(list(zip(tasks, right, strict=True)))
    assert [outcome.reward for outcome in outcomes] == [1.0] * 4, outcomes


def test_humaneval_answers_may_repeat_the_function_alone():
    squares = load_tasks(HUMANEVAL_SHAPE)[1]
    env = CodeEnvironment()
    alone = Completion("a", "```python\ndef count_squares(xs):\n    return sum(map(is_square, xs))\n```")
    wrong = Completion("b", "```python\ndef count_squares(xs):\n    return 0\n```")
    crash = Completion("c", "```python\ndef count_squares(xs):\n    return xs[0]\n```")
    passed, failed, crashed = env.score_batch([(squares, answer) for answer in (alone, wrong, crash)])
    assert passed.reward == 1.0
    assert failed.feedback == (
        "Wrong answer.\nassert candidate([k * k for k in range(size)]) == size, f'size {size}'\nsize 1"
    )
    assert crashed.feedback == (
        "Runtime error.\nIndexError: list index out of range\nLine 2 in count_squares\n"
        "Last input: assert candidate([k * k for k in range(size)]) == size, f'size {size}'"
    )


def test_training_and_evaluation_use_their_own_tests():
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [1], "output": 1}],
            "private": [{"input": [2], "output": 2}]}  # fmt: skip
    memorised = Completion("u", "```python\ndef f(x): return 1\n```")
    env = CodeEnvironment()
    assert env.score(Task("t", (), spec), memorised).reward == 1.0
    assert env.for_evaluation().score(Task("t", (), spec), memorised).reward == 0.0
    assert env.for_evaluation().sandbox is env.sandbox


def test_memory_and_time_are_settings():
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [], "output": 0}]}
    hungry = Completion("u", "```python\ndef f(): return len(bytearray(200 << 20)) * 0\n```")
    assert CodeEnvironment(CodeOptions(memory_mb=512)).score(Task("t", (), spec), hungry).reward == 1.0
    assert "MemoryError" in CodeEnvironment(CodeOptions(memory_mb=64)).score(Task("t", (), spec), hungry).feedback


def test_the_environment_states_its_isolation():
    assert CodeEnvironment().isolation == "landlock+seccomp+rlimits"


@pytest.mark.parametrize("wrong", [
    {"time_limit_s": 0}, {"memory_mb": 1}, {"cases": -1}, {"time_limit_s": math.inf}, {"time_limit_s": math.nan},
    {"time_limit_s": -1}, {"time_limit_s": 1e300}, {"memory_mb": 10**12}, {"memory_mb": -1}, {"output_kb": 0},
    {"output_kb": 10**9}, {"value_parts": 0}, {"value_parts": 10**12}, {"recursion_limit": 1},
    {"recursion_limit": 10**9},
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        CodeOptions(**wrong)
    with pytest.raises(ConfigError, match=f"env.*{name}"):
        environment_options("code", wrong)


def test_output_parts_and_recursion_are_settings():
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [], "output": 1}]}

    def feedback(body, **options):
        answer = Completion("u", f"```python\ndef g(n): return n and 1 + g(n - 1)\ndef f(): return {body}\n```")
        return CodeEnvironment(CodeOptions(**options)).score(Task("t", (), spec), answer).feedback

    assert "OutputLimitExceeded" in feedback("'a' * 100_000", output_kb=64)
    assert "Output: 'aaa" in feedback("'a' * 100_000")
    assert "the value has more than 10 parts" in feedback("[0] * 10", value_parts=10)
    assert "Output: [0, 0" in feedback("[0] * 10")
    assert "RecursionError" in feedback("g(2000)")
    assert "Output: 2000" in feedback("g(2000)", recursion_limit=3000)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, 1e9, "6", True, [1]])
def test_a_time_limit_of_a_task_that_is_none_is_refused(seconds):
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [], "output": 1}], "time_limit": seconds}
    with pytest.raises(DataError, match=r"'t'.*time_limit|time_limit.*"):
        CodeEnvironment().score(Task("t", (), spec), Completion("u", "```\ndef f(): return 1\n```"))
    row = {"prompt": "p", "fn_name": "f", "tests": [{"input": [], "output": 1}], "time_limit": seconds}
    with pytest.raises(DataError, match=r"row:1: simple row: field 'time_limit'"):
        row_to_task(row)
