"""NCA: a context is learned by heart, and reading it again changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from selfdistill.losses import ForwardKL, LossSpec, ReverseKL, TopK
from selfdistill.methods.base import CreditOrDrop, Method, distilled
from selfdistill.models.teacher import Frozen
from selfdistill.options import option
from selfdistill.prompts.context import ContextRule, Instruction
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class NCA(Method):
    """Context distillation that survives its context: KL(student‖teacher) + β KL(p(·|x) held fixed ‖ p(·|x, c)).

    A student that has learned a context becomes worse when it reads that context again; the second term draws what it
    then assigns toward those without it. Each answer is used twice, the second time read by the student with the
    context and by the student's weights of now without it. Needs no reward: an instruction (or the document of each
    task), or any other context rule. The first term is that of OPCD, with all tokens beyond the top 256 as one.
    """

    settings = {"tasks_per_step": 128, "rollouts_per_task": 1, "optimiser": {"lr": 1e-6}}
    source = "arXiv 2606.11627"
    reads = "an instruction, or any other context"
    teacher = Frozen()

    context: ContextRule = field(default_factory=Instruction)
    beta: float = option(0.5, "β: weight of agreeing with oneself when the context is read again; 0: left out", least=0)
    top_k: int = option(256, "student tokens on which the first term is compared, the rest in one bucket", least=1)

    def loss_specs(self, temperature: float) -> tuple[LossSpec, ...]:
        """Toward the teacher, and back to oneself."""
        return (self.loss_spec(temperature), LossSpec(divergence=ForwardKL(), temperature=temperature))

    def loss_spec(self, temperature: float) -> LossSpec:
        """KL(student‖teacher) on the student's likeliest tokens."""
        return LossSpec(support=TopK(self.top_k), divergence=ReverseKL(), temperature=temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """Two uses, or one."""
        first = distilled(self.context.context(group, index))
        if isinstance(first, DropReason) or not self.beta:
            return first
        return first, replace(first, distil=self.beta, student_reads_context=True, spec_index=1)
