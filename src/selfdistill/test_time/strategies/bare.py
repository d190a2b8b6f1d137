"""Strategies whose attempts read the question alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdistill.test_time.strategies.base import Prompt, SolveState, Strategy


@dataclass(frozen=True, slots=True)
class Bare(Strategy):
    """Every attempt reads the question alone."""

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """The question, `count` times."""
        return [Prompt(state.task.messages)] * count


@dataclass(frozen=True, slots=True)
class BestOfK(Bare):
    """Samples independent attempts from the initial weights until one is solved."""

    name: ClassVar[str] = "best-of-k"
    independent: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SelfDistill(Bare):
    """Distils every failure from its own feedback, or from a solution of the group once there is one."""

    name: ClassVar[str] = "self-distill"
    learns: ClassVar[str] = "sdpo"
    idle: ClassVar[str] = "attempts are independent until one of them passes; its group members then learn from it"


@dataclass(frozen=True, slots=True)
class Grpo(Bare):
    """Rewards attempts relative to their group: no gradient until two rewards of a round differ."""

    name: ClassVar[str] = "grpo"
    learns: ClassVar[str] = "grpo"
    idle: ClassVar[str] = "attempts are independent until one of a round earns more than another"
