"""Rewards, records and feedback, with programs really run."""

import textwrap
import tracemalloc

import pytest

from sandbox_parts import needs_isolation
from selfdistill.envs import scoring
from selfdistill.envs.base import score_all
from selfdistill.envs.code import CodeEnvironment, CodeOptions
from selfdistill.envs.compare import same_value
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.scoring import cases_of, entry_of, extract_code
from selfdistill.errors import DataError, EnvError
from selfdistill.prompts.context import group_members
from selfdistill.types import Completion, DropReason, Outcome, Rollout, RolloutGroup, StopReason, Task

pytestmark = needs_isolation
SORT = {
    "kind": "functional",
    "fn_name": "f",
    "public": [{"input": [[3, 1, 2]], "output": [1, 2, 3]}, {"input": [[]], "output": []}],
    "private": [{"input": [[2, 2, 1]], "output": [1, 2, 2]}],
}
ADD = {"kind": "stdin", "public": [{"input": "1 2\n", "output": "3\n"}, {"input": "10\n20\n", "output": "30"}]}
ASSERTS = {"kind": "assert", "public": ["assert g(2) == 4", "assert g(3) == 9"], "setup": "base = 1"}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(1) as box:
        yield box


def score_batch(sandbox, pairs, **options):
    return CodeEnvironment(CodeOptions(**options), sandbox=sandbox).score_batch(pairs)


def score(sandbox, spec, code, **options):
    completion = Completion("u1", f"```python\n{code}\n```")
    return score_batch(sandbox, [(Task("t", (), spec), completion)], **{"time_limit_s": 1.0, **options})[0]


def test_a_right_function_gets_everything(sandbox):
    outcome = score(sandbox, SORT, "def f(xs): return tuple(sorted(xs))")
    assert (outcome.reward, outcome.feedback) == (1.0, "")
    assert outcome.details == {"tests_passed": 1.0, "tests": 2, "failure": "none"}


def test_a_wrong_function_is_shown_input_output_and_expectation(sandbox):
    outcome = score(sandbox, SORT, "def f(xs): return xs")
    assert outcome.reward == 0.0
    assert outcome.feedback == "Wrong answer.\nInput: [3, 1, 2]\nOutput: [3, 1, 2]\nExpected: [1, 2, 3]"
    assert outcome.details == {"tests_passed": 0.5, "tests": 2, "failure": "wrong"}


def test_arguments_are_shown_as_written_not_as_changed(sandbox):
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [[3, 1], "a b"], "output": 0}]}
    assert (
        "Input: [3, 1], 'a b'\nOutput: 1\n"
        in score(sandbox, spec, "def f(xs, s):\n    xs.clear()\n    return 1").feedback
    )


def test_the_split_decides_which_tests_count(sandbox):
    only_public = "def f(xs): return [1, 2, 3] if xs else []"
    rewards = {split: score(sandbox, SORT, only_public, split=split).reward for split in ("public", "private", "all")}
    assert rewards == {"public": 1.0, "private": 0.0, "all": 0.0}
    assert len(cases_of(Task("t", (), ADD), "private")) == 2  # a task without a split has only one set


def test_an_error_names_type_line_and_last_input(sandbox):
    outcome = score(sandbox, SORT, "def f(xs):\n    first = xs[0]\n    return sorted(xs)")
    assert outcome.feedback == "Runtime error.\nIndexError: list index out of range\nLine 2 in f\nLast input: []"
    assert outcome.details == {"tests_passed": 0.5, "tests": 2, "failure": "error"}


def test_an_error_while_loading_has_no_input(sandbox):
    outcome = score(sandbox, SORT, "import nothing_here")
    expected = "Runtime error.\nModuleNotFoundError: No module named 'nothing_here'\nLine 1 in <module>"
    assert (outcome.feedback, outcome.details["tests_passed"]) == (expected, 0.0)


def test_a_time_limit_names_its_input(sandbox):
    outcome = score(sandbox, SORT, "def f(xs):\n    while not xs: pass\n    return sorted(xs)")
    assert outcome.feedback == "Time limit exceeded.\nLast input: []"
    assert outcome.details == {"tests_passed": 0.5, "tests": 2, "failure": "timeout"}


def test_a_task_s_own_time_limit_counts(sandbox):
    slow = "import time\ndef f(xs):\n    time.sleep(0.4)\n    return sorted(xs)"
    assert score(sandbox, {**SORT, "time_limit": 0.2}, slow).details["failure"] == "timeout"
    assert score(sandbox, {**SORT, "time_limit": 5}, slow, time_limit_s=0.2).reward == 1.0


