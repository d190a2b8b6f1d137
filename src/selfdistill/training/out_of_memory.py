"""When the device runs out of memory: micro-batches are halved once; else the run stops, saved."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

import torch

from selfdistill.config import RunConfig
from selfdistill.errors import OutOfMemoryError, is_out_of_memory
from selfdistill.runs.events import Callback, Note
from selfdistill.training.session import Session, Totals

T = TypeVar("T")


class Attempt(Protocol):
    """Calls `work` with the tokens of a micro-batch; after an out-of-memory error, again with half of them."""

    def __call__(self, work: Callable[[int], T], /) -> T: ...


def lowered(config: RunConfig, tokens: int) -> RunConfig:
    """The settings with micro-batches of at most so many tokens, and half of the tokens in a batch of the sampler."""
    sampling = replace(config.sampling, batch_tokens=max(1, config.sampling.batch_tokens // 2))
    return replace(config, micro_batch_tokens=min(tokens, config.micro_batch_tokens), sampling=sampling)


def within_memory(session: Session, totals: Totals, callback: Callback, work: Callable[[int], T]) -> T:
    """The result of `work`, which must leave nothing half done; it is called again after an out-of-memory error, with
    micro-batches of half the size, once in a run. Token weights are decided before micro-batches are cut, so the result
    is the same but for rounding. Raises `OutOfMemoryError` the second time."""
    try:
        return work(session.config.micro_batch_tokens)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if totals.lowered_to or session.policy.ranks.size > 1:  # other ranks would not try again
            raise out_of_memory(session.config, error) from error
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
    # From here on nothing refers to the tensors of the failed attempt.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    totals.lowered_to = max(1, session.config.micro_batch_tokens // 2)
    session.config = lowered(session.config, totals.lowered_to)
    callback(
        Note(
            f"step {totals.step + 1}: the device ran out of memory ({why[:160]}); micro-batches of at most "
            f"{totals.lowered_to:,} tokens from here on, which does not change the result"
        )
    )
    return work(session.config.micro_batch_tokens)


def out_of_memory(config: RunConfig, error: BaseException, resume: str = "") -> OutOfMemoryError:
    """The error of a run that cannot continue."""
    options = [f"micro_batch_tokens={max(1, config.micro_batch_tokens // 2)}"]
    options += [] if config.activation_checkpointing else ["activation_checkpointing=true"]
    options += [] if config.offload == "both" else ["offload=both"]
    do = f"with one of {', '.join(options)}; or lower sampling.batch_tokens"
    return OutOfMemoryError(
        "the device ran out of memory",
        got=(str(error).splitlines() or [type(error).__name__])[0][:300],
        why="smaller micro-batches did not help, or the memory was needed for something else",
        do=f"resume {do}: {resume}" if resume else f"start again {do}",
    )
