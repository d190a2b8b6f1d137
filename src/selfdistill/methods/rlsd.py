"""RLSD: the advantage sets the sign of the update, the teacher its size at each token."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.losses import AdvantageSign, Linear, LossSpec, Multiplicative
from selfdistill.methods.shaped import ShapedMethod
from selfdistill.models.teacher import Snapshot
from selfdistill.options import option


@dataclass(frozen=True, slots=True)
class RLSD(ShapedMethod):
    """RL with self-distillation: A · ((1 − λ) + λ · clip(e^{sign(A) e}, 1 ± 0.2)), e = log q(y) − log p(y).

    Tokens that the teacher finds likelier than the student gain more of a reward and less of a penalty; none changes
    sign. λ falls from 0.5 to 0 over 50 steps: what stays is GRPO. Needs a reward; the teacher reads the
    demonstration of the task (in the paper its solution), else a group member's solution, and is copied from the
    student every tenth step.
    """

    settings = {"optimiser": {"lr": 1e-6}}
    source = "arXiv 2604.03128"
    reads = "the demonstration, else a group member's solution"
    teacher = Snapshot(10)

    clip: float = option(0.2, "how far from 1 the teacher may scale a token's advantage", above=0, most=1)
    strength: float = option(0.5, "λ at the start", least=0)
    fades: int = option(50, "steps until λ is 0", least=1)

    def loss_spec(self, temperature: float) -> LossSpec:
        """One policy gradient; nothing is distilled."""
        shaping, schedule = Multiplicative(self.clip), Linear(self.strength, 0.0, self.fades)
        return self.shaped_loss(temperature, distil_sign=AdvantageSign(), shaping=shaping, schedule=schedule)
