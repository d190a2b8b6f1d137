"""Strategies whose attempts read the question and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdistill.test_time.strategies.base import Prompt, SolveState, Strategy


@dataclass(frozen=True, slots=True)
class Bare(Strategy):
    """Every attempt reads the question as it stands."""

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """The question, `count` times."""
        return [Prompt(state.task.messages)] * count


@dataclass(frozen=True, slots=True)
class BestOfK(Bare):
    """Independent attempts by the weights as they are, until one is right."""

    name: ClassVar[str] = "best-of-k"
    independent: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SelfDistill(Bare):
    """Every failure is distilled from its own feedback, or from a group member once one is right; then the next
    attempts."""

    name: ClassVar[str] = "self-distill"
    learns: ClassVar[str] = "sdpo"
    idle: ClassVar[str] = "attempts are independent until one of them passes; its group members then learn from it"


@dataclass(frozen=True, slots=True)
class Grpo(Bare):
    """Attempts are rewarded against their group members: nothing is learned before the first of them differs."""

    name: ClassVar[str] = "grpo"
    learns: ClassVar[str] = "grpo"
    idle: ClassVar[str] = "attempts are independent until one of a round earns more than another"
