"""Requests to a vLLM server for one completion each, and what is checked in its answers.

Legend: T new tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import index
from typing import Any

import torch
from torch import Tensor

from selfdistill.errors import EndpointError
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, normalised, nucleus
from selfdistill.scale.engine import GENERATE, SERVED_AS, other_api
from selfdistill.types import Completion, StopReason, TokenIds


def request(policy: Policy, prompt: TokenIds, uid: str, options: SamplingOptions, seed: int) -> dict[str, Any]:
    """A request for one completion. Everything that a server's defaults could change is named; draws follow from the
    seed and the name of the rollout."""
    draw = int.from_bytes(blake2b(f"{seed}:{uid}".encode(), digest_size=8).digest(), "little") >> 1
    most = min(options.max_new_tokens, policy.context_length - len(prompt))
    return {
        "prompt": list(prompt), "add_special_tokens": False, "max_tokens": most, "temperature": options.temperature,
        "top_p": options.top_p, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "seed": draw, "logprobs": 0, "return_token_ids": True,
        "ignore_eos": True, "stop_token_ids": sorted(policy.end_ids),
    }  # fmt: skip


def completion(
    policy: Policy, prompt: TokenIds, uid: str, body: Mapping[str, Any], url: str, reply: Any, version: int
) -> Completion:
    """What a server sampled. Raises `EndpointError` where that cannot belong to the request."""
    most, wrong = body["max_tokens"], ""
    try:
        [choice] = reply["choices"]
        read, ids = tuple(choice["prompt_token_ids"]), tuple(map(index, choice["token_ids"]))
        logprobs = tuple(map(float, choice["logprobs"]["token_logprobs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise other_api(url, f"{GENERATE} answers in another form: {type(error).__name__} {error}") from None
    if read != prompt:
        same = [a == b for a, b in zip(read, prompt, strict=False)]
        place = same.index(False) if False in same else len(same)
        wrong = f"it read {len(read)} tokens, not the {len(prompt)} of the prompt; they differ from number {place} on"
    elif not 0 < len(ids) <= most or len(ids) != len(logprobs):
        wrong = f"{len(ids)} tokens and {len(logprobs)} log-probabilities, where at most {most} were wanted"
    elif beyond := [token for token in ids if not 0 <= token < policy.vocabulary]:
        wrong = f"the token {beyond[0]} of a vocabulary of {policy.vocabulary}"
    elif any(token in policy.end_ids for token in ids[:-1]):
        wrong = "it sampled on behind an end token"
    elif len(ids) < most and ids[-1] not in policy.end_ids and choice.get("finish_reason") != "length":
        wrong = f"it ended after {len(ids)} tokens of {most}, without an end token"
    if wrong:
        raise EndpointError(
            "a server sampled other tokens than the run requested",
            got=f"{url}: {wrong}",
            why="every log-probability would belong to another text",
            do="serve the run's own model, by vLLM 0.32 or newer without plug-ins",
        )
    if lost := [place for place, value in enumerate(logprobs) if not math.isfinite(value)]:
        raise EndpointError(
            "a server's log-probabilities are not numbers",
            got=f"{url}: {logprobs[lost[0]]} for token {lost[0]} of {len(ids)}",
            why="the ratio of model and sampler, which weighs the answer, would not be known",
            do="see the server's log, and start it with the run's dtype",
        )
    text = policy.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stop = StopReason.END if ids[-1] in policy.end_ids else StopReason.LENGTH
    return Completion(uid, str(text), ids, logprobs, stop, version, len(prompt))


@torch.no_grad()
def distance(policy: Policy, prompt: TokenIds, done: Completion, options: SamplingOptions) -> Tensor:
    """apart_T: how far a server's log-probabilities are from the policy's, in nats."""
    logits_TV = policy.head().logits(policy.answer_hidden([(prompt, done.token_ids)])).float()
    own_TV = normalised(logits_TV / (options.temperature or 1.0))
    own_TV = nucleus(own_TV, options.top_p) if options.top_p < 1 and options.temperature else own_TV
    own_T = own_TV[range(len(done.token_ids)), done.token_ids].cpu()
    return (own_T - torch.tensor(done.logprobs)).abs()


def refuse_beyond(bound: float, rows: Sequence[Tensor], probes: Sequence[tuple[str, Completion]]) -> None:
    """Raises `EndpointError` for a server whose log-probabilities are further apart than the bound, on average."""
    for apart_T, (url, done) in zip(rows, probes, strict=True):
        mean = float(apart_T.mean())
        if mean <= bound:
            continue
        raise EndpointError(
            "a server's log-probabilities are not those of the model",
            got=f"{url}, weights of step {done.policy_version}: {mean:.4g} nats apart on average, "
            f"{float(apart_T.max()):.4g} at most, over {len(apart_T)} tokens; the bound is {bound:g}",
            why="it kept other weights (vLLM keeps the old head of a tied model), or reports them before temperature "
            "and top_p: answers would be weighed by wrong ratios",
            do=f"start it with {SERVED_AS} and the run's dtype, or raise scale.sampler.logprob_bound",
        )
