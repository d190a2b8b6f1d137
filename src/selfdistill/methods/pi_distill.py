"""π-Distill: one set of weights learns to use privileged information, and to do without it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from selfdistill.losses import ForwardKL, LossSpec, RatioCaps, ReverseKL
from selfdistill.methods.base import Credit, CreditOrDrop, Method, advantage
from selfdistill.models.teacher import Live
from selfdistill.options import option
from selfdistill.prompts.context import Demonstration, Document, Instruction
from selfdistill.prompts.stages import PrivilegedRollouts, Stage
from selfdistill.types import Context, DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class PiDistill(Method):
    """π-Distill: both readers learn from answers of the informed one, T, the bare one being S; A is the group's
    advantage:  share · (A − kl · KL(T‖sg S)) + (1 − share) · ((S/sg T) A − kl · KL(sg T‖S)).
    Each task needs a privileged text, and a reward. S/T is truncated; share 1 or 0 leaves one half out."""

    source = "arXiv 2602.04942"
    reads = "demonstration, document or instruction, while answering"
    needs_reward = "yes"
    teacher = Live()
    needs_sampler_logprobs = True

    share: float = option(0.5, "share of the informed reader's objective", least=0, most=1)
    kl: float = option(0.1, "scale of the divergences between both readers; our own choice", least=0)
    ratio_cap: float = option(2.0, "upper bound of the importance weights", above=0, most=inf)
    context: Demonstration | Document | Instruction = field(default_factory=Demonstration)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What the student answers with the text at hand."""
        return (PrivilegedRollouts(self.context),)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Of the informed reader: the reverse KL, itself first."""
        caps = RatioCaps(self.ratio_cap, self.ratio_cap)
        return LossSpec(divergence=ReverseKL(), ratio=caps, temperature=temperature)

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """Of the informed reader, and of the bare one: the forward KL, the other first."""
        return self.loss_spec(temperature), replace(self.loss_spec(temperature), divergence=ForwardKL())

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """The answer as S's to imitate, as T's, and as S's to be rewarded for; only the last has importance weights."""
        found, bare = self.context.context(group, index), group.task.messages
        if not isinstance(found, Context):
            return found
        own, other = advantage(group, index) or 0.0, 1 - self.share
        uses = (
            Credit(found, distil=other * self.kl, question=bare, spec_index=1),
            Credit(found, self.share * own, self.share * self.kl, question=bare, student_reads_context=True),
            Credit(advantage=other * own, question=bare, correct=True, spec_index=1),
        )
        return tuple(use for use in uses if use.distil or use.advantage) or DropReason.ZERO_ADVANTAGE
