"""Learning in context alone: the weights stay, and every attempt reads the feedback so far."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from selfdistill.options import changed, option
from selfdistill.test_time.strategies.base import Prompt, SolveState, Strategy
from selfdistill.test_time.strategies.window import with_attempts, with_feedback, with_text


@dataclass(frozen=True, slots=True)
class MultiTurn(Strategy):
    """One conversation about the task: every attempt reads the feedback on earlier ones, as much as fits.

    The baseline of Hübotter et al. 2026 (arXiv 2601.20802, §5): feedback alone, in one message, the oldest dropped.
    Equal feedback is read once.
    """

    name: ClassVar[str] = "multi-turn"
    idle: ClassVar[str] = "every attempt reads the question alone, or with its wrong attempts"

    batch: int = changed(Strategy, "batch", 1)
    attempts: bool = option(False, "include the attempts, each before its feedback")
    keep: Literal["newest", "random"] = option(
        "newest", "which feedback is kept when not all fits: the newest, or a random choice for each attempt"
    )
    window: int = option(32_000, "most tokens of a prompt; never more than the model can read", least=1)

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """Equal prompts, unless `keep` is random."""
        if self.keep == "newest":
            return [self._prompt(state, None)] * count
        key = f"window {state.seed} {state.task.id} {len(state.attempts)}"
        return [self._prompt(state, random.Random(f"{key} {number}")) for number in range(count)]

    def _prompt(self, state: SolveState, drawn: random.Random | None) -> Prompt:
        if self.attempts:
            return with_attempts(state, [past for past in state.attempts if past.failed], self.window, drawn)
        return with_feedback(state, with_text(state.attempts), self.window, drawn)
