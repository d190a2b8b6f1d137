"""Reward functions of one answer and of a batch, in the shapes that they are written in elsewhere."""

from __future__ import annotations

import functools
import re
import threading
import typing
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from selfdistill.data.tasks import bad_rows, usable_tasks
from selfdistill.envs import rewards
from selfdistill.envs.base import Fault, Scored, score_all, tasks_of
from selfdistill.envs.registry import make_environment
from selfdistill.envs.rewards import RewardFunctions, as_environment
from selfdistill.errors import ConfigError, DataError, EnvError
from selfdistill.runs.events import no_callback
from selfdistill.types import Completion, DropReason, Message, Outcome, Task


def plain(number: int, **spec: Any) -> Task:
    """A task as a row with a text as its prompt gives it."""
    prompt = f"What is {number} plus {number}?"
    return Task(f"t{number}", (Message("user", prompt),), {"prompt": prompt, "answer": str(2 * number), **spec})


def conversation(number: int) -> Task:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{number}?"}]
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]
    return Task(f"c{number}", messages, {"prompt": turns, "answer": str(number)})


def scored(env: Any, *texts: str, tasks: list[Task] | None = None) -> list[Scored]:
    tasks = tasks or [plain(n) for n in range(len(texts))]
    pairs = [
        (task, Completion(f"r{n}", text, tuple(range(len(text))), policy_version=3))
        for n, (task, text) in enumerate(zip(tasks, texts, strict=True))
    ]
    return score_all(as_environment(env), pairs)


def last_number(task, completion):
    numbers = re.findall(r"-?\d+", completion.replace(",", ""))
    if not numbers:
        return 0.0, "No number was found. End with the result."
    return (1.0, "") if numbers[-1] == task["answer"] else (0.0, f"{numbers[-1]} is not the result.")


def test_a_function_reads_text_and_returns_a_number_and_feedback() -> None:
    assert scored(last_number, "So it is 0", "3", "none") == [
        Outcome(1.0),
        Outcome(0.0, "3 is not the result."),
        Outcome(0.0, "No number was found. End with the result."),
    ]


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [
        (2, Outcome(2.0)),
        (-1.5, Outcome(-1.5)),
        (True, Outcome(1.0)),
        ((0.25, "why"), Outcome(0.25, "why")),
        (Outcome(0.5, "x", {"a": 1}), Outcome(0.5, "x", {"a": 1})),
        (numpy.float32(0.5), Outcome(0.5)),
        (torch.tensor(0.5), Outcome(0.5)),
        ((numpy.bool_(True), "yes"), Outcome(1.0, "yes")),
    ],
)
def test_every_shape_of_a_reward(returned: Any, outcome: Outcome) -> None:
    (found,) = scored(lambda task, completion: returned, "x")
    assert found == outcome
    assert type(found.reward) is float  # type: ignore[union-attr]


def by_name(task: Task, done: Completion) -> float:
    return done.policy_version


def by_module(task, done: rewards.Completion):
    return done.policy_version


def by_text(task: Task, done: str) -> float:
    return len(done)


class Callable:
    def __call__(self, task: Task, done: typing.Any) -> float:
        return len(done)

    def method(self, task: Task, done: Completion) -> float:
        return done.policy_version


@pytest.mark.parametrize(
    ("function", "reward"),
    [
        (by_name, 3),
        (by_module, 3),
        (Callable().method, 3),
        (functools.partial(by_name), 3),
        (by_text, 5),
        (Callable(), 5),
        (lambda task, done: len(done), 5),
        (lambda *both: len(both[1]), 5),
    ],
)
def test_the_annotation_completion_asks_for_one_and_everything_else_gets_text(function: Any, reward: float) -> None:
    assert scored(function, "12345") == [Outcome(reward)]


def reward_num_unique_letters(completions, **kwargs):
    """Of TRL's documentation, for a data set of plain texts."""
    return [float(len(set(completion))) for completion in completions]


def format_reward_func(completions, **kwargs):
    """Of TRL's documentation, for conversations."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def typed_format_reward(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    """As TRL's own `think_format_reward`: of conversations, by its annotation."""
    return [1.0 if "</think>" in completion[0]["content"] else 0.0 for completion in completions]


def correct(prompts: list[str], completions: list[str], answer: list[str]) -> list[float | None]:
    return [
        None if prompt.startswith("What is 0") else float(completion == own)
        for prompt, completion, own in zip(prompts, completions, answer, strict=True)
    ]


