"""What a strategy is: a frozen value that says what the next attempts at a task read, and which method learns of them.

The solver does the rest, the same for every strategy: it samples, scores, learns, counts, records and stops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfdistill.errors import ConfigError, SelfDistillError
from selfdistill.methods import Method
from selfdistill.options import option
from selfdistill.plugins import in_short
from selfdistill.prompts.render import Renderer
from selfdistill.types import Message, Task

PASSED = 1.0  # reward of an attempt that passed


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of the past: the `place`-th of its round, both from 0. `passed` the tests that training may see;
    `right`: the private ones too. Not `scored`: the environment could not say."""

    round: int
    place: int
    text: str
    feedback: str = ""
    passed: bool = False
    right: bool = False
    judged: bool = True

    @property
    def failed(self) -> bool:
        """Whether it is known to be wrong."""
        return self.judged and not self.passed


@dataclass(frozen=True, slots=True)
class SolveState:
    """What a strategy sees before a round: the task, all attempts so far, and how prompts are written. An answer has
    `answer` tokens at most; `seed` decides what is drawn."""

    task: Task
    renderer: Renderer
    answer: int
    seed: int
    attempts: Sequence[Attempt] = ()

    @property
    def round(self) -> int:
        """The number of the round that comes."""
        return self.attempts[-1].round + 1 if self.attempts else 0

    def room(self, window: int) -> int:
        """Tokens that a prompt may have: those of a window, and what the model can read before an answer, for which
        half of that is kept free at most."""
        length = self.renderer.context_length
        return min(window, length - min(self.answer, length // 2))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one attempt reads. `left_out` counts feedback that did not fit; `cut` says that what is left had to be
    shortened."""

    messages: tuple[Message, ...]
    left_out: int = 0
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Strategy(ABC):
    """Its fields are its settings.

    learns: the method that learns from every round unless another is named; empty: the weights stay as they are.
    method_settings: what that method's settings are unless they are given.
    idle: what can still happen after a round that told it nothing, for whoever watches.
    independent: its attempts know nothing of each other.
    """

    name: ClassVar[str]
    learns: ClassVar[str] = ""
    method_settings: ClassVar[Mapping[str, Any]] = {}
    idle: ClassVar[str] = ""
    independent: ClassVar[bool] = False

    batch: int = option(16, "attempts made at once, before any of them is learned from", least=1, most=100_000)

    def __post_init__(self) -> None:
        at_least_one(self, "batch")

    @abstractmethod
    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """What the next `count` attempts read."""

    def learner(self, method: Method) -> Method:
        """The method as it learns from the attempts of this strategy."""
        return method


def at_least_one(strategy: Any, *names: str) -> None:
    """Raises `ConfigError` for a setting below 1."""
    for name in names:
        if getattr(strategy, name) < 1:
            raise ConfigError(f"strategy.{name} must be at least 1", got=getattr(strategy, name))


def prompts_of(strategy: Strategy, state: SolveState, count: int) -> list[Prompt]:
    """What a strategy has the next `count` attempts read. Raises `ConfigError`, which names the strategy, where its
    code fails or gives something else."""
    found = _asked(strategy, "prompts", lambda: strategy.prompts(state, count))
    if not isinstance(found, list | tuple) or len(found) != count:
        given = len(found) if isinstance(found, list | tuple) else repr(found)[:200]
        why = "a search counts every attempt, and makes as many as its budget has"
        raise _wrong(strategy, f"a list of {count} prompts", given, why)
    for prompt in found:
        if not isinstance(prompt, Prompt) or not _is_conversation(prompt.messages):
            raise _wrong(strategy, "a Prompt with a tuple of Messages for each attempt", repr(prompt)[:200])
    return list(found)


def learner_of(strategy: Strategy, method: Method) -> Method:
    """The method as it learns from a strategy's attempts. Raises `ConfigError` like `prompts_of`."""
    found = _asked(strategy, "learner", lambda: strategy.learner(method))
    if not isinstance(found, Method):
        raise ConfigError(
            f"the strategy {strategy.name!r} gives no method to learn with",
            got=repr(found)[:200],
            do="return a Method from its `learner`",
        )
    return found


def _asked(strategy: Strategy, name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except SelfDistillError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the strategy {strategy.name!r} fails in its `{name}`",
            got=in_short(error, Path(strategy.name.partition(":")[0])),
            do="correct it; a search that was begun goes on with --resume",
        ) from error


def _wrong(strategy: Strategy, expected: str, got: object, why: str = "") -> ConfigError:
    return ConfigError(
        f"the strategy {strategy.name!r} should give {expected}", got=got, why=why, do="mend its `prompts`"
    )


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, tuple) or not messages:
        return False
    return all(isinstance(message, Message) and isinstance(message.content, str) for message in messages)
