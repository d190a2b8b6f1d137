"""Answers of one version of the weights that are sampled together: they join between two decoding steps, and leave when
they are done or nobody waits for them any more.

Legend: B rows of the batch, L tokens so far, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from selfdistill.live.written import Written
from selfdistill.models.batching import common_length
from selfdistill.models.kept_states import ReadState
from selfdistill.models.kv_cache import PreallocatedCache, restored
from selfdistill.models.policy import Policy, padded
from selfdistill.models.precision import cache_dtype
from selfdistill.models.sampler import SamplingOptions, draw, normalised, nucleus
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
    each sampled one. `policy` are the weights that sample it; None: those of the engine when it is submitted. Set
    `cancelled` when nobody waits for it any more."""

    prompt: TokenIds
    options: SamplingOptions
    seed: int
    uid: str
    deliver: Callable[[Piece], None]
    stop: tuple[str, ...] = ()
    top: int = 0
    policy: Policy | None = None
    cancelled: bool = False
    ended: Ended = ""
    tokens: list[int] = field(default_factory=list)
    written: Written | None = None
    noise_T: Tensor | None = None

    @property
    def read(self) -> TokenIds:
        """What the model has read of it: all but the token sampled last."""
        return self.prompt + tuple(self.tokens[:-1])

    @property
    def limit(self) -> int:
        """How many tokens it may have."""
        assert self.policy is not None
        return min(self.options.max_new_tokens, self.policy.context_length - len(self.prompt))

    @property
    def uniform(self) -> float:
        """The random number of its next token."""
        assert self.noise_T is not None
        return float(self.noise_T[len(self.tokens)]) if len(self.noise_T) else 0.0

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


def joins(policy: Policy) -> bool:
    """Whether answers of this model can join a batch: its layers keep nothing but keys and values."""
    return PreallocatedCache(policy.base.config, whole=True).in_rows


