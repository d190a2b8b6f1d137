"""Samples completions with a key-value cache, and keeps the log-probability of every sampled token.

Random numbers are drawn from `(seed, uid)` of a rollout: other prompts in the batch change a completion only through
float noise.

Legend: R rows (completions) of a batch, B branches (different texts among them), L tokens so far, T new tokens, V
vocabulary, cut into K blocks of C tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.errors import ModelError, Ranged, option
from selfdistill.losses.head import Head
from selfdistill.models.batching import length_buckets
from selfdistill.models.kept_states import KeptStates, ReadState
from selfdistill.models.policy import Policy, padded
from selfdistill.models.precision import cache_dtype
from selfdistill.types import Completion, StopReason, TokenIds

# Numbers that a CPU works on at a time after the head. Arrays of megabytes leave its cache, and the operating system
# maps and clears their memory anew for every operation, which takes longer than the operation.
CACHED_LOGITS = 2**16
DRAWN_LOGITS = 2**25  # of an accelerator at a time: drawing holds seven arrays of them in float32
BLOCK = 512  # tokens whose probabilities are summed before one is drawn


@dataclass(frozen=True, slots=True)
class SamplingOptions(Ranged):
    """How completions are sampled. Raises `ConfigError`."""

    max_new_tokens: int = option(MISSING, "most tokens of an answer; a longer one is cut", least=1, most=1_000_000)
    temperature: float = option(1.0, "logits are divided by it; 0 takes the most likely token", least=0)
    top_p: float = option(1.0, "draw from the likeliest tokens that together hold this probability", above=0, most=1)
    turns: int = option(16, "turns of a conversation, at most", least=1, most=10_000)
    conversation_tokens: int = option(1_000_000, "tokens, observed ones too, from which on no turn begins", least=1)
    batch_tokens: int = option(65_536, "rows of a batch times the longest; bounds memory, changes no result", least=1)

    @property
    def whole(self) -> bool:
        """Whether completions are drawn from all tokens: `logprobs` are then the model's at this temperature."""
        return self.top_p == 1.0 and self.temperature > 0


class Sampler(Protocol):
    """Samples completions by weights of a known version, outside of the learner's process: `scale.sampler`."""

    version: int

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[TokenIds],
        options: SamplingOptions,
        *,
        seed: int,
        uids: Sequence[str],
        **_: object,
    ) -> list[Completion]:
        """As `sample`; completions carry the version that sampled them. Raises `EndpointError`."""

    def load(self, policy: Policy, version: int) -> Mapping[str, float]:
        """Makes the policy's weights the ones that sample, and returns numbers for the records. Raises
        `EndpointError`."""

    def rest(self) -> None:
        """Gives memory of the learner's device back until the next call."""


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[TokenIds],
    options: SamplingOptions,
    *,
    seed: int,
    uids: Sequence[str],
    version: int,
    kept: KeptStates | None = None,
    threads: Sequence[str] = (),
) -> list[Completion]:
    """One completion per prompt, in order; repeat a prompt to get several. `uids` name them, `version` the weights.

    The end token is part of `token_ids` (the student learns to stop), special tokens are not part of `text`. A
    completion that reaches `max_new_tokens`, or the model's context, without an end token has `StopReason.LENGTH`.
    `logprobs` are in nats under the temperature and the tokens it was drawn from, at temperature 0 those of temperature
    1. The global random state is neither read nor moved.

    `kept` holds what the model has read of conversations, by their names in `threads`, one per prompt: a prompt that
    extends it is read from there on.

    Raises `ModelError` for an empty prompt, or one that leaves no room in the context for a single token.
    """
    assert len(prompts) == len(uids)
    context = policy.context_length
    for prompt in prompts:
        if not prompt:
            raise ModelError("a prompt is empty", why="the first token is predicted from the last prompt token")
        if len(prompt) >= context:
            why = f"{policy.name} reads at most {context} tokens, prompt and answer together"
            do = "leave this task out, or shorten it"
            raise ModelError("a prompt leaves no room for an answer", got=f"{len(prompt)} tokens", why=why, do=do)
    completions: dict[int, Completion] = {}
    head = policy.head(sampling=True)
    budget = [min(len(prompt) + options.max_new_tokens, context) for prompt in prompts]
    # A token of one row takes a GPU as long as one of every row.
    launched = options.batch_tokens if policy.launched else 0
    for bucket in length_buckets(budget, options.batch_tokens, launched=launched):
        # Equal prompts side by side: they are read once.
        bucket.sort(key=lambda index: (len(prompts[index]), prompts[index], index))
        drawn = options.max_new_tokens if options.temperature else 0
        noise_RT = torch.stack([noise(seed, uids[index], drawn) for index in bucket])
        # One context around all steps: autocast keeps its bfloat16 copies of the weights until the outermost ends.
        with policy.autocast():
            names = [threads[index] for index in bucket] if kept else []
            rows = _sampled(policy, head, [prompts[index] for index in bucket], options, noise_RT, kept, names)
        for index, (token_ids, logprobs) in zip(bucket, rows, strict=True):
            stop = StopReason.END if token_ids[-1] in policy.end_ids else StopReason.LENGTH
            text = policy.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            read = len(prompts[index])
            done = Completion(uids[index], str(text), tuple(token_ids), tuple(logprobs), stop, version, read)
            completions[index] = done
    return [completions[index] for index in range(len(prompts))]


