"""An environment that knows everything a method may ask for, and methods that divide what they credit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

from selfdistill import Completion, Credit, LossSpec, Message, Outcome, RolloutGroup, Task
from selfdistill.losses import EntropyGate
from selfdistill.methods.base import Method

QUESTIONS = ["What is seven plus five?", "Say yes or no."]


class Telling:
    """About half of all answers are right; the others hear why not, from the environment and from the user."""

    name = "telling"

    def tasks(self, split: str) -> list[Task]:
        if split != "train":
            return []
        return [
            Task(
                f"q{number}",
                (Message("user", text),),
                demonstration="The answer is twelve.",
                document="Seven plus five is twelve.",
                logged_answer="yes",
                user_reply="No, twelve.",
            )
            for number, text in enumerate(QUESTIONS)
        ]

    def score(self, task: Task, completion: Completion) -> Outcome:
        right = crc32(completion.text.encode()) % 2
        return Outcome(float(right), "" if right else f"Not {completion.text!r}.", reply=task.user_reply)


@dataclass(frozen=True, slots=True)
class Whole(Method):
    """Every answer once."""

    settings: ClassVar[Mapping[str, Any]] = {}

    def loss_spec(self, temperature: float) -> LossSpec:
        return LossSpec(temperature=temperature)

    def credit(self, group: RolloutGroup, index: int) -> Credit | tuple[Credit, ...]:
        return Credit(advantage=1.0)


@dataclass(frozen=True, slots=True)
class Halves(Whole):
    """The same in two uses of each answer."""

    def credit(self, group: RolloutGroup, index: int) -> Credit | tuple[Credit, ...]:
        return Credit(advantage=0.5), Credit(advantage=0.5)


@dataclass(frozen=True, slots=True)
class Gated(Whole):
    """Two signals, of which so many have a gate."""

    gates: int = 1

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        gates = [EntropyGate() if number < self.gates else None for number in range(2)]
        return tuple(LossSpec(gate=gate, temperature=temperature) for gate in gates)
