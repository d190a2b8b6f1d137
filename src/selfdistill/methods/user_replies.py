"""Learning from users: their next message shows how the answer should have been."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.losses import Additive, Centred, LossSpec, SampledToken
from selfdistill.methods.base import Method
from selfdistill.models.teacher import Live
from selfdistill.options import option
from selfdistill.prompts.context import UserReply
from selfdistill.prompts.stages import Attempts, LoggedCompletions, Stage


@dataclass(frozen=True, slots=True)
class UserReplies(Method):
    """Hindsight from user replies: each token's advantage is how much likelier the reply makes it, e = log q − log p.

    Needs replies and no reward: the environment's replies to fresh answers (`Outcome.reply`), or with `logged` rows of
    data with an answer in `logged_answer` and the next user message in `user_reply`. As published, fresh answers
    are centred (e minus its mean over the answer) and clipped as in PPO, logged ones take e as it is and have no ratio,
    since their sampling distribution is unknown. One frame is used for both; the paper words the two prompts
    differently. It trains on logs at 2e-6.
    """

    settings = {"rollouts_per_task": 1, "optimiser": {"lr": 5e-6}}
    source = "arXiv 2603.12273"
    takes_turns = True
    reads = "the user's reply"
    data_env = "chats"
    teacher = Live()
    context = UserReply()

    logged: bool = option(False, "learn from answers and replies in the data; nothing is sampled")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Fresh answers, or those of a log."""
        return (LoggedCompletions(),) if self.logged else (Attempts(),)

    def loss_spec(self, temperature: float) -> LossSpec:
        """The policy gradient on the sampled tokens, with the log-ratio as their advantage."""
        shaping = Additive() if self.logged else Centred()
        return LossSpec(SampledToken(), shaping=shaping, temperature=1.0 if self.logged else temperature)
