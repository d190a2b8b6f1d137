"""Tools: schemas from typed functions, calls in the formats of four families, errors that a model can learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import selfdistill as sd
from selfdistill.envs.tools import Call, Tool, Tools, parse_calls, python, run_tests
from selfdistill.errors import ConfigError
from selfdistill.prompts.render import ChatTemplate
from selfdistill.types import Completion, Message, Observation, Outcome, Task
from tiny_models import CHATML, tiny_policy_dir, tiny_tokenizer

TASK = Task("q", (Message("user", "What is 2 plus 3?"),), {"answer": "5"})
QWEN = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    + CHATML
)


def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    return a + b


def seen(task: Task, word: str) -> bool:
    """Whether the question has a word."""
    return word in task.messages[0].content


def breaks() -> str:
    """Always raises."""
    raise RuntimeError("no connection")


def right(task: Task, completion: str) -> float:
    return float(completion.strip() == task["answer"])


CALL = {"name": "add", "arguments": {"a": 2, "b": 3}}
ADD = Call("add", {"a": 2, "b": 3})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>", [ADD]),
        (f"Let me add.\n<tool_call>{json.dumps(CALL)}</tool_call>\n<tool_call>{json.dumps(CALL)}", [ADD, ADD]),
        ("<think>a <tool_call> would do</think>\n\n5", []),
        (json.dumps({"name": "add", "parameters": {"a": 2, "b": 3}}), [ADD]),
        ("<|python_tag|>" + json.dumps({"name": "add", "parameters": {"a": 2, "b": 3}}), [ADD]),
        (f"[TOOL_CALLS] {json.dumps([CALL, CALL])}", [ADD, ADD]),
        (json.dumps([CALL]), [ADD]),
        (f"I call it.\n```json\n{json.dumps(CALL)}\n```", [ADD]),
        ('```json\n{"answer": 5}\n```', []),
        ('{"answer": 5}', []),
        ("5", []),
        (json.dumps({"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}), [ADD]),
    ],
)
def test_calls_are_read_in_the_formats_of_the_families(text: str, calls: list[Call]) -> None:
    assert parse_calls(text) == calls


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<tool_call>{'name': 'add'}</tool_call>", "the call is no JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', "a call needs a name"),
        ('<tool_call>{"name": "add", "arguments": "{"}</tool_call>', "the arguments are no JSON"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "the arguments should be an object"),
        ("<tool_call>" + "[" * 100_000, "the call is no JSON"),
    ],
)
def test_a_call_that_cannot_be_read_has_a_fault(text: str, fault: str) -> None:
    (call,) = parse_calls(text)
    assert fault in call.fault


def test_a_schema_names_types_defaults_and_the_description() -> None:
    schema = Tool(add).schema["function"]
    assert (schema["name"], schema["description"]) == ("add", "Adds two numbers.")
    assert schema["parameters"]["required"] == ["a"]
    assert schema["parameters"]["properties"]["b"]["default"] == 1
    assert "task" not in Tool(seen).schema["function"]["parameters"]["properties"]


def test_a_parameter_without_a_type_is_refused() -> None:
    def loose(query, limit: int = 3) -> str:
        return query

    with pytest.raises(ConfigError, match=r"'loose' has a parameter without a type(.|\n)*query(.|\n)*annotate it"):
        Tools([loose], right)
    with pytest.raises(ConfigError, match="different names"):
        Tools([add, add], right)


def test_what_is_wrong_with_a_call_is_read_by_the_model() -> None:
    env = Tools([add, seen, breaks], right)
    state = env.start(TASK)

    def result(name: str, **arguments: object) -> str:
        found = env.step(state, Completion("a", f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}"))
        assert isinstance(found, Observation)
        (message,) = found.messages
        assert message.role == "tool"
        return message.content

    assert result("add", a=2, b=3) == "5"
    assert result("seen", word="plus") == "true"
    assert "there is no tool 'ad'; did you mean 'add'?" in result("ad", a=2)
    assert "wrong arguments of add, which takes a, b: a: Input should be a valid integer" in result("add", a="two")
    assert "c: Extra inputs are not permitted" in result("add", a=1, c=2)
    assert result("breaks") == "Error: RuntimeError: no connection"
    assert env.step(state, Completion("a", "5")) == Outcome(1.0, "", {"calls": 6, "failed_calls": 4})
    ended = env.finish(state)
    assert (ended.reward, dict(ended.details)) == (0.0, {"calls": 6, "failed_calls": 4})
    assert "after 6 calls, without an answer" in ended.feedback


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        ('{"name": "add", "arguments": {"a": 2, "b": undefined, "b"', True),
        ('[{"name": "add", "parameters": {"a": 2', True),
        ('{"answer": {"a": 5', False),
        ("{x | x > 2}", False),
    ],
)
def test_a_bare_call_that_was_cut_off_is_a_call_with_a_fault(text: str, is_call: bool) -> None:
    assert [bool(call.fault) for call in parse_calls(text)] == [True] * is_call


def test_several_calls_in_a_turn_have_a_result_each() -> None:
    env = Tools([add], right)
    found = env.step(env.start(TASK), Completion("a", f"[TOOL_CALLS] {json.dumps([CALL, CALL])}"))
    assert found == Observation((Message("tool", "5"), Message("tool", "5")))


def test_programs_of_a_model_run_in_the_sandbox() -> None:
    assert python("print(6 * 7)") == "42\n"
    assert "ZeroDivisionError" in python("1 / 0")
    assert "Error" in python("open('/etc/passwd').read()")
    spec = {"kind": "functional", "fn_name": "f", "public": [{"input": [1], "output": 2}], "private": []}
    task = Task("double", TASK.messages, spec)
    assert run_tests("def f(x):\n    return 2 * x", task) == "All tests pass."
    assert "2" in run_tests("def f(x):\n    return x", task)


def test_a_template_with_tools_writes_them_and_another_gets_a_system_turn() -> None:
    schemas = Tools([add], right).tools
    for text, note in ((QWEN, False), (CHATML, True)):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = text
        template = ChatTemplate(tokenizer, tools=schemas)
        written = tokenizer.decode(template.prompt(TASK.messages))
        assert written.count("Adds two numbers.") == 1
        assert ("fenced JSON" in " ".join(template.check())) == note
        assert ("```json" in written) == note
        asked = tokenizer.decode(template.prompt((Message("system", "Be kind."), *TASK.messages)))
        assert "Be kind." in asked


def now() -> str:
    """It."""
    return "5"


def test_a_run_over_tools_trains(tmp_path: Path) -> None:
    template = CHATML.replace("{% for m", "{% if tools %}{{ tools[0].function.name }}{% endif %}{% for m", 1)
    run = sd.train(
        tiny_policy_dir(tmp_path / "model", template=template),
        method="grpo",
        env=Tools([now], lambda task, completion: len(completion) % 2),
        data=[TASK],
        out=tmp_path / "run",
        steps=1,
        tasks_per_step=1,
        rollouts_per_task=4,
        sampling={"max_new_tokens": 4},
        evaluation={"tasks": 1},
        device="cpu",
        progress=False,
    )
    assert len(run.steps) == 1
    assert all("calls" in rollout.details for rollout in run.rollouts())
