"""A strategy is a frozen value: which prompts the next attempts at a task read, and which method learns from them.

The search around it is the same for every strategy: it samples, scores, learns, counts, records and stops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from selfdistill.errors import ConfigError, Ranged
from selfdistill.methods import Method
from selfdistill.options import option
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.types import Message, Task

PASSED = 1.0  # reward of an attempt that passed


@dataclass(frozen=True, slots=True)
class Attempt:
    """A past attempt: the `place`-th of its round, both counted from 0.

    passed_public: it passed the tests whose results training may use. solved: the private tests too. scored: the
    environment returned an outcome.
    """

    round: int
    place: int
    text: str
    feedback: str = ""
    passed_public: bool = False
    solved: bool = False
    scored: bool = True

    @property
    def failed(self) -> bool:
        """Whether it was scored and did not pass."""
        return self.scored and not self.passed_public


@dataclass(frozen=True, slots=True)
class SolveState:
    """The input of a strategy before a round: the task, the renderer of prompts, the most tokens of an answer, the seed
    of what is drawn, and all attempts so far."""

    task: Task
    renderer: Renderer
    answer: int
    seed: int
    attempts: Sequence[Attempt] = ()

    @property
    def round(self) -> int:
        """The number of the next round, from 0."""
        return self.attempts[-1].round + 1 if self.attempts else 0

    def room(self, window: int) -> int:
        """Tokens that a prompt may have: at most `window`, and what the model reads before an answer, which reserves at
        most half of the context."""
        length = self.renderer.context_length
        return min(window, length - min(self.answer, length // 2))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages that one attempt reads. `left_out` counts the feedback that did not fit; `cut`: the rest was
    shortened."""

    messages: tuple[Message, ...]
    left_out: int = 0
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Strategy(Ranged, ABC):
    """A frozen dataclass; its fields are its settings.

    learns: the default method that learns from every round; empty: the weights do not change.
    method_settings: defaults of that method's settings under this strategy.
    idle: the note given after a round without training samples: what can still happen.
    independent: whether its attempts are independent of each other.
    """

    name: ClassVar[str] = ""
    learns: ClassVar[str] = ""
    method_settings: ClassVar[Mapping[str, Any]] = {}
    idle: ClassVar[str] = ""
    independent: ClassVar[bool] = False

    batch: int = option(
        16, "attempts of a round, at most, sampled before any of them is learned from", least=1, most=100_000
    )
    unique: bool = option(
        False, "an attempt that equals a failed one word for word is drawn again, up to 63 times, and not submitted"
    )

    @property
    def pooled(self) -> bool:
        """Whether attempts are independent, so that those of all seeds are one sample."""
        return self.independent and not self.unique

    def most_rounds(self, attempts: int) -> int:
        """The most rounds in which so many attempts are made."""
        return -(-attempts // self.batch)

    @abstractmethod
    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """The prompts of the attempts of the next round: `count`, or fewer."""

    def learns_from(self, state: SolveState) -> bool:
        """Whether the next round is learned from, where the strategy learns."""
        return True

    def learner(self, method: Method) -> Method:
        """The method, adapted to the attempts of this strategy."""
        return method


def prompts_of(strategy: Strategy, state: SolveState, count: int) -> list[Prompt]:
    """The prompts of the next round, at most `count`. Raises `ConfigError` where the strategy's code fails or returns
    something else."""
    with their_code(strategy, "its `prompts`"):
        found = strategy.prompts(state, count)
    what, do = f"the strategy {strategy.name or type(strategy).__name__!r} should give ", "fix its `prompts`"
    if not isinstance(found, list | tuple) or not 0 < len(found) <= count:
        got = len(found) if isinstance(found, list | tuple) else repr(found)[:200]
        why = "a search counts every attempt, and makes as many as its budget has"
        raise ConfigError(f"{what}a list of 1 to {count} prompts", got=got, why=why, do=do)
    for prompt in found:
        if not isinstance(prompt, Prompt) or not _is_conversation(prompt.messages):
            what += "a Prompt with a tuple of Messages for each attempt"
            raise ConfigError(what, got=repr(prompt)[:200], do=do)
    return list(found)


def learner_of(strategy: Strategy, method: Method) -> Method:
    """The method, adapted to a strategy's attempts. Raises `ConfigError` as `prompts_of`."""
    with their_code(strategy, "its `learner`"):
        found = strategy.learner(method)
    if not isinstance(found, Method):
        what = f"the strategy {strategy.name or type(strategy).__name__!r} gives no method to learn with"
        raise ConfigError(what, got=repr(found)[:200], do="return a Method from its `learner`")
    return found


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, tuple) or not messages:
        return False
    return all(isinstance(message, Message) and isinstance(message.content, str) for message in messages)
