"""OPCD: make a system prompt, or noted experience, permanent."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfdistill.losses import LossSpec, ReverseKL, TopK
from selfdistill.methods.base import Method
from selfdistill.models.teacher import Frozen
from selfdistill.options import option
from selfdistill.prompts.context import Instruction


@dataclass(frozen=True, slots=True)
class OPCD(Method):
    """On-Policy Context Distillation: the reverse KL to the frozen model that reads an instruction.

    Needs `context.text`, or a document in each task; no reward. The paper sums over the student's top 256 tokens alone,
    which drains them even where student and teacher agree; here all other tokens are one more outcome.
    """

    settings = {
        "tasks_per_step": 128,
        "rollouts_per_task": 1,
        "optimiser": {"lr": 1e-6},
        "sampling": {"temperature": 0.6},
    }
    source = "arXiv 2602.12275"
    takes_turns = True
    reads = "an instruction, else document"
    data_env = "chats"
    teacher = Frozen()

    top_k: int = option(256, "student tokens on which both are compared, the rest in one bucket", least=1)
    context: Instruction = field(default_factory=Instruction)

    def loss_spec(self, temperature: float) -> LossSpec:
        """KL(student‖teacher) on the student's likeliest tokens."""
        return LossSpec(support=TopK(self.top_k), divergence=ReverseKL(), temperature=temperature)
