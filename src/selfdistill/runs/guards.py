"""The settings of the guards of a run (`training/guards.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfdistill.errors import ConfigError, Ranged, option


@dataclass(frozen=True, slots=True)
class GuardOptions(Ranged):
    """What watches a run, and what it may do. Each number of a step is compared with its median over the first
    `warmup` steps, and counts when it is beyond its limit in each of `patience` steps in a row.

    Raises `ConfigError` also for limits that leave no room between them.
    """

    action: Literal["off", "warn", "hold", "stop"] = option(
        "stop", "the most that guards do: off, warn, hold (a moving teacher keeps its weights) or stop and restore"
    )
    preflight: str = option(
        "on",
        "refuse, before the first step, to distil a context that does not improve the answers: on, off, or the "
        "directory of an `eval --teacher --out` that has measured it",
    )
    warmup: int = option(5, "steps at the start with which later ones are compared", least=1)
    patience: int = option(3, "steps in a row in which a number must be beyond its limit", least=1)
    shortest: float = option(0.5, "least median length of answers, in that of the warm-up", least=0)
    longest: float = option(2.0, "largest median length of answers, in that of the warm-up", above=0)
    least_entropy: float = option(0.1, "least entropy of the student, in that of the warm-up", least=0)
    most_entropy: float = option(2.0, "largest entropy of the student, in that of the warm-up", above=0)
    truncated: float = option(0.5, "largest share of answers that the token limit cuts off", least=0, most=1)
    outcome: Literal["auto", "off"] = option(
        "auto", "a falling accuracy of the rollouts counts, unless skip_solved is set; off: tasks grow harder"
    )
    repeated: float = option(0.2, "largest share of answers that repeat themselves, beyond the warm-up's", above=0)
    leaked: float = option(0.05, "largest share of answers with words of the private context", least=0, most=1)
    refresh_shock: float = option(
        0.5, "largest KL between a moving teacher after and before a move, in the divergence from the student", above=0
    )
    max_forgetting: float = option(
        0.5,
        "share of the held-out accuracy (or of another chosen probe's) of which the loss stops a run whose own tasks "
        "improve; without that, a quarter",
        above=0,
        most=1,
    )
    probe: Literal["auto", "train", "held_out", "forgetting"] = option(
        "auto", "evaluated tasks on which a fall stops the run; auto: all that are many enough to decide"
    )
    reread: int = option(
        12, "right answers of the last evaluation that are read again between evaluations; 0: none", least=0
    )

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        for low, high, default in (("shortest", "longest", 1), ("least_entropy", "most_entropy", 1)):
            least, most = getattr(self, low), getattr(self, high)
            if not (least < most and least <= default <= most):
                raise ConfigError(
                    "limits of the guards contradict each other",
                    got=f"guards.{low} = {least:g}, guards.{high} = {most:g}",
                    why="the warm-up itself, which is 1, would be outside of them",
                    do=f"choose guards.{low} below 1 and guards.{high} above 1",
                )
