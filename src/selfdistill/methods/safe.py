"""Safe: what the failures of the published methods suggest to somebody who trains for the first time."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from selfdistill.losses import JensenShannon, LossSpec, Relative
from selfdistill.methods.base import Credit, CreditOrDrop, Method, advantage, distilled_turns
from selfdistill.models.teacher import Frozen
from selfdistill.options import option
from selfdistill.prompts.context import ContextRule, SolutionOrFeedback
from selfdistill.types import DropReason, RolloutGroup


@dataclass(frozen=True, slots=True)
class Safe(Method):
    """What we would start with: failures are corrected by a teacher that does not move, successes are rewarded.

    - The teacher is frozen. A moving one can run away with its student, and long runs have collapsed that way.
    - The divergence is Jensen-Shannon's, exact over the full vocabulary: at most log 2, and no tokens to choose.
    - A push beyond 10 times what is usual so far is cut, so that no token leads. A tighter cut would take away what the
      teacher has to say: at most tokens it agrees with the student, which makes the usual push small.
    - Only failures are distilled. What a teacher knows is news to them; to successes it is mostly style.
    - Successes are rewarded by their advantage. A tenth of it is about as large as the teacher's push; all of it would
      lead.
    - No reference to the weights at the start, which costs a pass; `replay` keeps what a model knew, where needed.

    Needs a reward that marks solved answers, and feedback or group members that are sometimes solved.
    """

    source = "arXiv 2601.20802, routed as in 2604.02288, bounded"
    takes_turns = True
    reads = "a group member's solution, else own feedback, for failures"
    needs_reward = "who is solved"
    teacher = Frozen()

    success: float = option(0.5, "reward at which a rollout counts as solved, and is rewarded instead of distilled")
    context: ContextRule = field(default_factory=SolutionOrFeedback)
    reward: float = option(0.1, "scale of the advantages; 0: successes take no part", least=0)
    bound: float = option(10.0, "a push is cut at this multiple of the running mean; 0: never", least=0, most=inf)

    def loss_spec(self, temperature: float) -> LossSpec:
        """Both terms; a rollout carries one of them."""
        bound = Relative(self.bound) if self.bound else None
        return LossSpec(divergence=JensenShannon(0.5), clipping=bound, temperature=temperature)

    def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
        """One route for each rollout; a failure of which nothing is known keeps its advantage."""
        outcome, own = group.rollouts[index].outcome, advantage(group, index)
        found = distilled_turns(self.context, group, index)
        if outcome is not None and outcome.reward < self.success and not isinstance(found, DropReason):
            return found
        if own is None or not self.reward:
            return found if isinstance(found, DropReason) else DropReason.ZERO_ADVANTAGE
        return Credit(advantage=self.reward * own)
