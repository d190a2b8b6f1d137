"""Continuous batching: one thread owns the model; answers join its batch between decoding steps, and leave when they
are done or nobody waits for them any more.

engine = Engine(policy)
engine.submit(Generation(prompt, options, seed, uid, deliver))      `deliver` is called in the engine's thread
engine.close(grace_s)                                               answers end, later ones are refused

Answers are admitted in the order in which they came. The draws of an answer follow from its seed and uid: who shares
the batch changes it through float noise alone, as in `models.sampler`.

Legend: B rows of the batch, L tokens so far, D hidden size, V vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from selfdistill.errors import ModelError
from selfdistill.live.written import Written
from selfdistill.losses.head import widened
from selfdistill.models.kept_states import ReadState
from selfdistill.models.kv_cache import PreallocatedCache, restored
from selfdistill.models.policy import Policy, padded
from selfdistill.models.precision import cache_dtype
from selfdistill.models.sampler import SamplingOptions, draw, noise, normalised, nucleus
from selfdistill.types import TokenIds

CHUNK = 512  # columns of new prompts that are read between two decoding steps
LEAST_REUSED = 16  # tokens, from which on it pays to look for a prompt's beginning among those read before

Ended = Literal["", "end", "length", "stop string", "cancelled", "failed", "shutdown"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A sampled token with what its text adds, or the end of an answer, or both. `top` lists the likeliest tokens with
    their log-probabilities; `why` explains a failure."""

    text: str = ""
    token: int | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    ended: Ended = ""
    why: str = ""


@dataclass(eq=False, slots=True)
class Generation:
    """An answer that is to be sampled. `stop` are texts that end it, `top` is how many likeliest tokens are listed for
    each sampled one. Set `cancelled` when nobody waits for it any more."""

    prompt: TokenIds
    options: SamplingOptions
    seed: int
    uid: str
    deliver: Callable[[Piece], None]
    stop: tuple[str, ...] = ()
    top: int = 0
    cancelled: bool = False
    ended: Ended = ""
    tokens: list[int] = field(default_factory=list)
    written: Written | None = None
    noise_T: Tensor | None = None

    @property
    def read(self) -> TokenIds:
        """What the model has read of it: all but the token sampled last."""
        return self.prompt + tuple(self.tokens[:-1])

    def end(self, ended: Ended, why: str = "") -> None:
        """Ends it without another token."""
        self.ended = ended
        self.deliver(Piece(ended=ended, why=why))


@dataclass(slots=True)
class Joining:
    """Answers whose prompts are being read, a part between any two decoding steps. Equal prompts are read once: `rows`
    are those of the answers."""

    generations: list[Generation]
    rows: list[int]
    cache: PreallocatedCache
    ids_BL: Tensor
    mask_BL: Tensor | None
    held: int
    done: int = 0


