"""Samples answers with a key-value cache, and keeps the log-probability of every sampled token.

Legend: B rows of a batch, L prompt tokens, T new tokens, V vocabulary.

Random numbers belong to a rollout, not to a batch: they are drawn from `(seed, uid)`. Which other prompts are sampled
at the same time changes an answer only through float noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, ModelError
from selfdistill.models.lengths import length_buckets, pad_left
from selfdistill.models.policy import Policy
from selfdistill.options import about, option
from selfdistill.signal.head import Head
from selfdistill.types import Completion, StopReason, TokenIds

if TYPE_CHECKING:
    from transformers import Cache

COMPACT_BELOW = 0.75  # drop finished rows from the batch when fewer than this share are still being written


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How answers are drawn. Raises `ConfigError`."""

    max_new_tokens: int = field(metadata=about("tokens of an answer, at most; longer ones are cut off"))
    temperature: float = option(1.0, "logits are divided by it; 0 takes the most likely token")
    top_p: float = option(1.0, "draw from the smallest set of likeliest tokens that holds this probability")
    batch_tokens: int = option(65_536, "rows of a batch times their longest length; bounds memory, changes no result")

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError("max_new_tokens must be at least 1", got=self.max_new_tokens)
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError("the temperature must be 0 or more", got=self.temperature, do="use 1.0, or 0 for greedy")
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                "top_p must be above 0 and at most 1", got=self.top_p, do="use 1.0 to draw from all tokens"
            )
        if self.batch_tokens < 1:
            raise ConfigError("batch_tokens must be at least 1", got=self.batch_tokens, do="try 65536")


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[TokenIds],
    options: SamplingOptions,
    *,
    seed: int,
    uids: Sequence[str],
    version: int,
) -> list[Completion]:
    """One completion per prompt, in order; repeat a prompt to get several. `uids` name them, `version` the weights.

    The end token is part of `token_ids` (the student learns to stop), special tokens are not part of `text`. A
    completion that reaches `max_new_tokens`, or the model's context, without an end token has `StopReason.LENGTH`.
    `logprobs` are in nats under the temperature and the tokens it was drawn from; at temperature 0 they are those of
    temperature 1, for a choice without chance has none of its own. The global random state is neither read nor moved.

    Raises `ModelError` for an empty prompt, or one that leaves no room in the context for a single token.
    """
    assert len(prompts) == len(uids)
    for prompt in prompts:
        _check_prompt(policy, prompt)
    completions: dict[int, Completion] = {}
    budget = [len(prompt) + min(options.max_new_tokens, policy.context_length - len(prompt)) for prompt in prompts]
    for bucket in length_buckets(budget, options.batch_tokens):
        # Equal prompts side by side: they are read once.
        bucket.sort(key=lambda index: (len(prompts[index]), prompts[index], index))
        batch = _Batch(policy, [prompts[i] for i in bucket], options, [_noise(seed, uids[i], options) for i in bucket])
        for index, (token_ids, logprobs) in zip(bucket, batch.run(), strict=True):
            completions[index] = _completion(policy, uids[index], token_ids, logprobs, version)
    return [completions[index] for index in range(len(prompts))]


def _check_prompt(policy: Policy, prompt: TokenIds) -> None:
    if not prompt:
        raise ModelError("a prompt is empty", why="the first token is predicted from the last prompt token")
    if len(prompt) >= policy.context_length:
        why = f"{policy.name} reads at most {policy.context_length} tokens, prompt and answer together"
        do = "leave this task out, or shorten it"
        raise ModelError("a prompt leaves no room for an answer", got=f"{len(prompt)} tokens", why=why, do=do)


