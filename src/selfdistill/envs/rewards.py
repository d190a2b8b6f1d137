"""Reward functions as environments: of one answer, or of a whole batch in the shape that TRL's trainers call.

    def reward(task: Task, completion: str): ...            returns a reward for the answer
    def reward(prompts, completions, **columns): ...        returns a list of rewards, one for each answer

A reward is a finite number, (number, feedback) or an `Outcome`; of a batch also None, where the function does not
apply. `completion` is the text of the answer, or the `Completion` where the parameter is annotated `Completion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import Parameter, Signature, iscoroutinefunction, signature
from types import SimpleNamespace
from typing import Any, TypeAlias

from selfdistill.envs.base import (
    TIME_LIMIT_S,
    ConversationEnvironment,
    Environment,
    Fault,
    Pair,
    Scored,
    checked,
    required,
)
from selfdistill.errors import ConfigError, nearest
from selfdistill.types import Completion, DropReason, Outcome, Task

Function: TypeAlias = Callable[..., Any]
OwnTasks: TypeAlias = Callable[[], Sequence[Task]] | Sequence[Task]

MARKS = ("completions", "completion_ids")  # a function with one of these parameters is one of a batch
KEYWORDS = (*MARKS, "prompts", "trainer_state", "log_metric", "log_extra")  # which are no columns
COLUMNS_LEFT_OUT = ("prompt", "completion", "completion_ids")
_OPEN = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
SHAPES = "give a function (task, completion) or (prompts, completions, **columns), or an object with `score`"


def as_environment(value: Any, *, name: str = "", tasks: OwnTasks = ()) -> Environment:
    """An environment from an environment or its class, a reward function, or a list of functions of a batch, whose
    rewards are added up; `tasks` are those of a function. Raises `ConfigError`."""
    if isinstance(value, type):
        try:
            value = value()
        except (Exception, SystemExit) as error:
            what, do = f"{value.__name__} cannot be made", "let it be made without arguments, or give an object"
            raise ConfigError(what, got=f"{type(error).__name__}: {error}", do=do) from error
    if hasattr(value, "score") or isinstance(value, ConversationEnvironment):
        if not isinstance(getattr(value, "name", None), str):
            try:
                value.name = name or name_of(value)
            except AttributeError as error:
                got, do = repr(value)[:80], 'give it name = "…"'
                raise ConfigError("an environment needs a name", got=got, do=do) from error
        env: Environment = value
        return env
    if isinstance(value, list | tuple):
        return RewardFunctions(value, name=name, tasks=tasks)
    if not callable(value):
        raise ConfigError(f"{name or 'env'} is no environment", got=repr(value)[:80], do=SHAPES)
    if is_of_batch(value):
        return RewardFunctions([value], name=name, tasks=tasks)
    return FunctionEnvironment(value, name, tasks)


def name_of(value: Any) -> str:
    """The name of a function, or of the class of an object."""
    while isinstance(value, partial):
        value = value.func
    return str(getattr(value, "__name__", type(value).__name__)).strip("<>")


def is_of_batch(function: Function) -> bool:
    """Whether a function takes a whole batch. Raises `ConfigError` for one that cannot be a reward function."""
    return not _signature(function).parameters.keys().isdisjoint(MARKS)


def _signature(function: Function) -> Signature:
    what = f"{name_of(function)!r} cannot be a reward function"
    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise ConfigError(what, got="async def", do="give a plain function, which may call asyncio.run")
    try:
        return signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(what, got=str(error), do=SHAPES) from error


class _WithTasks:
    """Tasks of a function's own, a list or a function that makes them: to train on, for there are no others."""

    def __init__(self, tasks: OwnTasks) -> None:
        self._tasks = tasks

    def tasks(self, split: str) -> list[Task]:
        """The tasks to train on."""
        if split != "train":
            return []
        return list(self._tasks() if callable(self._tasks) else self._tasks)


class FunctionEnvironment(_WithTasks):
    """A reward function (task, completion), with tasks of its own if it has any. Raises `ConfigError`."""

    def __init__(self, function: Callable[[Task, Any], Any], name: str = "", tasks: OwnTasks = ()) -> None:
        super().__init__(tasks)
        self.name, self._function = name or name_of(function), function
        given = _signature(function)
        try:
            given.bind(None, None)
        except TypeError as error:
            what = f"{name_of(function)!r} cannot be a reward function"
            raise ConfigError(what, got=f"the parameters {given}", do=SHAPES) from error
        annotations = [str(parameter.annotation) for parameter in given.parameters.values()]
        self._reads_text = "Completion" not in "".join(annotations[1:2])

    def score(self, task: Task, completion: Completion) -> Any:
        """The `Outcome`, or a `Fault` for what is no reward."""
        return checked(self._function(task, completion.text if self._reads_text else completion))


