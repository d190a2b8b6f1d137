"""Continuous batching: one thread samples all answers, a token of each at a time.

engine = Engine(policy)
engine.submit(Generation(prompt, options, seed, uid, deliver))      `deliver` is called in the engine's thread
engine.serve(other)                                                 weights of answers that are submitted from now on
engine.close(grace_s)                                               answers end, later ones are refused

Answers are admitted in the order in which they came. The draws of an answer follow from its seed and uid: who shares
the batch changes it through float noise alone, as in `models.sampler`. Answers of different weights are batches of
their own, which take turns: one that is in progress ends with the weights with which it began.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import torch

from selfdistill.errors import ModelError
from selfdistill.live.batch import Batch, Generation, joins
from selfdistill.live.written import Written
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import noise

FAILURES = (RuntimeError, MemoryError)  # of torch, such as memory that is exhausted


class Engine:
    """Samples at most `rows` answers at a time, whose tokens, padding and room to the limit of each answer included,
    are at most `batch_tokens`; a single answer may have more. `kept_tokens` bounds what is kept of prompts for others
    that begin alike. Weights other than those of `policy` are let go when their last answer has ended."""

    def __init__(
        self, policy: Policy, *, rows: int = 32, batch_tokens: int = 65_536, kept_tokens: int = 16_384
    ) -> None:
        self.policy, self.rows, self.batch_tokens, self.kept_tokens = policy, rows, batch_tokens, kept_tokens
        self.sampled = 0
        self._waiting: deque[Generation] = deque()
        self._batches: list[Batch] = []
        self._wake, self._deadline = threading.Condition(), float("inf")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def joins(self) -> bool:
        """Whether answers are sampled together; else one by one."""
        return joins(self.policy)

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are being sampled, and how many wait."""
        return sum(len(batch.answers) for batch in tuple(self._batches)), len(self._waiting)

    def submit(self, *generations: Generation) -> None:
        """Queues answers. Raises `ModelError` for a prompt that is empty or leaves no room for an answer."""
        for generation in generations:
            policy = generation.policy = generation.policy or self.policy
            if not 0 < len(generation.prompt) < policy.context_length:
                why = f"{policy.name} reads at most {policy.context_length} tokens, prompt and answer together"
                got = f"{len(generation.prompt)} tokens"
                raise ModelError("a prompt leaves no room for an answer", got=got, why=why)
            generation.written = Written(policy.tokenizer, generation.stop)
            drawn = generation.limit if generation.options.temperature else 0
            generation.noise_T = noise(generation.seed, generation.uid, drawn)
        with self._wake:
            closed = self._deadline < float("inf")
            if not closed:
                self._waiting.extend(generations)
            self._wake.notify()
        if closed:
            for generation in generations:
                generation.end("shutdown")

    def serve(self, policy: Policy) -> None:
        """Samples answers from now on with these weights; those that were submitted end with theirs."""
        with self._wake:
            self.policy = policy
            self._wake.notify()

    def close(self, grace_s: float = 0.0) -> None:
        """Refuses what waits and what comes, and ends what is being sampled after `grace_s` seconds."""
        with self._wake:
            self._deadline = min(self._deadline, time.monotonic() + grace_s)
            self._wake.notify()

    def join(self) -> None:
        """Waits until the thread has ended; after `close`."""
        self._thread.join()

    @torch.no_grad()
    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or sum(self.load) or self._deadline < float("inf")):
                    self._batches = [batch for batch in self._batches if batch.policy is self.policy]
                    if self.policy.device.type == "cuda":
                        torch.cuda.empty_cache()  # an update in another process needs it
                    self._wake.wait()
                if self._deadline < float("inf"):
                    self._drain()
                    if not sum(self.load):
                        return
            try:
                self._begin()
                for batch in self._batches:
                    with batch.policy.autocast():
                        self.sampled += batch.step()
            except FAILURES as error:
                for batch in self._batches:
                    batch.end_all("failed", _why(error))
            self._batches = [batch for batch in self._batches if batch.answers or batch.policy is self.policy]

    def _drain(self) -> None:
        while self._waiting:
            self._waiting.popleft().end("shutdown")
        if time.monotonic() >= self._deadline:
            for batch in self._batches:
                batch.end_all("shutdown")

    def _begin(self) -> None:
        """Lets answers at the head of the queue join the batch of their weights, as long as there is room for the next
        one."""
        for batch in self._batches:
            batch.leave()
        if any(batch.joining for batch in self._batches):
            return
        taken: list[Generation] = []
        with self._wake:
            while self._waiting and (self._waiting[0].cancelled or self._fits([*taken, self._waiting[0]])):
                generation = self._waiting.popleft()
                if generation.cancelled:
                    generation.end("cancelled")
                else:
                    taken.append(generation)
        if not taken:
            return
        try:
            self._batch(taken[0]).begin(taken)
        except FAILURES as error:
            for generation in taken:
                generation.end("failed", _why(error))
            raise

    def _batch(self, generation: Generation) -> Batch:
        """The batch of an answer's weights."""
        assert generation.policy is not None
        found = next((batch for batch in self._batches if batch.policy is generation.policy), None)
        if found is None:
            found = Batch(generation.policy, self.kept_tokens)
            self._batches = [*self._batches, found]
        return found

    def _fits(self, new: list[Generation]) -> bool:
        batch, rows = self._batch(new[0]), [*(each for batch in self._batches for each in batch.running), *new]
        longest, shortest = (pick(len(each.prompt) for each in new) for pick in (max, min))
        widest = max(len(each.prompt) + each.limit for each in rows)
        within = len(rows) <= self.rows and len(rows) * widest <= self.batch_tokens
        alike = new[-1].policy is batch.policy and longest <= 2 * shortest + 64  # little padding
        return len(rows) == 1 or (within and alike and (batch.joins or len(batch.running) + len(new) == 1))


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
