"""The run's own model as a judge: its replies to the prompts of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass

from selfdistill.envs.judge import ReplyOptions
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.prompts.render import Renderer
from selfdistill.types import Completion, Message


@dataclass(frozen=True, slots=True)
class PolicyReplies:
    """Samples replies by the weights that `initial` keeps, those at the start of the run; None: by the weights as they
    are. The draws follow from the seed and the names of the replies."""

    policy: Policy
    renderer: Renderer
    seed: int
    initial: Teacher | None = None

    def __call__(
        self, prompts: Sequence[Sequence[Message]], uids: Sequence[str], options: ReplyOptions
    ) -> list[tuple[Completion, int] | None]:
        """One reply a prompt, in order; None where the prompt does not fit. Raises `ModelError`."""
        written = [self.renderer.prompt(prompt) for prompt in prompts]
        fitting = [place for place, ids in enumerate(written) if len(ids) < self.policy.context_length]
        sampling = SamplingOptions(options.max_tokens, options.temperature, options.top_p)
        read, names = [written[place] for place in fitting], [uids[place] for place in fitting]
        initial = self.initial
        with initial.applied(self.policy, initial.views()[0]) if initial else nullcontext(self.policy) as reader:
            done = sample(reader, read, sampling, seed=self.seed, uids=names, version=0)
        found = {place: (reply, len(written[place])) for place, reply in zip(fitting, done, strict=True)}
        return [found.get(place) for place in range(len(prompts))]


def initial_weights(policy: Policy, kept: Sequence[Teacher | None]) -> Teacher:
    """The weights as they are, which stay so: those of a frozen one that is `kept` already, else a copy."""
    frozen = next((one for one in kept if one is not None and isinstance(one.rule, Frozen)), None)
    return Teacher(Frozen(), policy) if frozen is None else copy(frozen)  # one of its own: it is applied within others
