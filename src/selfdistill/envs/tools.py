"""Conversations with tools: typed Python functions, called by the model in the format of its chat template.

    def add(a: int, b: int) -> int:
        "Adds two numbers."
        return a + b

    env = Tools([add], reward)                    # a turn without a call is the answer, which `reward` scores

A call may be written in the formats of Qwen and Hermes (<tool_call> tags), of Llama 3 (JSON alone), of Mistral
([TOOL_CALLS] and a list), or as fenced JSON. What is wrong with a call is an observation that the model can learn from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from inspect import Parameter, getdoc, signature
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from selfdistill.envs.base import Fault, checked
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.rewards import as_environment, name_of
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.pool import shared_sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program
from selfdistill.envs.scoring import fenced_blocks
from selfdistill.envs.turns import AroundScoring, single_turn
from selfdistill.errors import ConfigError, nearest
from selfdistill.prompts.context import without_thinking
from selfdistill.types import Completion, Message, Observation, Outcome, Task

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_LISTED = re.compile(r"\[TOOL_CALLS\]\s*")
_OPENED = re.compile(r'\[?\s*\{\s*"(name|function)"\s*:[^{}]*\{')  # a call that may have been cut off
_LLAMA_TAG = "<|python_tag|>"
NO_ANSWER = "The conversation ended after {calls} calls, without an answer. Once you have the results, answer."
MAX_RESULT = 4000  # characters of a result that the model reads


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the model wrote it; `fault` says why it cannot be read."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def parse_calls(text: str) -> list[Call]:
    """The calls in a turn, in order; none in an ordinary answer. Text that opens as a call and is no JSON is a call
    with a fault. Takes time linear in the length."""
    text = without_thinking(text).strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        return [call for body in tagged for call in _read(body)]
    listed = _LISTED.split(text)
    if len(listed) > 1:
        return [call for body in listed[1:] for call in _read(body)]
    bare = text.removeprefix(_LLAMA_TAG).strip()
    if bare.startswith(("{", "[")):
        found = list(_read(bare))
        return found if text != bare or _OPENED.match(bare) or any(call.name for call in found) else []
    blocks = [body for tag, body in fenced_blocks(text) if tag in ("json", "tool_call", "")]
    return [call for body in blocks for call in _read(body) if call.name]


def before_calls(text: str) -> str:
    """The text of a turn with calls before the first of them, without thinking."""
    text = without_thinking(text).strip()
    marks = [mark for mark in ("<tool_call>", "[TOOL_CALLS]", _LLAMA_TAG) if mark in text]
    return "" if text.startswith(("{", "[")) else text.partition(marks[0] if marks else "```")[0].strip()


def _read(body: str) -> Iterator[Call]:
    try:
        found, _ = json.JSONDecoder().raw_decode(body.strip())
    except (ValueError, RecursionError) as error:
        yield Call(fault=f"the call is no JSON: {error}")
        return
    for item in found if isinstance(found, list) else [found]:
        inner = item.get("function", item) if isinstance(item, dict) else item
        inner = inner if isinstance(inner, dict) else item
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            yield Call(fault='a call needs a name: {"name": …, "arguments": {…}}')
            continue
        arguments = inner.get("arguments", inner.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                yield Call(inner["name"], fault=f"the arguments are no JSON: {error}")
                continue
        if isinstance(arguments, dict):
            yield Call(inner["name"], arguments)
        else:
            yield Call(inner["name"], fault="the arguments should be an object")


class Tool:
    """A Python function as a tool. A parameter `task` is filled in, and is none that the model gives.

    Raises `ConfigError` for a parameter without an annotation.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.name = function, name_of(function)
        hints, fields = get_type_hints(function), dict[str, Any]()
        for name, parameter in signature(function).parameters.items():
            if name == "task":
                continue
            if name not in hints or parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                what = f"the tool {self.name!r} has a parameter without a type"
                do = f"annotate it, such as {name}: str; the model reads the types of all parameters"
                raise ConfigError(what, got=str(parameter), do=do)
            fields[name] = (hints[name], ... if parameter.default is Parameter.empty else parameter.default)
        self.takes_task = "task" in signature(function).parameters
        self._arguments: type[BaseModel] = create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)

    @property
    def schema(self) -> dict[str, Any]:
        """The description that chat templates take, in the form of OpenAI's API."""
        parameters = {k: v for k, v in self._arguments.model_json_schema().items() if k != "title"}
        about = {"name": self.name, "description": getdoc(self.function) or "", "parameters": parameters}
        return {"type": "function", "function": about}

    def run(self, arguments: Mapping[str, Any], task: Task) -> str:
        """The result as text, JSON where it is none; or what is wrong with the arguments, or was raised."""
        try:
            given = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            takes = ", ".join(self._arguments.model_fields) or "no arguments"
            return f"Error: wrong arguments of {self.name}, which takes {takes}: {'; '.join(wrong)}"
        values = {name: getattr(given, name) for name in self._arguments.model_fields}
        try:
            result = self.function(**values, **({"task": task} if self.takes_task else {}))
        except Exception as error:  # noqa: BLE001 (a tool of the user's; the model reads what it raised)
            return f"Error: {type(error).__name__}: {error}"
        text = result if isinstance(result, str) else TypeAdapter(Any).dump_json(result, fallback=str).decode()
        return text if len(text) <= MAX_RESULT else f"{text[:MAX_RESULT]} … ({len(text)} characters)"