def noise(seed: int, uid: str, count: int) -> Tensor:
    """noise_T: the uniform numbers of one rollout. In float64: the 2^24 different numbers of float32 cannot reach most
    of the rare tokens of a large vocabulary."""
    digest = blake2b(f"{seed}:{uid}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _sampled(
    policy: Policy,
    head: Head,
    prompts: Sequence[TokenIds],
    options: SamplingOptions,
    noise_RT: Tensor,
    kept: KeptStates | None,
    names: Sequence[str],
) -> list[tuple[list[int], list[float]]]:
    """Token ids and log-probabilities of each row.

    Rows with the same tokens so far, prompt and completion, are one branch, which the model reads once. Prompts end at
    the same column (left-padded); a row leaves the batch with its last token.
    """
    from selfdistill.models.kv_cache import PreallocatedCache, restored

    device, rows, steps, vocabulary = policy.device, len(prompts), options.max_new_tokens, head.vocabulary
    noise_RT = noise_RT.to("cpu" if device.type == "mps" else device)  # MPS has no float64
    ends = torch.tensor(sorted(policy.end_ids), dtype=torch.long, device=device)
    room_R = torch.tensor([policy.context_length - len(prompt) for prompt in prompts], device=device)
    tokens_RT = torch.zeros(rows, steps, dtype=torch.long, device=device)
    logprobs_RT = torch.zeros(rows, steps, device=device)
    length_R = torch.zeros(rows, dtype=torch.long, device=device)
    live_R = torch.arange(rows, device=device)  # rows of the results still being written
    read = [kept.take(name, prompt) for name, prompt in zip(names, prompts, strict=True)] if kept else []
    if any(read):
        branch_R = torch.arange(rows, device=device)
        cache, held_BL = restored(policy.base.config, read)
        ends_of = [prompt[len(state.ids) if state else 0 :] for state, prompt in zip(read, prompts, strict=True)]
        ids_BL, mask_BL = padded(policy, ends_of, "left")
        mask_BL = torch.cat([held_BL, torch.ones_like(ids_BL) if mask_BL is None else mask_BL], dim=1)
    else:
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        branch_R = torch.tensor([places[prompt] for prompt in prompts], device=device)
        cache = PreallocatedCache(policy.base.config, cache_dtype(policy.dtype))
        ids_BL, mask_BL = padded(policy, list(places), "left")
    in_order = len(ids_BL) == rows  # row r is branch r
    for step in range(steps):
        hidden_BD = policy.backbone(ids_BL, cache, mask_BL)[:, -1]
        noise_R1 = noise_RT[live_R.to(noise_RT.device), step : step + 1]
        tokens_R, logprobs_R = draw(head, hidden_BD, branch_R, noise_R1, options)
        tokens_RT[live_R, step], logprobs_RT[live_R, step], length_R[live_R] = tokens_R, logprobs_R, step + 1
        stops_R = torch.isin(tokens_R, ends) | (room_R[live_R] <= step + 1)
        last_R = stops_R | (step + 1 == steps)
        if kept:
            for place in last_R.nonzero().squeeze(1).tolist():
                row, layers = int(live_R[place]), cache.row(int(branch_R[place]), mask_BL)
                if layers is not None:
                    kept.put(names[row], ReadState(prompts[row] + tuple(tokens_RT[row, :step].tolist()), layers))
        going = (~last_R).nonzero().squeeze(1)
        if not len(going):
            break
        parted = len(hidden_BD) == len(live_R)
        live_R = live_R[going]
        if parted:  # for good: every row is a branch of its own, and the host need not wait to know which
            parents_B, ids_BL = branch_R[going], tokens_R[going][:, None]
            branch_R = torch.arange(len(going), device=device)
            unmoved, in_order = in_order and len(going) == len(hidden_BD), True
        else:  # each branch is followed once for every different token that its rows drew; one without rows is dropped
            pairs_B, branch_R = torch.unique(branch_R[going] * vocabulary + tokens_R[going], return_inverse=True)
            parents_B, ids_BL = pairs_B // vocabulary, (pairs_B % vocabulary)[:, None]
            unmoved = torch.equal(parents_B, torch.arange(len(hidden_BD), device=device))
        if not unmoved:
            cache.reorder_cache(parents_B)  # type: ignore[arg-type]
        if mask_BL is not None:
            mask_BL = torch.cat([mask_BL[parents_B], torch.ones_like(ids_BL)], dim=1)
    results = zip(tokens_RT.tolist(), logprobs_RT.tolist(), length_R.tolist(), strict=True)
    return [(tokens[:length], logprobs[:length]) for tokens, logprobs, length in results]


