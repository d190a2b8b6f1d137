"""Samples answers with a key-value cache, and keeps the log-probability of every sampled token.

Legend: R rows (answers) of a batch, B branches (different texts among them), L tokens so far, T new tokens, V
vocabulary, cut into K blocks of C tokens.

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
from torch.nn import functional as F

from selfdistill.errors import ConfigError, ModelError
from selfdistill.losses.head import Head, widened
from selfdistill.models.lengths import length_buckets, pad_left
from selfdistill.models.policy import Policy
from selfdistill.options import about, option
from selfdistill.types import Completion, StopReason, TokenIds

if TYPE_CHECKING:
    from transformers import Cache

# Numbers that a CPU works on at a time after the head. Arrays of megabytes leave its cache, and the operating system
# maps and clears their memory anew for every operation, which takes longer than the operation.
CACHED_LOGITS = 2**16
BLOCK = 512  # tokens whose probabilities are summed before one is drawn


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How answers are drawn. Raises `ConfigError`."""

    max_new_tokens: int = field(
        metadata=about("tokens of an answer, at most; longer ones are cut off", least=1, most=1_000_000)
    )
    temperature: float = option(1.0, "logits are divided by it; 0 takes the most likely token", least=0)
    top_p: float = option(
        1.0, "draw from the smallest set of likeliest tokens that holds this probability", above=0, most=1
    )
    batch_tokens: int = option(
        65_536, "rows of a batch times their longest length; bounds memory, changes no result", least=1
    )

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

    @property
    def whole(self) -> bool:
        """Whether answers are drawn from all tokens, so that `logprobs` are what the model says at this temperature."""
        return self.top_p == 1.0 and self.temperature > 0


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
    context = policy.context_length
    for prompt in prompts:
        _check_prompt(policy.name, context, prompt)
    completions: dict[int, Completion] = {}
    (head,) = widened([policy.head()])
    budget = [min(len(prompt) + options.max_new_tokens, context) for prompt in prompts]
    for bucket in length_buckets(budget, options.batch_tokens):
        # Equal prompts side by side: they are read once.
        bucket.sort(key=lambda index: (len(prompts[index]), prompts[index], index))
        noise = [_noise(seed, uids[i], options) for i in bucket]
        batch = _Batch(policy, head, [prompts[i] for i in bucket], options, noise)
        for index, (token_ids, logprobs) in zip(bucket, batch.run(), strict=True):
            completions[index] = _completion(policy, uids[index], token_ids, logprobs, version)
    return [completions[index] for index in range(len(prompts))]


def _check_prompt(model: str, context: int, prompt: TokenIds) -> None:
    if not prompt:
        raise ModelError("a prompt is empty", why="the first token is predicted from the last prompt token")
    if len(prompt) >= context:
        why = f"{model} reads at most {context} tokens, prompt and answer together"
        do = "leave this task out, or shorten it"
        raise ModelError("a prompt leaves no room for an answer", got=f"{len(prompt)} tokens", why=why, do=do)