def short(completion_ids, **kwargs):
    return numpy.array([-0.1 * len(ids) for ids in completion_ids])


def test_functions_of_a_batch_read_texts_or_messages_as_the_prompt_was_written() -> None:
    assert scored(reward_num_unique_letters, "aab", "c") == [
        Outcome(2.0, details={"reward_num_unique_letters": 2.0}),
        Outcome(1.0, details={"reward_num_unique_letters": 1.0}),
    ]
    found = scored(
        format_reward_func, "<think>a</think><answer>1</answer>", "1", tasks=[conversation(1), conversation(2)]
    )
    assert [outcome.reward for outcome in found] == [1.0, 0.0]  # type: ignore[union-attr]
    found = scored(typed_format_reward, "<think>a</think>1", "1")
    assert [outcome.reward for outcome in found] == [1.0, 0.0]  # type: ignore[union-attr]


def test_prompts_columns_and_everything_else_arrive_under_their_names() -> None:
    seen: dict[str, Any] = {}

    def watch(prompts, completions, completion_ids, answer, level=(), trainer_state=None, **rest):
        seen.update(locals())
        return [0.0] * len(prompts)

    tasks = [plain(1, level="easy"), conversation(2), Task("bare", (Message("user", "Hm?"),), {"answer": "-"})]
    scored(watch, "ab", "c", "", tasks=tasks)
    assert seen["prompts"][0] == "What is 1 plus 1?"
    assert seen["prompts"][1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2?"}]
    assert seen["prompts"][2] == "Hm?"
    assert seen["completions"] == ["ab", [{"role": "assistant", "content": "c"}], ""]
    assert seen["completion_ids"] == [[0, 1], [0], []]
    assert (seen["answer"], seen["level"]) == (["2", "2", "-"], ["easy", None, None])
    assert seen["trainer_state"].global_step == 3
    assert seen["rest"].keys() == {"log_metric", "log_extra"}


def test_a_list_adds_up_and_keeps_each_reward() -> None:
    assert scored([correct, short], "0", "2") == [
        Outcome(-0.1, details={"short": -0.1}),
        Outcome(0.9, details={"correct": 1.0, "short": -0.1}),
    ]
    weighted = RewardFunctions([correct, short], weights=[2.0, 0.5])
    assert weighted.name == "correct+short"
    assert [outcome.reward for outcome in scored(weighted, "0", "2")] == [-0.05, 1.95]  # type: ignore[union-attr]
    twice = scored([short, short], "a")
    assert twice == [Outcome(-0.2, details={"short_0": -0.1, "short_1": -0.1})]


def test_feedback_of_several_functions_is_joined_and_what_they_log_is_kept() -> None:
    def one(completions, log_metric, log_extra):
        log_metric("mean", 0.5)
        log_extra("parsed", [text.upper() for text in completions])
        return [(0.0, "Too short."), (1.0, "")]

    def other(completions, **kwargs):
        return [(0.0, "No number."), (1.0, "Well done.")]

    assert scored([one, other], "a", "b") == [
        Outcome(0.0, "Too short.\nNo number.", {"mean": 0.5, "parsed": "A", "one": 0.0, "other": 0.0}),
        Outcome(2.0, "Well done.", {"mean": 0.5, "parsed": "B", "one": 1.0, "other": 1.0}),
    ]


def test_an_answer_to_which_no_function_applies_is_dropped_and_is_no_failure() -> None:
    first, second = scored(correct, "0", "2")
    assert isinstance(first, Fault)
    assert first == Fault(DropReason.NOT_APPLICABLE, "no reward applies: correct returned None")
    assert second == Outcome(1.0, details={"correct": 1.0})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "'broken' returned None; expected a list of 2 rewards, one for each completion"),
        (0.5, "'broken' returned 0.5; expected a list of 2 rewards"),
        ([1.0], "'broken' returned [1.0]; expected a list of 2 rewards"),
        ([1.0] * 3, "'broken' returned [1.0, 1.0, 1.0]; expected a list of 2 rewards"),
        ([float("nan"), "x"], "'broken': the reward is not a finite number: nan"),
        ([[1.0], {}], "'broken': expected a number, (number, feedback) or an Outcome, got list: [1.0]"),
        ([(1.0, 3), None], "'broken': the feedback is not text: 3"),
    ],
)
def test_a_batch_of_another_shape_is_dropped_with_what_was_returned(returned: Any, message: str) -> None:
    def broken(completions, **kwargs):
        return returned

    found = scored([broken, short], "a", "b")[0]
    assert isinstance(found, Fault)
    assert found.drop is DropReason.BAD_OUTCOME
    assert message in found.text


