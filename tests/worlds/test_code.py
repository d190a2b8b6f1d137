"""The code world on whole data sets: every reference solution is right."""

from pathlib import Path

import pytest

from selfdistill.errors import ConfigError
from selfdistill.types import Completion, Task
from selfdistill.worlds.code import CodeOptions, CodeWorld
from selfdistill.worlds.rows import load_tasks
from selfdistill.worlds.sandbox import IsolationLevel, isolation_level

pytestmark = pytest.mark.skipif(
    isolation_level() is not IsolationLevel.FULL, reason="this machine has no Landlock or no seccomp"
)
MBPP = Path(__file__).parents[3] / "shared" / "data" / "mbpp" / "mbpp.jsonl"
HUMANEVAL_SHAPE = Path(__file__).parent / "data" / "humaneval_shape.jsonl"
UNSOLVED: dict[str, str] = {}  # task id of MBPP -> why its own reference solution cannot pass here


@pytest.mark.skipif(not MBPP.is_file(), reason=f"the MBPP data set is not at {MBPP}")
def test_the_reference_solutions_of_mbpp_pass():
    tasks = load_tasks(MBPP)
    world = CodeWorld(CodeOptions(time_limit_s=60))  # one of them searches for several seconds
    outcomes = world.judge_many([(task, Completion(task.id, task.demonstration)) for task in tasks])
    failed = {task.id: outcome.feedback for task, outcome in zip(tasks, outcomes, strict=True) if outcome.reward < 1}
    assert len(tasks) == 974
    assert failed.keys() == UNSOLVED.keys(), failed


def test_rows_of_humaneval_s_shape():
    tasks = load_tasks(HUMANEVAL_SHAPE)
    world = CodeWorld(CodeOptions(time_limit_s=5))
    right = [Completion(task.id, task.demonstration) for task in tasks]
    outcomes = world.judge_many(list(zip(tasks, right, strict=True)))
    assert [outcome.reward for outcome in outcomes] == [1.0] * 4, outcomes


def test_humaneval_answers_may_repeat_the_function_alone():
    squares = load_tasks(HUMANEVAL_SHAPE)[1]
    world = CodeWorld()
    alone = Completion("a", "```python\ndef count_squares(xs):\n    return sum(map(is_square, xs))\n```")
    wrong = Completion("b", "```python\ndef count_squares(xs):\n    return 0\n```")
    crash = Completion("c", "```python\ndef count_squares(xs):\n    return xs[0]\n```")
    passed, failed, crashed = world.judge_many([(squares, answer) for answer in (alone, wrong, crash)])
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
    world = CodeWorld()
    assert world.judge(Task("t", (), spec), memorised).reward == 1.0
    assert world.for_evaluation().judge(Task("t", (), spec), memorised).reward == 0.0
    assert world.for_evaluation().sandbox is world.sandbox


def test_memory_and_time_are_the_world_s_to_set():
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [], "output": 0}]}
    hungry = Completion("u", "```python\ndef f(): return len(bytearray(200 << 20)) * 0\n```")
    assert CodeWorld(CodeOptions(memory_mb=512)).judge(Task("t", (), spec), hungry).reward == 1.0
    assert "MemoryError" in CodeWorld(CodeOptions(memory_mb=64)).judge(Task("t", (), spec), hungry).feedback


def test_the_world_states_its_isolation():
    assert CodeWorld().isolation == "landlock+seccomp+rlimits"


@pytest.mark.parametrize("wrong", [{"time_limit_s": 0}, {"memory_mb": 1}, {"cases": 0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CodeOptions(**wrong)
