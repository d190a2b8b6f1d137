"""The policy-gradient term of GRPO, importance weights, and the coefficient of the reference KL.

Legend: N positions; y the sampled token, r = π_θ(y)/π_old(y), A the advantage.

    L = −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A)          and, for A < 0,  L ≤ −dual_clip · A

    r1 = min(π_θ(y) / π_old(y), cap)            the weights moved since the update began
    r2 = min(π_old(y) / π_sampler(y), cap)      trainer and inference engine disagree about the same weights

Importance weights are detached, evaluated on the sampled token, and multiply a whole position.

Source: Schulman et al. 2017 (clip); Shao et al., arXiv 2402.03300 (GRPO); Yu et al., arXiv 2503.14476 (a higher upper
clip); Ye et al., arXiv 1912.09729 (dual clip); arXiv 2601.20802, A.4, and Yao et al. 2025 (truncated importance
sampling); Ouyang et al., arXiv 2203.02155 (reference KL).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, Ranged, option

LARGEST_LOG_RATIO = 20.0  # e^±20: a sampled token that became impossible must not make inf or NaN


def probability_ratio(logprobs_N: Tensor, behaviour_N: Tensor) -> Tensor:
    """π(y) / π_behaviour(y), detached, between e^−20 and e^20; exactly 1 where both agree."""
    return (logprobs_N.detach() - behaviour_N.detach()).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def importance_weight(logprobs_N: Tensor, behaviour_N: Tensor, cap: float | None) -> Tensor:
    """min(π/π_behaviour, cap), detached; exactly 1 where both agree. `cap=None` turns the correction off: ones."""
    ratio_N = probability_ratio(logprobs_N, behaviour_N)
    return ratio_N.clamp(max=cap) if cap is not None else torch.ones_like(ratio_N)


@dataclass(frozen=True, slots=True)
class RatioCaps(Ranged):
    """Upper bounds of the two importance weights; None leaves that weight out. There is no lower bound."""

    policy_ratio: float | None = option(
        2.0, "cap on r1, which multiplies the divergence only; the policy gradient has its own clip", above=0, most=inf
    )
    sampler_ratio: float | None = option(
        2.0, "cap on r2, which multiplies divergence and policy gradient", above=0, most=inf
    )


@dataclass(frozen=True, slots=True)
class ReferenceKL(Ranged):
    """coefficient · KL(p‖p_ref) over the full vocabulary, exact rather than estimated from the sampled token."""

    coefficient: float = option(0.0, "scale of the reference KL; 0 leaves the term out", least=0)


@dataclass(frozen=True, slots=True)
class PolicyGradient(Ranged):
    """Options of the clipped objective, in which a ratio of 1 must lie inside all clips.

    The term is homogeneous: multiplying A by a weight w ≥ 0 multiplies loss and slope by w.
    """

    clip_low: float = option(0.2, "a ratio below 1 minus this has no gradient", least=0, below=1)
    clip_high: float = option(0.28, "a ratio above 1 plus this has no gradient", least=0)
    dual_clip: float = option(3.0, "bound of the loss where A < 0, in advantages; above 1 + clip_high", most=inf)

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        if not self.dual_clip > 1 + self.clip_high:
            why = "a loss that is bounded inside the clip never reaches the clip"
            raise ConfigError("dual_clip must be above 1 + clip_high", got=self, why=why, do="3.0 is usual")

    def term(self, logprobs_N: Tensor, old_logprobs_N: Tensor, advantage_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token [N]: the clipped surrogate, its slope along log p(y), and whether a clip stopped the gradient.

        Where `old_logprobs_N` are the same numbers the weights have not moved: r = 1 exactly, slope −A.
        """
        ratio_N = probability_ratio(logprobs_N, old_logprobs_N)
        plain_N = -ratio_N * advantage_N
        bounded_N = -ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high) * advantage_N
        limit_N = torch.where(advantage_N < 0, -self.dual_clip * advantage_N, torch.inf)
        loss_N = torch.minimum(torch.maximum(plain_N, bounded_N), limit_N)
        active_N = (plain_N >= bounded_N) & (plain_N <= limit_N)
        return loss_N, torch.where(active_N, plain_N, 0.0), ~active_N