class Batch:
    """The answers that weights are sampling, in one thread. What it keeps of prompts, for others that begin alike, is
    of these weights, and of at most `kept_tokens`."""

    def __init__(self, policy: Policy, kept_tokens: int) -> None:
        self.policy, self.kept_tokens, self._config = policy, kept_tokens, policy.base.config
        self.joins = joins(policy)
        # Windows count columns: a row with padding amid its tokens, behind what was kept, would see too few of them.
        self._keeps = self.joins and PreallocatedCache(self._config).in_rows
        self._head = policy.head(sampling=True)
        self.running: list[Generation] = []
        self.joining: Joining | None = None
        self._kept: list[ReadState] = []  # the newest last
        self._cache: PreallocatedCache | None = None
        self._mask_BL: Tensor | None = None

    @property
    def answers(self) -> list[Generation]:
        """Those being sampled, and those whose prompts are being read."""
        return [*self.running, *(self.joining.generations if self.joining else ())]

    def end_all(self, ended: Ended, why: str = "") -> None:
        """Ends what is being sampled, and forgets all states."""
        for generation in self.answers:
            if not generation.ended:
                generation.end(ended, why)
        self.running, self.joining, self._cache, self._mask_BL, self._kept = [], None, None, None, []

    def step(self) -> int:
        """Reads a part of new prompts, and samples the next token of every answer: how many were sampled."""
        self.leave()
        sampled = self._read_on(self.joining) if self.joining else 0
        if self.running:
            ids_B1 = torch.tensor([generation.tokens[-1:] for generation in self.running], device=self.policy.device)
            if self._mask_BL is not None:
                self._mask_BL = torch.cat([self._mask_BL, torch.ones_like(ids_B1)], dim=1)
            hidden_BD = self.policy.backbone(ids_B1, self._cache, self._mask_BL)[:, -1]
            sampled += len(self.running)
            self._sample(self.running, hidden_BD)
            self.leave()
        return sampled

    def leave(self) -> None:
        """Takes answers out that are done, or that nobody waits for."""
        for generation in self.running:
            if generation.cancelled and not generation.ended:
                generation.end("cancelled")
        going = [row for row, generation in enumerate(self.running) if not generation.ended]
        if len(going) == len(self.running):
            return
        assert self._cache is not None
        self._remember(self._cache, [row for row in range(len(self.running)) if row not in going])
        self.running = [self.running[row] for row in going]
        if not going:
            self._cache = self._mask_BL = None
            return
        rows_B: Any = torch.tensor(going, device=self.policy.device)
        self._cache.reorder_cache(rows_B)
        self._mask_BL = None if self._mask_BL is None else self._mask_BL[rows_B]

    def begin(self, taken: list[Generation]) -> None:
        """Lets answers join, once their prompts have been read."""
        prompts = list(dict.fromkeys(generation.prompt for generation in taken))
        states = [self._known(prompt) for prompt in prompts]
        left = [prompt[len(state.ids) if state else 0 :] for prompt, state in zip(prompts, states, strict=True)]
        ids_BL, mask_BL = padded(self.policy, left, "left")
        cache = PreallocatedCache(self._config, cache_dtype(self.policy.dtype), whole=True)
        held = 0
        if any(states):
            cache, held_BL = restored(self._config, states)
            held = held_BL.shape[1]
            mask_BL = torch.cat([held_BL, torch.ones_like(ids_BL) if mask_BL is None else mask_BL], dim=1)
        rows = [prompts.index(generation.prompt) for generation in taken]
        self.joining = Joining(taken, rows, cache, ids_BL, mask_BL, held)

    def _read_on(self, joining: Joining) -> int:
        """Reads the next part of new prompts; after the last, samples their first tokens and adds them to the batch."""
        upto = min(joining.done + CHUNK, joining.ids_BL.shape[1])
        mask_BL = None if joining.mask_BL is None else joining.mask_BL[:, : joining.held + upto]
        hidden_BLD = self.policy.backbone(joining.ids_BL[:, joining.done : upto], joining.cache, mask_BL)
        joining.done = upto
        if upto < joining.ids_BL.shape[1]:
            return 0
        self._sample(joining.generations, hidden_BLD[joining.rows, -1])
        self.joining = None
        going = [place for place, generation in enumerate(joining.generations) if not generation.ended]
        new = [joining.generations[place] for place in going]
        if not new:
            return len(joining.generations)
        if not self.running and [joining.rows[place] for place in going] == list(range(joining.ids_BL.shape[0])):
            self.running, self._cache, self._mask_BL = new, joining.cache, mask_BL
            return len(joining.generations)
        batch = [(each, self._cache, row, self._mask_BL) for row, each in enumerate(self.running)]
        batch += [(joining.generations[place], joining.cache, joining.rows[place], mask_BL) for place in going]
        self.running = [*self.running, *new]
        states = [self._state(each, cache, row, mask_BL) for each, cache, row, mask_BL in batch if cache is not None]
        self._cache, whole_BL = restored(self._config, states, whole=True)
        self._mask_BL = None if whole_BL.all() else whole_BL
        return len(joining.generations)

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
            uniform = [generations[row].uniform for row in rows]
            place = "cpu" if self.policy.device.type == "mps" else self.policy.device  # MPS has no float64
            noise_R1 = torch.tensor(uniform, dtype=torch.float64, device=place)[:, None]
            own_R = torch.arange(len(rows), device=self.policy.device)
            tokens_R, logprobs_R = draw(self._head, hidden_RD, own_R, noise_R1, options)
            listed = self._top(hidden_RD, options, max(generations[row].top for row in rows))
            drawn = zip(rows, tokens_R.tolist(), logprobs_R.tolist(), listed or [[]] * len(rows), strict=True)
            for row, token, logprob, top in drawn:
                self._deliver(generations[row], token, logprob, tuple(top[: generations[row].top]))

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
        if not ended and len(generation.tokens) >= generation.limit:
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
            if (common := common_length(state.ids, prompt[:-1])) > length:
                best, length = state, common
        if best is None:
            return None
        return ReadState(prompt[:length], [(keys[:, :length], values[:, :length]) for keys, values in best.layers])

    def _remember(self, cache: PreallocatedCache, rows: Sequence[int]) -> None:
        """Keeps the states of answers that leave the batch: the next prompt of a conversation begins with them."""
        for row in rows if self._keeps else ():
            read = self.running[row].read
            if LEAST_REUSED <= len(read) <= self.kept_tokens:
                kept = [state for state in self._kept if common_length(state.ids, read) < len(state.ids)]
                self._kept = [*kept, self._state(self.running[row], cache, row, self._mask_BL)]
        while sum(len(state.ids) for state in self._kept) > self.kept_tokens:
            del self._kept[0]