def _noise(seed: int, uid: str, options: SamplingOptions) -> Tensor:
    """noise_T: the uniform numbers of one rollout, whatever else is sampled beside it."""
    digest = blake2b(f"{seed}:{uid}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.rand(options.max_new_tokens if options.temperature else 0, generator=generator)


def _completion(policy: Policy, uid: str, token_ids: TokenIds, logprobs: tuple[float, ...], version: int) -> Completion:
    stop = StopReason.END if token_ids[-1] in policy.end_ids else StopReason.LENGTH
    text = policy.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(uid, str(text), token_ids, logprobs, stop, version)


class _Batch:
    """Rows that are written together: prompts end at the same column (left-padded), finished rows are dropped."""

    def __init__(
        self, policy: Policy, prompts: Sequence[TokenIds], options: SamplingOptions, noise: Sequence[Tensor]
    ) -> None:
        self.policy, self.options, self.prompts = policy, options, prompts
        device = policy.device
        self.noise_BT = torch.stack(list(noise)).to(device)
        self.room_B = torch.tensor([policy.context_length - len(prompt) for prompt in prompts], device=device)
        self.ends = torch.tensor(sorted(policy.end_ids), dtype=torch.long, device=device)
        self.tokens_BT = torch.zeros(len(prompts), options.max_new_tokens, dtype=torch.long, device=device)
        self.logprobs_BT = torch.zeros(len(prompts), options.max_new_tokens, device=device)
        self.length_B = torch.zeros(len(prompts), dtype=torch.long, device=device)

    def run(self) -> list[tuple[TokenIds, tuple[float, ...]]]:
        """Token ids and log-probabilities of every row."""
        # One context around all steps: autocast keeps its bfloat16 copies of the weights until the outermost ends.
        with self.policy.computing():
            self._write()
        rows = zip(self.tokens_BT.tolist(), self.logprobs_BT.tolist(), self.length_B.tolist(), strict=True)
        return [(tuple(tokens[:length]), tuple(logprobs[:length])) for tokens, logprobs, length in rows]

    def _write(self) -> None:
        hidden_BD = self._prefill()
        head, steps = self.policy.head(), self.tokens_BT.shape[1]
        live = torch.arange(len(self.prompts), device=self.policy.device)  # rows of the results still in the batch
        for step in range(steps):
            tokens_B, logprobs_B = self._draw(head, hidden_BD, live, step)
            # Rows that have ended are written too, past their length, where nobody looks.
            self.tokens_BT[live, step], self.logprobs_BT[live, step] = tokens_B, logprobs_B
            stops_B = torch.isin(tokens_B, self.ends) | (self.room_B[live] <= step + 1) | (step + 1 == steps)
            length_B = self.length_B[live]
            self.length_B[live] = torch.where((length_B == 0) & stops_B, step + 1, length_B)
            open_B = self.length_B[live] == 0
            count = int(open_B.sum())
            if count == 0:
                return
            if count < COMPACT_BELOW * len(live):
                kept = open_B.nonzero().squeeze(1)
                live, tokens_B = live[kept], tokens_B[kept]
                self._select(kept)
            hidden_BD = self._read(tokens_B[:, None])

    def _prefill(self) -> Tensor:
        """Reads every different prompt once, then gives each row its copy. Returns the state before the answer."""
        from transformers import DynamicCache

        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(self.prompts))}
        ids_BL, mask_BL = pad_left(list(places), self.policy.pad_id)
        self.cache: Cache = DynamicCache(config=self.policy.base.config)
        self.padded = bool((mask_BL == 0).any())
        self.mask_BL = mask_BL.to(self.policy.device)
        self.next_B = self.mask_BL.sum(1)
        options = {}
        if self.padded:
            positions_BL = (self.mask_BL.cumsum(1) - 1).clamp(min=0)
            options = {"attention_mask": self.mask_BL, "position_ids": positions_BL}
        hidden_BLD = self.policy.backbone(
            ids_BL.to(self.policy.device), past_key_values=self.cache, use_cache=True, **options
        )
        rows = torch.tensor([places[prompt] for prompt in self.prompts], device=self.policy.device)
        self._select(rows)
        return hidden_BLD[rows, -1]

    def _read(self, ids_B1: Tensor) -> Tensor:
        """hidden_BD after one more token in every row."""
        options = {}
        if self.padded:
            self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(ids_B1)], dim=1)
            options = {"attention_mask": self.mask_BL, "position_ids": self.next_B[:, None]}
            # A finished row may still ride along past the end of the context; its states are never used.
            self.next_B = (self.next_B + 1).clamp(max=self.policy.context_length - 1)
        return self.policy.backbone(ids_B1, past_key_values=self.cache, use_cache=True, **options)[:, -1]

    def _select(self, rows: Tensor) -> None:
        """Keeps (or repeats) these rows of the cache and of the mask."""
        self.cache.batch_select_indices(rows)
        self.mask_BL, self.next_B = self.mask_BL[rows], self.next_B[rows]

    def _draw(self, head: Head, hidden_BD: Tensor, live: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Next tokens and their log-probabilities, from logits in float32 as the signal computes them."""
        with torch.autocast(self.policy.device.type, enabled=False):
            logits_BV = head.logits(hidden_BD)
        if self.options.temperature == 0:
            tokens_B = logits_BV.argmax(-1)
            return tokens_B, logits_BV.log_softmax(-1).gather(-1, tokens_B[:, None]).squeeze(-1)
        logprobs_BV = nucleus((logits_BV / self.options.temperature).log_softmax(-1), self.options.top_p)
        tokens_B = inverse_draw(logprobs_BV.exp(), self.noise_BT[live, step])
        return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None]).squeeze(-1)


def nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Normalised on the smallest set of likeliest tokens that holds at least `top_p`; -inf elsewhere."""
    if top_p >= 1:
        return logprobs_BV
    sorted_BV, order_BV = logprobs_BV.sort(-1, descending=True)
    before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
    kept_BV = torch.zeros_like(order_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)
    return logprobs_BV.masked_fill(~kept_BV, -math.inf).log_softmax(-1)


def inverse_draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """tokens_B: the first token at which the cumulative probability exceeds a uniform number in [0, 1).

    >>> inverse_draw(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0.5]))
    tensor([2])
    """
    cumulative_BV = probabilities_BV.cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    # Below the total even after rounding, so that the token found has a probability above zero.
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, total_B1 * (1 - 2**-23))
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
