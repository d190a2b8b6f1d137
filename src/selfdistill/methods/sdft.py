"""SDFT: learn from a demonstration by distilling the model that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfdistill.losses import ForwardKL, LossSpec, TokenMask
from selfdistill.methods.base import Method
from selfdistill.models.teacher import Ema
from selfdistill.options import option
from selfdistill.prompts.context import Demonstration, Document


@dataclass(frozen=True, slots=True)
class SDFT(Method):
    """Self-Distillation Fine-Tuning: the forward KL to a teacher that reads the demonstration, or the document.

    Each task needs a demonstration (or, with `context.kind=document`, a document); no reward. The paper writes the
    reverse KL; its reported results are of the forward one, over the full vocabulary, which is what runs here. The
    teacher's prompt has this package's frame, which ends "Correctly solve the original question."; the paper's ends
    with a request for a response of one's own, thinking included. Skipped tokens weigh nothing and still count in the
    mean over an answer.
    """

    settings = {"rollouts_per_task": 1, "optimiser": {"lr": 2e-5}}
    source = "arXiv 2601.19897"
    takes_turns = True
    reads = "demonstration, or document"
    teacher = Ema(0.02)

    context: Demonstration | Document = field(default_factory=Demonstration)
    skip_first: int = option(3, "first answer tokens left out: there a teacher refers to the demonstration", least=0)

    def loss_spec(self, temperature: float) -> LossSpec:
        """KL(teacher‖student) at every token but the first ones."""
        mask = TokenMask(skip_first=self.skip_first)
        return LossSpec(divergence=ForwardKL(), token_mask=mask, temperature=temperature)