class Engine:
    """Samples answers in one batch of at most `rows`, whose tokens, padding and room to the limit of each answer
    included, are at most `batch_tokens`; a single answer may have more. `kept_tokens` bounds what is kept of prompts
    for others that begin alike."""

    def __init__(
        self, policy: Policy, *, rows: int = 32, batch_tokens: int = 65_536, kept_tokens: int = 16_384
    ) -> None:
        self.policy, self._config = policy, policy.base.config
        self.joins = self._empty().in_rows
        # Windows count columns: a row with padding amid its tokens, behind what was kept, would see too few of them.
        self.keeps = self.joins and PreallocatedCache(self._config).in_rows
        self.rows, self.batch_tokens, self.kept_tokens = rows if self.joins else 1, batch_tokens, kept_tokens
        self.sampled = 0
        (self._head,) = widened([policy.head()])
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._joining: Joining | None = None
        self._kept: list[ReadState] = []  # the newest last
        self._cache: PreallocatedCache | None = None
        self._mask_BL: Tensor | None = None
        self._wake, self._deadline = threading.Condition(), float("inf")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are being sampled, and how many wait."""
        joining = self._joining
        return len(self._running) + (len(joining.generations) if joining else 0), len(self._waiting)

    def submit(self, *generations: Generation) -> None:
        """Queues answers. Raises `ModelError` for a prompt that is empty or leaves no room for an answer."""
        context = self.policy.context_length
        for generation in generations:
            if not 0 < len(generation.prompt) < context:
                why = f"{self.policy.name} reads at most {context} tokens, prompt and answer together"
                got = f"{len(generation.prompt)} tokens"
                raise ModelError("a prompt leaves no room for an answer", got=got, why=why)
            generation.written = Written(self.policy.tokenizer, generation.stop)
            drawn = self._limit(generation) if generation.options.temperature else 0
            generation.noise_T = noise(generation.seed, generation.uid, drawn)
        with self._wake:
            closed = self._deadline < float("inf")
            if not closed:
                self._waiting.extend(generations)
            self._wake.notify()
        if closed:
            for generation in generations:
                generation.end("shutdown")

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
        with self.policy.autocast():
            while True:
                with self._wake:
                    while not (self._waiting or self._running or self._joining or self._deadline < float("inf")):
                        self._wake.wait()
                    if self._deadline < float("inf"):
                        self._drain()
                        if not (self._running or self._joining):
                            return
                try:
                    self._round()
                except (RuntimeError, MemoryError) as error:  # of torch, such as memory that is exhausted
                    self._end_all("failed", f"{type(error).__name__}: {error}"[:500])

    def _drain(self) -> None:
        while self._waiting:
            self._waiting.popleft().end("shutdown")
        if time.monotonic() >= self._deadline:
            self._end_all("shutdown")

    def _end_all(self, ended: Ended, why: str = "") -> None:
        """Ends what is being sampled, and forgets all states."""
        for generation in [*self._running, *(self._joining.generations if self._joining else ())]:
            if not generation.ended:
                generation.end(ended, why)
        self._running, self._joining, self._cache, self._mask_BL, self._kept = [], None, None, None, []

    def _round(self) -> None:
        """Reads a part of new prompts, and samples the next token of every answer."""
        self._leave()
        if self._joining is None:
            self._begin()
        if self._joining is not None:
            self._read_on(self._joining)
        if self._running:
            ids_B1 = torch.tensor([generation.tokens[-1:] for generation in self._running], device=self.policy.device)
            if self._mask_BL is not None:
                self._mask_BL = torch.cat([self._mask_BL, torch.ones_like(ids_B1)], dim=1)
            hidden_BD = self.policy.backbone(ids_B1, self._cache, self._mask_BL)[:, -1]
            self._sample(self._running, hidden_BD)
            self._leave()

    def _leave(self) -> None:
        """Takes answers out of the batch that are done, or that nobody waits for."""
        for generation in self._running:
            if generation.cancelled and not generation.ended:
                generation.end("cancelled")
        going = [row for row, generation in enumerate(self._running) if not generation.ended]
        if len(going) == len(self._running):
            return
        assert self._cache is not None
        self._remember(self._cache, [row for row in range(len(self._running)) if row not in going])
        self._running = [self._running[row] for row in going]
        if not going:
            self._cache = self._mask_BL = None
            return
        rows_B: Any = torch.tensor(going, device=self.policy.device)
        self._cache.reorder_cache(rows_B)
        self._mask_BL = None if self._mask_BL is None else self._mask_BL[rows_B]

    def _begin(self) -> None:
        """Takes answers from the head of the queue, as long as there is room for the next one."""
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
        prompts = list(dict.fromkeys(generation.prompt for generation in taken))
        states = [self._known(prompt) for prompt in prompts]
        left = [prompt[len(state.ids) if state else 0 :] for prompt, state in zip(prompts, states, strict=True)]
        ids_BL, mask_BL = padded(self.policy, left, "left")
        cache, held = self._empty(), 0
        if any(states):
            cache, held_BL = restored(self._config, states)
            held = held_BL.shape[1]
            mask_BL = torch.cat([held_BL, torch.ones_like(ids_BL) if mask_BL is None else mask_BL], dim=1)
        rows = [prompts.index(generation.prompt) for generation in taken]
        self._joining = Joining(taken, rows, cache, ids_BL, mask_BL, held)

    def _fits(self, new: Sequence[Generation]) -> bool:
        rows = [*self._running, *new]
        longest, shortest = (pick(len(each.prompt) for each in new) for pick in (max, min))
        widest = max(len(each.prompt) + self._limit(each) for each in rows)
        within = len(rows) <= self.rows and len(rows) * widest <= self.batch_tokens
        return len(rows) == 1 or (within and longest <= 2 * shortest + 64)  # little padding

    def _limit(self, generation: Generation) -> int:
        return min(generation.options.max_new_tokens, self.policy.context_length - len(generation.prompt))

    def _read_on(self, joining: Joining) -> None:
        """Reads the next part of new prompts; after the last, samples their first tokens and adds them to the batch."""
        upto = min(joining.done + CHUNK, joining.ids_BL.shape[1])
        mask_BL = None if joining.mask_BL is None else joining.mask_BL[:, : joining.held + upto]
        hidden_BLD = self.policy.backbone(joining.ids_BL[:, joining.done : upto], joining.cache, mask_BL)
        joining.done = upto
        if upto < joining.ids_BL.shape[1]:
            return
        self._joining = None
        self._sample(joining.generations, hidden_BLD[joining.rows, -1])
        going = [place for place, generation in enumerate(joining.generations) if not generation.ended]
        if not going:
            return
        new = [joining.generations[place] for place in going]
        if not self._running and [joining.rows[place] for place in going] == list(range(joining.ids_BL.shape[0])):
            self._running, self._cache, self._mask_BL = new, joining.cache, mask_BL
            return
        batch = [(each, self._cache, row, self._mask_BL) for row, each in enumerate(self._running)]
        batch += [(joining.generations[place], joining.cache, joining.rows[place], mask_BL) for place in going]
        states = [self._state(each, cache, row, mask_BL) for each, cache, row, mask_BL in batch if cache is not None]
        self._running = [*self._running, *new]
        self._cache, whole_BL = restored(self._config, states, whole=True)
        self._mask_BL = None if whole_BL.all() else whole_BL

    def _empty(self) -> PreallocatedCache:
        return PreallocatedCache(self._config, cache_dtype(self.policy.dtype), whole=True)

    def _state(self, generation: Generation, cache: PreallocatedCache, row: int, mask_BL: Tensor | None) -> ReadState:
        layers = cache.row(row, mask_BL)
        assert layers is not None, "a model whose answers join keeps keys and values"
        return ReadState(generation.read, layers)

    def _sample(self, generations: Sequence[Generation], hidden_BD: Tensor) -> None:
        """Draws the next token of each answer, and delivers it."""
        groups: dict[tuple[float, float], list[int]] = {}
        for row, each in enumerate(generations):
            groups.setdefault((each.options.temperature, each.options.top_p), []).append(row)
        for rows in groups.values():
            options, hidden_RD = generations[rows[0]].options, hidden_BD[rows]
            uniform = [self._uniform(generations[row]) for row in rows]
            place = "cpu" if self.policy.device.type == "mps" else self.policy.device  # MPS has no float64
            noise_R1 = torch.tensor(uniform, dtype=torch.float64, device=place)[:, None]
            own_R = torch.arange(len(rows), device=self.policy.device)
            tokens_R, logprobs_R = draw(self._head, hidden_RD, own_R, noise_R1, options)
            listed = self._top(hidden_RD, options, max(generations[row].top for row in rows))
            drawn = zip(rows, tokens_R.tolist(), logprobs_R.tolist(), listed or [[]] * len(rows), strict=True)
            for row, token, logprob, top in drawn:
                self._deliver(generations[row], token, logprob, tuple(top[: generations[row].top]))
        self.sampled += len(generations)

    def _uniform(self, generation: Generation) -> float:
        """The random number of an answer's next token."""
        assert generation.noise_T is not None
        return float(generation.noise_T[len(generation.tokens)]) if len(generation.noise_T) else 0.0

    def _top(self, hidden_RD: Tensor, options: SamplingOptions, count: int) -> list[list[tuple[int, float]]]:
        if not count:
            return []
        with torch.autocast(hidden_RD.device.type, enabled=False):
            logprobs_RV = normalised(self._head.logits(hidden_RD) / (options.temperature or 1.0))
        if options.temperature and options.top_p < 1:
            logprobs_RV = nucleus(logprobs_RV, options.top_p)
        values, tokens = logprobs_RV.topk(min(count, logprobs_RV.shape[1]))
        return [list(zip(*pair, strict=True)) for pair in zip(tokens.tolist(), values.tolist(), strict=True)]

    def _deliver(self, generation: Generation, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        assert generation.written is not None
        generation.tokens.append(token)
        ended: Ended = "end" if token in self.policy.end_ids else ""
        if not ended and len(generation.tokens) >= self._limit(generation):
            ended = "length"
        text = generation.written.add(token, last=bool(ended))
        if generation.written.stopped:
            ended = "stop string"
        generation.ended = ended
        generation.deliver(Piece(text, token, logprob, top, ended))

    def _known(self, prompt: TokenIds) -> ReadState | None:
        """What was read before of the beginning of a prompt, all of it but its last token at most."""
        best, length = None, LEAST_REUSED - 1
        for state in self._kept:
            if (common := _common(state.ids, prompt[:-1])) > length:
                best, length = state, common
        if best is None:
            return None
        return ReadState(prompt[:length], [(keys[:, :length], values[:, :length]) for keys, values in best.layers])

    def _remember(self, cache: PreallocatedCache, rows: Sequence[int]) -> None:
        """Keeps the states of answers that leave the batch: the next prompt of a conversation begins with them."""
        for row in rows if self.keeps else ():
            read = self._running[row].read
            if LEAST_REUSED <= len(read) <= self.kept_tokens:
                kept = [state for state in self._kept if _common(state.ids, read) < len(state.ids)]
                self._kept = [*kept, self._state(self._running[row], cache, row, self._mask_BL)]
        while sum(len(state.ids) for state in self._kept) > self.kept_tokens:
            del self._kept[0]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