def draw(
    head: Head, hidden_BD: Tensor, branch_R: Tensor, noise_R1: Tensor, options: SamplingOptions
) -> tuple[Tensor, Tensor]:
    """Next tokens and their log-probabilities, from logits in float32 as the losses compute them."""
    with torch.autocast(hidden_BD.device.type, enabled=False):
        logits_BV = head.logits(hidden_BD)
    most = CACHED_LOGITS if branch_R.device.type == "cpu" else DRAWN_LOGITS
    rows = max(1, most // head.vocabulary)
    tokens, logprobs = list[Tensor](), list[Tensor]()
    for branch, noise_B1 in zip(torch.split(branch_R, rows), torch.split(noise_R1, rows), strict=True):
        rows_BV = logits_BV[branch].to(noise_R1.device)
        if options.temperature == 0:
            logprobs_BV, tokens_B = normalised(rows_BV), rows_BV.argmax(-1)
        else:
            logprobs_BV = normalised(rows_BV / options.temperature)
            if options.top_p < 1:
                logprobs_BV = nucleus(logprobs_BV, options.top_p)
            tokens_B = inverse_draw(logprobs_BV.exp(), noise_B1.squeeze(1))
        tokens.append(tokens_B)
        logprobs.append(logprobs_BV.gather(-1, tokens_B[:, None]).squeeze(1))
    return torch.cat(tokens).to(branch_R.device), torch.cat(logprobs).to(branch_R.device)


def normalised(logits_BV: Tensor) -> Tensor:
    """log softmax, with the sum that the losses take: that inside of torch's own is off by up to 8e-5 over 150,000
    tokens, this one by 2e-6."""
    below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    return below_BV - below_BV.exp().sum(-1, keepdim=True).log()


def nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Normalised on the smallest set of likeliest tokens that holds at least `top_p`; -inf elsewhere."""
    sorted_BV, order_BV = logprobs_BV.sort(-1, descending=True)
    sorted_BV = sorted_BV.exp().to(torch.float64)
    before_BV = (sorted_BV.cumsum(-1) - sorted_BV).to(torch.float32)
    kept_BV = torch.zeros_like(order_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)
    return normalised(logprobs_BV.masked_fill(~kept_BV, -math.inf))


def inverse_draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """tokens_B: the first token at which the cumulative probability, in float64, exceeds a uniform number in [0, 1).

    Finds a block of tokens first and the token inside it then: a running sum over all of a large vocabulary would cost
    more than the softmax.

    >>> inverse_draw(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0.5], dtype=torch.float64))
    tensor([2])
    """
    rows, vocabulary = probabilities_BV.shape
    blocks_BKC = F.pad(probabilities_BV, (0, -vocabulary % BLOCK)).view(rows, -1, BLOCK)
    sums_BK = blocks_BKC.sum(-1, dtype=torch.float64)
    block_B1, rest_B1 = _first_beyond(sums_BK, uniform_B[:, None] * sums_BK.sum(-1, keepdim=True))
    block_BC = blocks_BKC[torch.arange(rows, device=block_B1.device), block_B1.squeeze(1)]
    token_B1, _ = _first_beyond(block_BC, rest_B1)
    return (block_B1 * BLOCK + token_B1).squeeze(1)


def _first_beyond(parts_BK: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The first part at which the running sum exceeds the target, and the target less all parts before it."""
    running_BK = parts_BK.cumsum(-1, dtype=torch.float64)
    total_B1 = running_BK[:, -1:]
    # Below the total even after rounding, so that the part found has a probability above zero.
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    found_B1 = torch.searchsorted(running_BK, target_B1, right=True)
    before_B1 = F.pad(running_BK, (1, 0)).gather(1, found_B1)
    return found_B1, target_B1 - before_B1
