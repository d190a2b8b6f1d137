"""What a method is: a frozen value that says what the teacher knows, whose weights it has, and what counts how much.

A method turns the rollouts of one task into a `Credit` or a `Drop` each; everything after that (prompts, passes, the
kernel, the update) is the same for all methods and cannot tell which one runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from selfdistill.models.teacher import TeacherRule
from selfdistill.signal import Reduction, Signal
from selfdistill.types import Context, Drop, RolloutGroup


@dataclass(frozen=True, slots=True)
class Credit:
    """What one rollout is worth to an update; a weight of 0 leaves its term out.

    context: what the teacher knows (needed when `distil` is not 0). advantage: scale of the policy gradient.
    distil: scale of the divergence from the teacher. reference: scale of the divergence from the weights at the start.
    """

    context: Context | None = None
    advantage: float = 0.0
    distil: float = 0.0
    reference: float = 0.0


class Method(Protocol):
    """A frozen dataclass; its fields are its settings, its defaults the vetted ones.

    settings: what the method needs of the rest of a run (rates, batch sizes), below the user's own settings.
    summary, source: what it is and where it is published, for `selfdistill methods`.
    """

    settings: ClassVar[Mapping[str, Any]]
    source: ClassVar[str]

    @property
    def teacher(self) -> TeacherRule | None:
        """Whose weights read the context; None: no teacher."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether credits ask for the weights at the start, which are then kept."""
        ...

    @property
    def reduction(self) -> Reduction:
        """What each token of a step weighs."""
        ...

    @property
    def count_dropped(self) -> bool:
        """Whether dropped rollouts dilute the mean."""
        ...

    def signal(self, temperature: float) -> Signal:
        """How evidence and verdict become a gradient, at the temperature the answers were sampled at."""
        ...

    def credit(self, group: RolloutGroup) -> list[Credit | Drop]:
        """One entry per rollout of the group, in order. Rollouts without an outcome keep their own drop reason."""
        ...
