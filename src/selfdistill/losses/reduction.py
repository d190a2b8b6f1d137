"""Group-relative advantages of answers, and the reduction: the share of each token in a step.

With answers of 2 and 6 tokens, `sequence-mean` gives their tokens 1/4 and 1/12 (each answer weighs 1/2) and
`token-mean` gives every token 1/8: weights of a step sum to 1. `sum` gives every token 1, so that the loss grows with
the number of tokens; nothing is divided, and dropped answers dilute nothing. Weights are computed over the whole step,
before it is cut into micro-batches, so a sum over any split into micro-batches or ranks is the same number. The
released reference reduces inside each micro-batch instead, so that its `token-mean` changes with the micro-batch size
(arXiv 2601.20802 writes the global token mean, Eq. 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import torch
from torch import Tensor

from selfdistill.errors import ConfigError

REWARD_TOLERANCE = 1e-6
"""Rewards this close to each other are equal, relative to the larger one where that is above 1. The sum of a thousand
float32 numbers is still rounded by less; a partial reward of one test in a hundred thousand is more."""

Reduction = Literal["sequence-mean", "token-mean", "sum"]


def equal_rewards(rewards: Sequence[float]) -> bool:
    """Whether all rewards (also none) are the same up to rounding, as 0.1 + 0.2 and 0.3 are: a zero-advantage group."""
    tolerance = REWARD_TOLERANCE * max([1.0, *map(abs, rewards)])
    return not rewards or max(rewards) - min(rewards) <= tolerance


def group_advantages(rewards: Sequence[float], *, divide_by_std: bool = False) -> tuple[float, ...]:
    """r − mean(r) for the answers of one group, e.g. (1, 0, 0, 0) gives (.75, −.25, −.25, −.25).

    `divide_by_std` also divides by the sample standard deviation (n − 1), as GRPO was published; leaving it out does
    not favour questions that are almost always or almost never solved (Dr. GRPO). A group whose rewards are equal up to
    `REWARD_TOLERANCE` gives exact zeros, also when it has one member; so does a reward that is the mean up to it, for
    the sign of an advantage decides more than its size in some methods.

    Source: Shao et al., arXiv 2402.03300, §4.1; Liu et al., arXiv 2503.20783.
    """
    if equal_rewards(rewards):
        return (0.0,) * len(rewards)
    mean, scale = fmean(rewards), stdev(rewards) if divide_by_std else 1.0
    tolerance = REWARD_TOLERANCE * max(1.0, *map(abs, rewards))
    return tuple((reward - mean) / scale if abs(reward - mean) > tolerance else 0.0 for reward in rewards)


@dataclass(frozen=True, slots=True)
class Denominators:
    """The numbers of answers and tokens that share the step's weight of 1."""

    answers: int
    tokens: int


def denominators(lengths: Sequence[int], dropped: Sequence[int] = (), *, count_dropped: bool = False) -> Denominators:
    """Over the whole step: `lengths` of the answers that take part, `dropped` lengths of those that do not.

    Dropped answers dilute the mean only with `count_dropped` (the released reference always counts them); the weights
    of a step then sum to less than 1.
    """
    counted = [*lengths, *dropped] if count_dropped else list(lengths)
    return Denominators(answers=len(counted), tokens=sum(counted))


def relative_size(over: Denominators, updates: Sequence[Denominators], how: Reduction) -> float:
    """The size of one of several updates relative to their mean, in the denominator of the reduction: 1 where there is
    one, and where nothing is divided. An answer scaled by it weighs what it would in an update of mean size."""
    if how == "sum":
        return 1.0
    sizes = [each.answers if how == "sequence-mean" else each.tokens for each in (over, *updates)]
    return sizes[0] * len(updates) / sum(sizes[1:])


def reduction_weights(
    lengths: Sequence[int], how: Reduction, over: Denominators, wholes: Sequence[int] | None = None
) -> Tensor:
    """weights_N of the answers of one micro-batch, concatenated (float32). `over` comes from the whole step; `wholes`
    are the lengths of the answers that these are parts of, by default their own.

    Raises `ConfigError` for an unknown reduction or an answer without tokens.
    """
    if any(length <= 0 for length in lengths):
        raise ConfigError("an answer without tokens has no mean", got=list(lengths), do="drop empty completions before")
    totals = {"sequence-mean": over.answers, "token-mean": over.tokens, "sum": 1}
    if how not in totals:
        raise ConfigError("unknown reduction", got=repr(how), do=f"one of {', '.join(totals)}")
    each = [1 / (totals[how] * (length if how == "sequence-mean" else 1)) for length in wholes or lengths]
    return torch.tensor(each, dtype=torch.float32).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