def test_whole_programs(sandbox):
    assert score(sandbox, ADD, "import sys\nprint(sum(map(int, sys.stdin.read().split())))").reward == 1.0
    one_line = score(sandbox, ADD, "print(sum(map(int, input().split())))")
    assert one_line.feedback == "Wrong answer.\nInput: 10\n20\n\nOutput: 10\n\nExpected: 30"
    broken = score(sandbox, ADD, "n = 1\na, b = input().split()\nprint(int(a) + int(b))")
    expected = "ValueError: not enough values to unpack (expected 2, got 1)\nLine 2 in <module>\nLast input: 10\n20\n"
    assert broken.feedback == f"Runtime error.\n{expected}"


def test_assertions_show_the_value(sandbox):
    assert score(sandbox, ASSERTS, "def g(x): return x * x * base").reward == 1.0
    outcome = score(sandbox, ASSERTS, "def g(x): return 2 * x")
    assert outcome.feedback == "Wrong answer.\nInput: g(3)\nOutput: 6\nExpected: 9"
    assert outcome.details["tests_passed"] == 0.5
    raised = score(sandbox, ASSERTS, "def g(x): return x + 'a'")
    assert raised.feedback.endswith("\nLine 1 in g\nLast input: assert g(2) == 4")


@pytest.mark.parametrize("spec", [SORT, ADD, ASSERTS])
@pytest.mark.parametrize("trick", [
    "import sys; sys.exit(0)", "import os; os._exit(0)", "print('3\\n30')\nraise SystemExit", "exit()",
    "import os; os.closerange(0, 64)", "def check(f): pass", "import sys; sys.modules.clear()",
])  # fmt: skip
def test_tricks_earn_nothing(sandbox, spec, trick):
    assert score(sandbox, spec, trick).reward == 0.0


def test_expected_outputs_are_not_in_the_program_s_process(sandbox):
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [1], "output": "needle" * 2}]}
    search = """
    import gc, sys

    def f(x):
        needle, frame, seen = "".join(["need", "le"] * 2), sys._getframe().f_back, []
        while frame:
            seen.append(repr(frame.f_locals))
            frame = frame.f_back
        seen += [repr(found) for found in gc.get_objects() if type(found) in (dict, list, tuple) and len(found) < 9]
        return needle if any(needle in text for text in seen) else "not found"
    """
    outcome = score(sandbox, spec, textwrap.dedent(search), time_limit_s=20)
    assert "Output: 'not found'" in outcome.feedback


def test_a_missing_block_and_a_cut_one_get_their_own_feedback(sandbox):
    task = Task("t", (), SORT)
    plain = Completion("a", "def f(xs): return sorted(xs)")
    cut = Completion("b", "```python\ndef f(xs):\n    return sor", stop=StopReason.LENGTH)
    missing, truncated = score_batch(sandbox, [(task, plain), (task, cut)])
    assert (missing.reward, truncated.reward) == (0.0, 0.0)
    assert "fenced block" in missing.feedback
    assert "cut off" in truncated.feedback
    assert (missing.details["failure"], truncated.details["failure"]) == ("missing", "truncated")


DOUBLE = "```python\ndef f(xs): return sorted(xs)\n```"
DRAFT = "```python\n# a longer draft that is wrong\ndef f(xs):\n    return xs\n```"


@pytest.mark.parametrize("answer", [
    f"<think>\n{DRAFT}\n</think>\n{DOUBLE}", f"{DRAFT}\nno.\n</think>\n{DOUBLE}", f"{DOUBLE}\n<think>\n{DRAFT}",
    f"<think>\n{DRAFT}\n</think>\n{DOUBLE}\n<think>or\n{DRAFT}\n</think>", f"<think>{DRAFT}<think></think>{DOUBLE}",
])  # fmt: skip
def test_the_program_scored_is_the_one_that_others_read(sandbox, answer):
    task, done = Task("t", (), SORT), Completion("a", answer)
    (outcome,) = score_batch(sandbox, [(task, done)])
    assert outcome.reward == 1.0
    group = RolloutGroup(task, (Rollout(task, (), Completion("b", ""), Outcome(0.0)), Rollout(task, (), done, outcome)))
    (shown,) = group_members(group, 0, solved=True)
    assert DRAFT not in shown
    assert DOUBLE in shown


def test_thinking_alone_is_no_program(sandbox):
    assert score_batch(sandbox, [(Task("t", (), SORT), Completion("a", f"<think>\n{DOUBLE}"))])[0].reward == 0.0