def test_a_batch_that_raises_is_dropped_with_the_traceback() -> None:
    def raises(completions, **kwargs):
        return [1 / 0 for _ in completions]

    found = scored([short, raises], "a", "b")
    assert [entry.drop for entry in found] == [DropReason.ENV_RAISED] * 2  # type: ignore[union-attr]
    assert "in raises" in found[0].text  # type: ignore[union-attr]
    assert "ZeroDivisionError" in found[1].text  # type: ignore[union-attr]


def test_a_batch_that_hangs_is_given_up() -> None:
    released = threading.Event()

    def hangs(completions, **kwargs):
        released.wait(30)
        return [1.0] * len(completions)

    env = RewardFunctions([hangs])
    env.time_limit_s = 0.05
    found = scored(env, *"abcdefghi")
    released.set()
    assert found == [Fault(DropReason.ENV_TIMEOUT, "no outcomes of 9 answers after 0.1 s")] * 9


def test_a_column_that_a_function_reads_has_to_be_there() -> None:
    def solved(completions, solution, **kwargs):
        return [1.0] * len(completions)

    env = RewardFunctions([solved])
    assert env.unusable(plain(1, solution="2")) == ""
    why = env.unusable(plain(1, solutions="2"))
    assert (
        why
        == "the reward function 'solved' reads the column 'solution', which task 't1' lacks; did you mean 'solutions'?"
    )
    with pytest.raises(DataError, match="did you mean 'solutions'"):
        usable_tasks([plain(1, solutions="2")], bad_rows(env, [plain(1, solutions="2")]), no_callback)


async def later(task, completion):
    return 1.0


class Later:
    async def __call__(self, completions, **kwargs):
        return [1.0]


class NoFunction:
    name = "fixed"
    __slots__ = ()


class Nameless:
    __slots__ = ()

    def score(self, task: Task, completion: Completion) -> Outcome:
        return Outcome(1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"is no environment\n  got  3\n"),
        ("verbs", "is no environment"),
        (NoFunction(), "is no environment"),
        (later, r"'later' cannot be a reward function\n  got  async def\n.*asyncio\.run"),
        (Later(), "'Later' cannot be a reward function"),
        (functools.partial(later), "'later' cannot be a reward function"),
        (lambda completion: 1.0, r"'lambda' cannot be a reward function\n  got  the parameters \(completion\)"),
        (lambda task, completion, more: 1.0, r"the parameters \(task, completion, more\)"),
        (max, "'max' cannot be a reward function"),
        ([], "0 functions, 0 weights"),
        ([last_number], "only functions of a batch can be added up"),
        ([short, 3], "only functions of a batch can be added up"),
        (Nameless, "needs a name"),
    ],
)
def test_what_cannot_be_an_environment_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_environment(value)
    with pytest.raises(ConfigError, match="2 functions, 1 weights"):
        RewardFunctions([short, correct], weights=[1.0])


def test_one_answer_alone_is_scored_or_an_error() -> None:
    env = as_environment([correct])
    assert env.score(plain(1), Completion("r", "2")).reward == 1.0
    with pytest.raises(EnvError, match="no reward applies"):
        env.score(plain(0), Completion("r", "2"))


FILE = """
from selfdistill import Message, Task
tasks = [Task("a", (Message("user", "1?"),), {"answer": "1"})]
def one(task, completion): return float(completion == task["answer"])
def batch(prompts, completions, answer): return [(float(c == a), p) for p, c, a in zip(prompts, completions, answer)]
def short(completions, **kwargs): return [-float(len(c)) for c in completions]
both = [batch, short]
"""


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("one", Outcome(1.0)),
        ("batch", Outcome(1.0, "1?", {"batch": 1.0})),
        ("both", Outcome(0.0, "1?", {"batch": 1.0, "short": -1.0})),
    ],
)
def test_the_command_line_takes_all_of_them(tmp_path: Path, name: str, outcome: Outcome) -> None:
    (tmp_path / "own.py").write_text(FILE)
    env = make_environment(f"{tmp_path}/own.py:{name}", {}, seed=0)
    assert env.name == "own"
    assert score_all(env, [(tasks_of(env, "train")[0], Completion("r", "1"))]) == [outcome]
