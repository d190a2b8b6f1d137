"""π-Distill: one set of weights learns to use privileged information, and to do without it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar

from selfdistill.context import Demonstration, Document, Instruction
from selfdistill.methods.base import Credit, Method, Verdict, advantages
from selfdistill.models.teacher import Live, TeacherRule
from selfdistill.options import option
from selfdistill.signal import ForwardKL, RatioCaps, ReverseKL, Signal
from selfdistill.stages import Informed, Stage
from selfdistill.types import Context, Drop, RolloutGroup


@dataclass(frozen=True, slots=True)
class PiDistill(Method):
    """π-Distill: both readers learn from answers of the informed one, T, the bare one being S; A is the group's
    advantage:  share · (A − kl · KL(T‖sg S)) + (1 − share) · ((S/sg T) A − kl · KL(sg T‖S)).

    Each task needs a privileged text, and the world a reward. S/T is truncated; share 1 or 0 leaves one half out."""

    source: ClassVar[str] = "arXiv 2602.04942"
    reads: ClassVar[str] = "demonstration, document or instruction, while answering"
    needs_reward: ClassVar[str] = "yes"
    teacher: ClassVar[TeacherRule | None] = Live()
    corrects: ClassVar[bool] = True

    share: float = option(0.5, "share of the informed reader's objective", least=0, most=1)
    kl: float = option(0.1, "scale of the divergences between both readers; our own choice", least=0)
    ratio_cap: float = option(2.0, "upper bound of the importance weights", above=0, most=inf)
    context: Demonstration | Document | Instruction = field(default_factory=Demonstration)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What the student answers with the text at hand."""
        return (Informed(self.context),)

    def signal(self, temperature: float) -> Signal:
        """Of the informed reader: the reverse KL, itself first."""
        return Signal(shape=ReverseKL(), ratio=RatioCaps(self.ratio_cap, self.ratio_cap), temperature=temperature)

    def signals(self, temperature: float) -> tuple[Signal, ...]:
        """Of the informed reader, and of the bare one: the forward KL, the other first."""
        return self.signal(temperature), replace(self.signal(temperature), shape=ForwardKL())

    def verdict(self, group: RolloutGroup, index: int) -> Verdict:
        """The answer as S's to imitate, as T's, and as S's to be rewarded for; only the last has importance weights."""
        found, bare = self.context.context(group, index), group.task.messages
        if not isinstance(found, Context):
            return found
        advantage, other = advantages(group, stage=Informed.name)[index] or 0.0, 1 - self.share
        uses = (
            Credit(found, distil=other * self.kl, question=bare, signal=1),
            Credit(found, self.share * advantage, self.share * self.kl, question=bare, swapped=True),
            Credit(advantage=other * advantage, question=bare, correct=True, signal=1),
        )
        return tuple(use for use in uses if use.distil or use.advantage) or Drop.FLAT_GROUP