class RewardFunctions(_WithTasks):
    """Functions (prompts, completions, **columns): the reward is the sum of theirs, each times its weight, and the
    details hold the reward of each under its name.

    Every function gets those keywords that it takes: `prompts`, `completions` and `completion_ids`; the columns of the
    tasks, but for `COLUMNS_LEFT_OUT`; `trainer_state`, with the version of the weights as `global_step` and nothing
    else; `log_metric` and `log_extra`, whose values become details. Raises `ConfigError`.
    """

    time_limit_s = TIME_LIMIT_S

    def __init__(
        self, functions: Sequence[Function], weights: Sequence[float] = (), *, name: str = "", tasks: OwnTasks = ()
    ) -> None:
        super().__init__(tasks)
        names = [name_of(function) for function in functions]
        for function in functions:
            if not callable(function) or not is_of_batch(function):
                do = "in a list, give functions (prompts, completions, **columns)"
                raise ConfigError("only functions of a batch can be added up", got=repr(function)[:80], do=do)
        if not functions or len(weights) not in (0, len(functions)):
            got = f"{len(functions)} functions, {len(weights)} weights"
            raise ConfigError("a list of reward functions is empty, or has weights of another number", got=got)
        self.name = name or "+".join(names)
        places = [f"{own}_{place}" if names.count(own) > 1 else own for place, own in enumerate(names)]
        self._functions = dict(zip(places, functions, strict=True))
        self._weights = dict(zip(places, weights or [1.0] * len(functions), strict=True))

    def unusable(self, task: Task) -> str:
        """Which column a function reads that the task lacks."""
        for name, function in self._functions.items():
            for column, parameter in _signature(function).parameters.items():
                optional = parameter.default is not Parameter.empty or parameter.kind in _OPEN
                if not optional and column not in (*KEYWORDS, *task.spec):
                    lacks = f"the reward function {name!r} reads the column {column!r}, which task {task.id!r} lacks"
                    return f"{lacks}; {nearest(column, task.spec)}"
        return ""

    def score(self, task: Task, completion: Completion) -> Outcome:
        """The outcome of one answer. Raises `EnvError` where there is none."""
        return required(self.score_batch([(task, completion)])[0])

    def score_batch(self, pairs: Sequence[Pair]) -> list[Scored]:
        """One outcome a pair, in order; a `Fault` for an answer without a reward."""
        logged = dict[str, Sequence[Any]]()
        columns = []
        for name, function in self._functions.items():
            keywords = _keywords(function, pairs, logged)
            try:
                returned = function(**keywords)
            except (AttributeError, TypeError) as error:  # such as of a function that expects the other form
                texts = all(isinstance(done, str) for done in keywords.get("completions", ()))
                form = "texts" if texts else "lists of messages"
                error.add_note(
                    f"(completions are {form}, as the prompts in the data are, or as the parameter is annotated)"
                )
                raise
            rewards = list(returned) if isinstance(returned, Iterable) else []
            if len(rewards) != len(pairs):
                expected = f"expected a list of {len(pairs)} rewards, one for each completion"
                text = f"the reward function {name!r} returned {returned!r:.200}; {expected}"
                return [Fault(DropReason.BAD_OUTCOME, text)] * len(pairs)
            columns.append(rewards)
        return [self._sum(rewards, logged, place) for place, rewards in enumerate(zip(*columns, strict=True))]

    def _sum(self, rewards: Sequence[Any], logged: Mapping[str, Sequence[Any]], place: int) -> Scored:
        found = {
            name: checked(reward) for name, reward in zip(self._functions, rewards, strict=True) if reward is not None
        }
        if not found:
            return Fault(DropReason.NOT_APPLICABLE, f"no reward applies: {', '.join(self._functions)} returned None")
        for name, outcome in found.items():
            if isinstance(outcome, Fault):
                return Fault(outcome.drop, f"the reward function {name!r}: {outcome.text}")
        outcomes: dict[str, Any] = found
        details = {key: _detail(values[place]) for key, values in logged.items() if place < len(values)}
        rewarded = {name: outcome.reward for name, outcome in outcomes.items()}
        feedback = "\n".join(outcome.feedback for outcome in outcomes.values() if outcome.feedback)
        return Outcome(sum(self._weights[name] * rewarded[name] for name in rewarded), feedback, details | rewarded)


def _detail(value: Any) -> float | int | str | bool:
    return value if type(value) in (bool, int, float) else str(value)


def _keywords(function: Function, pairs: Sequence[Pair], logged: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """What a function is called with; what it logs goes into `logged`, by name one value a pair."""
    parameters = _signature(function).parameters
    annotation = str(parameters["completions"].annotation) if "completions" in parameters else ""
    plain = [_is_plain(task, annotation) for task, _ in pairs]

    def log_metric(name: str, value: Any) -> None:
        logged[name] = [value] * len(pairs)

    columns = {column: None for task, _ in pairs for column in task.spec if column not in COLUMNS_LEFT_OUT}
    given = {column: [task.spec.get(column) for task, _ in pairs] for column in columns} | {
        "prompts": [_prompt(task, text) for text, (task, _) in zip(plain, pairs, strict=True)],
        "completions": [
            done.text if text else [{"role": "assistant", "content": done.text}]
            for text, (_, done) in zip(plain, pairs, strict=True)
        ],
        "completion_ids": [list(done.token_ids) for _, done in pairs],
        "trainer_state": SimpleNamespace(global_step=max((done.policy_version for _, done in pairs), default=0)),
        "log_metric": log_metric,
        "log_extra": logged.__setitem__,
    }
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: given[name] for name in parameters if name in given}


def _is_plain(task: Task, annotation: str) -> bool:
    """Whether a function reads texts, else lists of messages: as its parameter `completions` is annotated, else as the
    prompt in the data was written; without one, a question alone is text."""
    if "dict" in annotation or "str" in annotation:
        return "dict" not in annotation
    prompt = task.spec.get("prompt")
    return isinstance(prompt, str) or (prompt is None and len(task.messages) == 1)


def _prompt(task: Task, plain: bool) -> str | list[dict[str, str]]:
    if plain:
        return "\n\n".join(message.content for message in task.messages)
    return [{"role": message.role, "content": message.content} for message in task.messages]
