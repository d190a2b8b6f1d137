"""Learning in the context alone: the weights stay, and what was said so far is read before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from selfdistill.options import changed, option
from selfdistill.test_time.strategies.base import Prompt, SolveState, Strategy, at_least_one
from selfdistill.test_time.strategies.window import distinct, told, with_attempts, with_feedback


@dataclass(frozen=True, slots=True)
class MultiTurn(Strategy):
    """One conversation about the task: every attempt reads the feedback on those before it, as much as fits.

    Follows the baseline of Hübotter et al. 2026 (arXiv 2601.20802, §5): feedback only, in one message, the oldest
    dropped. Feedback that repeats another word for word is read once.
    """

    name: ClassVar[str] = "multi-turn"
    idle: ClassVar[str] = "every attempt reads the question alone, or with its wrong attempts"

    batch: int = changed(Strategy, "batch", 1)
    attempts: bool = option(False, "read the attempts too, each before its feedback")
    keep: Literal["newest", "random"] = option(
        "newest", "what stays when not all fits: the newest, or ones drawn anew for each attempt"
    )
    window: int = option(32_000, "tokens of a prompt, at most; never more than the model can read", least=1)

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "window")

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """Equal ones, unless chance decides what stays."""
        if self.keep == "newest":
            return [self._prompt(state, None)] * count
        key = f"window {state.seed} {state.task.id} {len(state.attempts)}"
        return [self._prompt(state, random.Random(f"{key} {number}")) for number in range(count)]

    def _prompt(self, state: SolveState, drawn: random.Random | None) -> Prompt:
        if self.attempts:
            return with_attempts(state, [past for past in state.attempts if past.failed], self.window, drawn)
        return with_feedback(state, distinct(told(state.attempts)), self.window, drawn)
