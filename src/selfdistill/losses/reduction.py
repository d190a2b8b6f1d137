"""Reduction: what each token of a step weighs. Computed over the whole step, before it is cut into micro-batches.

With answers of 2 and 6 tokens, `sequence-mean` gives their tokens 1/4 and 1/12 (each answer weighs 1/2) and
`token-mean` gives every token 1/8: weights of a step sum to 1. `sum` gives every token 1, so that the loss grows with
the number of tokens; nothing is divided, and dropped answers dilute nothing. Whichever it is, a sum over any split into
micro-batches or ranks is the same number. The released reference reduces inside each micro-batch instead, so that its
`token-mean` changes with the micro-batch size (arXiv 2601.20802 writes the global token mean, Eq. 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from selfdistill.losses.refusal import refusal

Reduction = Literal["sequence-mean", "token-mean", "sum"]


@dataclass(frozen=True, slots=True)
class Denominators:
    """How many answers and tokens share the step's weight of 1."""

    answers: int
    tokens: int


def denominators(lengths: Sequence[int], dropped: Sequence[int] = (), *, count_dropped: bool = False) -> Denominators:
    """Over the whole step: `lengths` of the answers that take part, `dropped` lengths of those that do not.

    Dropped answers dilute the mean only when `count_dropped` says so (the released reference always counts them);
    the weights of a step then sum to less than 1.
    """
    counted = [*lengths, *dropped] if count_dropped else list(lengths)
    return Denominators(answers=len(counted), tokens=sum(counted))


def relative_size(over: Denominators, updates: Sequence[Denominators], how: Reduction) -> float:
    """How large one of several updates is beside their mean, in what is divided by: 1 where there is one, and where
    nothing is divided. An answer that is scaled by it weighs what it would in an update of mean size."""
    if how == "sum":
        return 1.0
    sizes = [each.answers if how == "sequence-mean" else each.tokens for each in (over, *updates)]
    return sizes[0] * len(updates) / sum(sizes[1:])


def reduction_weights(lengths: Sequence[int], how: Reduction, over: Denominators) -> Tensor:
    """weights_N of the answers of one micro-batch, concatenated (float32). `over` comes from the whole step.

    Raises `ValueError` for an unknown reduction or an answer without tokens.
    """
    if how not in get_args(Reduction):
        raise refusal(
            "unknown reduction",
            got=repr(how),
            why="it decides what each token weighs",
            do=f"one of {', '.join(get_args(Reduction))}",
        )
    if any(length <= 0 for length in lengths):
        raise refusal(
            "an answer without tokens cannot be weighed",
            got=list(lengths),
            why="its mean over tokens is 0/0",
            do="drop empty completions before they get here",
        )
    each = [_token_weight(length, how, over) for length in lengths]
    return torch.tensor(each, dtype=torch.float32).repeat_interleave(torch.tensor(lengths, dtype=torch.long))


def _token_weight(length: int, how: Reduction, over: Denominators) -> float:
    """What each token of an answer of that length weighs."""
    match how:
        case "sequence-mean":
            return 1 / (over.answers * length)
        case "token-mean":
            return 1 / over.tokens
        case "sum":
            return 1.0