@dataclass(slots=True)
class ToolState:
    """The state of a conversation with tools."""

    task: Task
    calls: list[Call] = field(default_factory=list)
    faults: int = 0


class Tools(AroundScoring):
    """An environment in which the model may call functions before it answers.

    A turn with calls is followed by a message of role `tool` for each; a turn without one is the answer, which `score`
    (a reward function or an environment of one turn) scores. The outcome's details count calls and those that failed.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], score: Any, *, name: str = "tools") -> None:
        super().__init__(single_turn(as_environment(score), "tools"))
        tools = [Tool(function) for function in functions]
        self.name, self._by_name = name, {tool.name: tool for tool in tools}
        if not tools or len(self._by_name) < len(tools):
            got = ", ".join(tool.name for tool in tools) or "none"
            raise ConfigError("an environment of tools needs functions of different names", got=got)
        self.tools = tuple(tool.schema for tool in tools)

    def for_evaluation(self) -> Tools:
        """The same tools; answers are scored by what training never shows."""
        other, private = copy(self), getattr(self.env, "for_evaluation", None)
        other.env = private() if private is not None else self.env
        return other

    def start(self, task: Task) -> ToolState:
        """A conversation without calls."""
        return ToolState(task)

    def step(self, state: ToolState, completion: Completion) -> Observation | Outcome | Fault:
        """The results of the calls in a turn, or the outcome of an answer."""
        calls = parse_calls(completion.text)
        if calls:
            return Observation(tuple(Message("tool", self._result(state, call)) for call in calls))
        found = checked(self.env.score(state.task, completion))
        return found if isinstance(found, Fault) else replace(found, details={**found.details, **_counts(state)})

    def finish(self, state: ToolState) -> Outcome:
        """The outcome of a conversation that ends with a call."""
        return Outcome(0.0, NO_ANSWER.format(calls=len(state.calls)), _counts(state))

    def _result(self, state: ToolState, call: Call) -> str:
        state.calls.append(call)
        tool = self._by_name.get(call.name)
        if call.fault:
            text = f"Error: {call.fault}"
        elif tool is None:
            text = f"Error: there is no tool {call.name!r}; {nearest(call.name, self._by_name)}"
        else:
            text = tool.run(call.arguments, state.task)
        state.faults += text.startswith("Error: ")
        return text


def _counts(state: ToolState) -> dict[str, int]:
    return {"calls": len(state.calls), "failed_calls": state.faults}


def python(code: str) -> str:
    """Runs a Python program in a sandbox and returns what it prints, or the error."""
    limits = SandboxLimits()
    results = shared_sandbox().run(Program(code, Mode.STDIN, ("",)), limits)
    if not results or results[0].ending is Ending.TIMED_OUT:
        return f"Error: the program took longer than {limits.time_limit_s:g} s"
    (result,) = results
    return str(result.value) if result.ending is Ending.DONE else f"Error: {result.error}"


def run_tests(code: str, task: Task) -> str:
    """Runs a program on the tests of the task that may be seen, and returns the failures."""
    outcome = CodeEnvironment().score(task, Completion("run_tests", f"```python\n{code}\n```"))
    return outcome.feedback or ("All tests pass." if outcome.reward >= 1 else "Some tests fail.")