def test_the_function_that_the_tests_name_is_looked_for(sandbox):
    def named(tests, **spec):
        return entry_of(Task("t", (), {"kind": "assert", "public": tests, **spec}))

    assert named(["assert f(1) == 2", "assert f(2) == g(1)"]) == "f"
    assert named(["assert abs(f(1) - 2) < 1e-3"], private=["x = 3\nassert set(f(x)) == {1}"]) == "f"
    assert named(["import math\nassert math.isclose(f(1), 2)"]) == "f"
    assert named(["from math import sqrt\ndef h(): pass\nassert sqrt(f(1)) == h()"]) == "f"
    assert named(["assert f(g(1)) == 2"]) == named(["assert f("]) == named(["assert x == 1"]) == ""
    assert named(["check(f)"], fn_name="f") == "f"
    example = "```python\nfor number in range(10):\n    print(number, g(number))\n```"
    answer = Completion("a", f"```python\ndef g(x): return x * x\n```\nFor example:\n{example}")
    assert score_batch(sandbox, [(Task("t", (), ASSERTS), answer)])[0].reward == 1.0


def test_a_fault_in_scoring_one_answer_costs_that_answer_alone(sandbox, monkeypatch):
    def comparison(got, expected):
        if got == [13]:
            raise OverflowError(f"no luck with {got} \ud800")
        return same_value(got, expected)

    def extraction(text, name):
        return 1 / 0 if text == "0" else extract_code(text, name)

    monkeypatch.setattr(scoring, "same_value", comparison)
    monkeypatch.setattr(scoring, "extract_code", extraction)
    unlucky = "```python\ndef f(xs): return [13]\n```"
    pairs = [(Task("t", (), SORT), Completion(str(n), text)) for n, text in enumerate((DOUBLE, unlucky, "0", DOUBLE))]
    env = CodeEnvironment(sandbox=sandbox)
    first, second, third, last = score_all(env, pairs)
    assert first.reward == last.reward == 1.0
    assert second.drop is third.drop is DropReason.SCORING_FAILED
    assert second.text.endswith("OverflowError: no luck with [13] \\ud800\n")
    assert "ZeroDivisionError" in third.text
    with pytest.raises(EnvError, match="could not be scored"):
        env.score(*pairs[1])


def test_an_interrupt_of_scoring_passes_through(sandbox, monkeypatch):
    def interrupted(text, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "extract_code", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(sandbox, SORT, "pass")


def test_outcomes_keep_their_order(sandbox):
    codes = ["```\ndef f(xs): return sorted(xs)\n```", "no code", "```\ndef f(xs): return 0\n```", "```\nx\n```"]
    pairs = [(Task("t", (), SORT), Completion(str(i), code)) for i, code in enumerate(codes)]
    failures = [outcome.details["failure"] for outcome in score_batch(sandbox, pairs)]
    assert failures == ["none", "missing", "wrong", "error"]


def test_large_results_are_scored_as_they_arrive_and_not_kept(sandbox):
    tests = [{"input": str(i), "output": "0"} for i in range(3)]
    task = Task("t", (), {"kind": "stdin", "public": tests})
    pairs = [(task, Completion(f"u{i}", f"```\nprint('{i} ' * 250_000)\n```")) for i in range(10, 26)]
    tracemalloc.start()
    try:
        outcomes = score_batch(sandbox, pairs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all("Wrong answer" in outcome.feedback for outcome in outcomes)
    assert peak < 25e6  # the 48 texts take 36 MB, and one is split into tokens while it is compared


def test_group_members_may_be_shown_different_cases(sandbox):
    tests = [{"input": [i], "output": i} for i in range(20)]
    spec = {"kind": "functional", "fn_name": "f", "public": tests}
    pairs = [(Task("t", (), spec), Completion(f"u{i}", "```\ndef f(x): return -1\n```")) for i in range(8)]
    shown = [outcome.feedback for outcome in score_batch(sandbox, pairs, cases=1, random_cases=True)]
    assert len(set(shown)) > 1
    assert shown == [o.feedback for o in score_batch(sandbox, pairs, cases=1, random_cases=True)]
    assert len({outcome.feedback for outcome in score_batch(sandbox, pairs, cases=1)}) == 1
    assert {outcome.feedback for outcome in score_batch(sandbox, pairs, cases=0)} == {"Wrong answer."}


def test_a_task_without_tests_or_of_unknown_kind_is_refused(sandbox):
    with pytest.raises(DataError, match="no tests"):
        score(sandbox, {"kind": "functional", "fn_name": "f", "public": []}, "pass")
    with pytest.raises(DataError, match="unknown kind"):
        score(sandbox, {"kind": "essay", "public": [1]}, "pass")
