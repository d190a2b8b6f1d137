"""Truncated importance weights: tokens were sampled by slightly older weights, and by another engine.

Legend: N positions. All weights are detached, evaluated on the sampled token, and multiply a whole position.

    r1 = min(π_θ(y) / π_old(y), cap)            the weights moved since the update began
    r2 = min(π_old(y) / π_sampler(y), cap)      trainer and inference engine disagree about the same weights

Source: arXiv 2601.20802, A.4 (token-level weights); Yao et al. 2025, truncated importance sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from selfdistill.losses.refusal import refusal

_LARGEST_LOG_RATIO = 20.0  # e^±20: a sampled token that became impossible must not make inf or NaN


def log_ratio(logprobs_N: Tensor, behaviour_N: Tensor) -> Tensor:
    """log π(y) − log π_behaviour(y), detached and held to ±20."""
    return (logprobs_N.detach() - behaviour_N.detach()).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)


def importance_weight(logprobs_N: Tensor, behaviour_N: Tensor, cap: float | None) -> Tensor:
    """min(π/π_behaviour, cap), detached; exactly 1 where both agree. `cap=None` turns the correction off: ones."""
    ratio_N = log_ratio(logprobs_N, behaviour_N).exp()
    return ratio_N.clamp(max=cap) if cap is not None else ratio_N.new_ones(ratio_N.shape)


def over(ratio_N: Tensor, cap: float | None) -> Tensor:
    """Which ratios a cap cuts."""
    return ratio_N > (float("inf") if cap is None else cap)


@dataclass(frozen=True, slots=True)
class RatioCaps:
    """Upper bounds of the two importance weights; None leaves that weight out. There is no lower bound.

    `update` bounds r1, which multiplies the divergence only (the policy gradient has its own clip).
    `sampler` bounds r2, which multiplies divergence and policy gradient. Raises `ValueError` unless caps are positive.
    """

    update: float | None = 2.0
    sampler: float | None = 2.0

    def __post_init__(self) -> None:
        for cap in (self.update, self.sampler):
            if cap is not None and not cap > 0:
                raise refusal(
                    "a cap on an importance weight must be positive",
                    got=cap,
                    why="every token would weigh 0",
                    do="2.0 is usual; None turns the weight off",
                )
