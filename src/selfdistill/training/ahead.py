"""Generation batches from samplers outside of the learner's process, sampled while it learns where that is allowed.

With `scale.sampler.staleness` 0 a batch is sampled by the weights that learn from it. With s, the samplers load the
weights of step t and sample the batches of steps t to t + s, one after the other, while the learner works on them. The
records say by which weights each answer was sampled; the ratio of both is an importance weight with a cap, as always.
Of several learners the first one samples and scores, and the others get its batches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from selfdistill.config import RunConfig
from selfdistill.envs.base import ConversationEnvironment, started
from selfdistill.errors import ConfigError
from selfdistill.models.policy import ALONE
from selfdistill.models.sampler import Sampler
from selfdistill.prompts.render import Renderer
from selfdistill.runs.events import Callback, Note, Phase
from selfdistill.scale.sampler import open_samplers
from selfdistill.training.session import Session, Totals
from selfdistill.training.steps import GenerationBatch, sample_batch

END_S = 2.0  # for a batch that is being scored as the run ends


@dataclass
class Ahead:
    """The batches of one run, with a `renderer` of their own. `numbers` are those of the last load of weights, until a
    record takes them."""

    session: Session
    sampler: Sampler
    callback: Callback
    renderer: Renderer
    numbers: dict[str, float] = field(default_factory=dict)
    batches: deque[Future[GenerationBatch]] = field(default_factory=deque)  # of other ranks: without results

    def next(self, totals: Totals) -> GenerationBatch:
        """The batch of the next step; begins those behind it. Raises `EndpointError`."""
        options, step = self.session.config.scale.sampler, totals.step
        assert options is not None
        self.callback(Phase("sampling and scoring"))
        began = time.monotonic()
        if not self.batches:
            self._begin(step, step, 1, totals.drawn, totals.solved)
        batch = self.session.policy.ranks.same(self.batches.popleft().result)
        if options.staleness and not self.batches:
            self._begin(step, step + 1, options.staleness, batch.drawn, batch.solved)
        self.sampler.rest()
        versions = [
            r.completion.policy_version for group in batch.groups for r in group.rollouts if r.completion.logprobs
        ]
        numbers, self.numbers = {**self.numbers, "staleness": float(step - min(versions, default=step))}, {}
        return replace(batch, numbers={**batch.numbers, **numbers}, waited_s=time.monotonic() - began)

    def load(self, step: int) -> None:
        """Waits for the batches in progress, and has the samplers load the weights as they are."""
        if not self.session.policy.ranks.rank:
            wait(self.batches)
        self.numbers |= self.sampler.load(self.session.policy, step)

    def _begin(self, step: int, first: int, count: int, drawn: Mapping[str, int], solved: Mapping[str, int]) -> None:
        self.load(step)
        before: Future[GenerationBatch] | None = None
        for number in range(first, min(first + count, self.session.config.steps)):
            here = not self.session.policy.ranks.rank
            before = started(partial(self._sampled, number, drawn, solved, before)) if here else Future()
            self.batches.append(before)

    def _sampled(
        self, step: int, drawn: Mapping[str, int], solved: Mapping[str, int], before: Future[GenerationBatch] | None
    ) -> GenerationBatch:
        """A batch, whose tasks follow from those `before` it, in a thread for which a run that ends does not wait.
        Nothing is exchanged with other ranks here, and the tokenizer is another: each belongs to one thread."""
        if before is not None:
            drawn, solved = before.result().drawn, before.result().solved
        alone = replace(self.session, policy=replace(self.session.policy, ranks=ALONE), renderer=self.renderer)
        return sample_batch(alone, step, drawn, solved)


def refuse_servers(config: RunConfig, command: str) -> None:
    """Raises `ConfigError` where the settings name samplers, for a command that samples by the model that it loads."""
    if config.scale.sampler is not None:
        why, do = "it would leave the setting without effect", "leave scale.sampler out"
        raise ConfigError(f"{command} samples in its own process", got="scale.sampler is set", why=why, do=do)


@contextmanager
def sampled_ahead(session: Session, out: Path, step: int, callback: Callback) -> Iterator[Ahead | None]:
    """The samplers of a run, with the weights of a step; None where the learner samples. Raises `ConfigError`,
    `EndpointError`."""
    config, options, env = session.config, session.config.scale.sampler, cast(Any, session.env)
    if options is None:
        yield None
        return
    if options.staleness and not config.sampling.whole:
        got = f"top_p {config.sampling.top_p:g}, temperature {config.sampling.temperature:g}"
        why = "a truncated or greedy choice has no ratio that corrects for older weights"
        do = "set scale.sampler.staleness to 0"
        raise ConfigError("staleness needs top_p=1 and a temperature above 0", got=got, why=why, do=do)
    if options.staleness and bool(getattr(env, "policy_weights", "")):
        why, do = "the weights that score answers are being trained meanwhile", "set scale.sampler.staleness to 0"
        raise ConfigError("staleness needs an environment without the run's own model", got=env.name, why=why, do=do)
    context, sampling = config.context, config.sampling
    most = max(context.max_prompt_tokens, context.max_teacher_tokens) + sampling.max_new_tokens
    most += sampling.conversation_tokens if isinstance(env, ConversationEnvironment) else 0
    tokens, probe = min(most, session.policy.context_length), session.renderer.prompt(session.tasks[0].messages)
    folder = Path(options.folder or out.parent) / f"{out.name}.samplers"
    note, ranks = (lambda text: callback(Note(text))), session.policy.ranks
    batches: deque[Future[GenerationBatch]] = deque()
    try:
        with open_samplers(config, folder, probe, tokens, note, ranks) as sampler:
            session.sampler = sampler
            own = replace(session.renderer, tokenizer=deepcopy(session.renderer.tokenizer))
            ahead = Ahead(session, sampler, callback, own, batches=batches)
            ahead.load(step)
            yield ahead
    finally:
        if not ranks.rank:
            wait(batches, END_S)  # what is quickly scored ends before Python does