def _noise(seed: int, uid: str, options: SamplingOptions) -> Tensor:
    """noise_T: the uniform numbers of one rollout, whatever else is sampled beside it. In float64: the 2^24 different
    numbers of float32 cannot reach most of the rare tokens of a large vocabulary."""
    digest = blake2b(f"{seed}:{uid}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    count = options.max_new_tokens if options.temperature else 0
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _completion(policy: Policy, uid: str, token_ids: TokenIds, logprobs: tuple[float, ...], version: int) -> Completion:
    stop = StopReason.END if token_ids[-1] in policy.end_ids else StopReason.LENGTH
    text = policy.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(uid, str(text), token_ids, logprobs, stop, version)


class _Batch:
    """Rows that are written together. Rows whose texts are the same so far, prompt and answer, are one branch: the
    model reads it once. Prompts end at the same column (left-padded); a row leaves with its last token."""

    def __init__(
        self,
        policy: Policy,
        head: Head,
        prompts: Sequence[TokenIds],
        options: SamplingOptions,
        noise: Sequence[Tensor],
    ) -> None:
        self.policy, self.head, self.options, self.prompts = policy, head, options, prompts
        device, context = policy.device, policy.context_length
        self.noise_RT = torch.stack(list(noise)).to(_exact_device(device))
        self.room_R = torch.tensor([context - len(prompt) for prompt in prompts], device=device)
        self.ends = torch.tensor(sorted(policy.end_ids), dtype=torch.long, device=device)
        self.tokens_RT = torch.zeros(len(prompts), options.max_new_tokens, dtype=torch.long, device=device)
        self.logprobs_RT = torch.zeros(len(prompts), options.max_new_tokens, device=device)
        self.length_R = torch.zeros(len(prompts), dtype=torch.long, device=device)

    def run(self) -> list[tuple[TokenIds, tuple[float, ...]]]:
        """Token ids and log-probabilities of every row."""
        # One context around all steps: autocast keeps its bfloat16 copies of the weights until the outermost ends.
        with self.policy.autocast():
            self._write()
        rows = zip(self.tokens_RT.tolist(), self.logprobs_RT.tolist(), self.length_R.tolist(), strict=True)
        return [(tuple(tokens[:length]), tuple(logprobs[:length])) for tokens, logprobs, length in rows]

    def _write(self) -> None:
        steps = self.tokens_RT.shape[1]
        hidden_BD, branch_R = self._prefill()
        live_R = torch.arange(len(self.prompts), device=self.policy.device)  # rows of the results still being written
        for step in range(steps):
            noise_R1 = self.noise_RT[live_R.to(self.noise_RT.device), step : step + 1]
            tokens_R, logprobs_R = self._draw(hidden_BD, branch_R, noise_R1)
            self.tokens_RT[live_R, step], self.logprobs_RT[live_R, step] = tokens_R, logprobs_R
            self.length_R[live_R] = step + 1
            stops_R = torch.isin(tokens_R, self.ends) | (self.room_R[live_R] <= step + 1)
            kept = (~stops_R).nonzero().squeeze(1)
            if not len(kept) or step + 1 == steps:
                return
            live_R = live_R[kept]
            ids_B1, branch_R = self._branch(branch_R[kept], tokens_R[kept], len(hidden_BD))
            hidden_BD = self._read(ids_B1)

    def _prefill(self) -> tuple[Tensor, Tensor]:
        """Reads every different prompt once. Returns the states before the answers, and the branch of each row."""
        from selfdistill.models.kv_cache import preallocated_cache

        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(self.prompts))}
        ids_BL, mask_BL = pad_left(list(places), self.policy.pad_id)
        self.cache: Cache = preallocated_cache(self.policy.base.config)
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
        branch_R = torch.tensor([places[prompt] for prompt in self.prompts], device=self.policy.device)
        return hidden_BLD[:, -1], branch_R

    def _branch(self, branch_R: Tensor, tokens_R: Tensor, branches: int) -> tuple[Tensor, Tensor]:
        """Follows each branch once for every different token that its rows say; drops those without a row.

        Returns the tokens to read, and the new branch of each row.
        """
        pairs_B, branch_R = torch.unique(branch_R * self.head.vocabulary + tokens_R, return_inverse=True)
        parents_B = pairs_B // self.head.vocabulary
        if not torch.equal(parents_B, torch.arange(branches, device=parents_B.device)):
            self.cache.reorder_cache(parents_B)
            self.mask_BL, self.next_B = self.mask_BL[parents_B], self.next_B[parents_B]
        return (pairs_B % self.head.vocabulary)[:, None], branch_R

    def _read(self, ids_B1: Tensor) -> Tensor:
        """hidden_BD after one more token in every branch."""
        options = {}
        if self.padded:
            self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(ids_B1)], dim=1)
            options = {"attention_mask": self.mask_BL, "position_ids": self.next_B[:, None]}
            self.next_B = self.next_B + 1
        return self.policy.backbone(ids_B1, past_key_values=self.cache, use_cache=True, **options)[:, -1]

    def _draw(self, hidden_BD: Tensor, branch_R: Tensor, noise_R1: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens and their log-probabilities, from logits in float32 as the signal computes them."""
        with torch.autocast(self.policy.device.type, enabled=False):
            logits_BV = self.head.logits(hidden_BD)
        rows = max(1, CACHED_LOGITS // self.head.vocabulary) if branch_R.device.type == "cpu" else len(branch_R)
        parts = zip(torch.split(branch_R, rows), torch.split(noise_R1, rows), strict=True)
        tokens, logprobs = zip(*(self._choose(logits_BV[branch], noise_B1) for branch, noise_B1 in parts), strict=True)
        return torch.cat(tokens), torch.cat(logprobs)

    def _choose(self, logits_BV: Tensor, noise_B1: Tensor) -> tuple[Tensor, Tensor]:
        if self.options.temperature == 0:
            logprobs_BV = logits_BV.log_softmax(-1)
            tokens_B1 = logits_BV.argmax(-1, keepdim=True)
        else:
            logprobs_BV = nucleus((logits_BV / self.options.temperature).log_softmax(-1), self.options.top_p)
            tokens_B1 = inverse_draw(logprobs_BV.exp(), noise_B1.squeeze(1))[:, None]
        return tokens_B1.squeeze(1), logprobs_BV.gather(-1, tokens_B1).squeeze(1)


def nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Normalised on the smallest set of likeliest tokens that holds at least `top_p`; -inf elsewhere."""
    if top_p >= 1:
        return logprobs_BV
    sorted_BV, order_BV = logprobs_BV.sort(-1, descending=True)
    sorted_BV = sorted_BV.exp().to(_exact_device(logprobs_BV.device), torch.float64)
    before_BV = (sorted_BV.cumsum(-1) - sorted_BV).to(logprobs_BV.device, torch.float32)
    kept_BV = torch.zeros_like(order_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)
    return logprobs_BV.masked_fill(~kept_BV, -math.inf).log_softmax(-1)


def inverse_draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """tokens_B: the first token at which the cumulative probability, in float64, exceeds a uniform number in [0, 1).

    Finds a block of tokens first and the token inside it then: a running sum over all of a large vocabulary would cost
    more than the softmax.

    >>> inverse_draw(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0.5], dtype=torch.float64))
    tensor([2])
    """
    probabilities_BV = probabilities_BV.to(_exact_device(probabilities_BV.device))
    rows, vocabulary = probabilities_BV.shape
    blocks_BKC = F.pad(probabilities_BV, (0, -vocabulary % BLOCK)).view(rows, -1, BLOCK)
    sums_BK = blocks_BKC.sum(-1, dtype=torch.float64)
    block_B1, rest_B1 = _first_beyond(sums_BK, uniform_B[:, None] * sums_BK.sum(-1, keepdim=True))
    block_BC = blocks_BKC[torch.arange(rows, device=block_B1.device), block_B1.squeeze(1)]
    token_B1, _ = _first_beyond(block_BC, rest_B1)
    return (block_B1 * BLOCK + token_B1).squeeze(1).to(uniform_B.device)


def _first_beyond(parts_BK: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The first part at which the running sum exceeds the target, and the target less all parts before it."""
    running_BK = parts_BK.cumsum(-1, dtype=torch.float64)
    total_B1 = running_BK[:, -1:]
    # Below the total even after rounding, so that the part found has a probability above zero.
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    found_B1 = torch.searchsorted(running_BK, target_B1, right=True)
    before_B1 = F.pad(running_BK, (1, 0)).gather(1, found_B1)
    return found_B1, target_B1 - before_B1


def _exact_device(device: torch.device) -> torch.device:
    """Where float64 is computed: MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device
