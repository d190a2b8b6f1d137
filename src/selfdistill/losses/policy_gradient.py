"""The policy-gradient term of GRPO: the verdict on a whole answer, applied to its sampled tokens.

Legend: N positions; y the sampled token, r = π_θ(y)/π_old(y), A the advantage.

    L = −min(r A, clip(r, 1 − clip_low, 1 + clip_high) A)          and, for A < 0,  L ≤ −dual_clip · A

Source: Schulman et al. 2017 (clip); Shao et al., arXiv 2402.03300 (GRPO); Yu et al., arXiv 2503.14476 (a higher upper
clip); Ye et al., arXiv 1912.09729 (dual clip).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses.ratio import log_ratio
from selfdistill.losses.refusal import refusal


@dataclass(frozen=True, slots=True)
class PolicyTerm:
    """Per token: the clipped surrogate, its slope along log p(y), the untruncated ratio, and whether a clip stopped the
    gradient."""

    loss_N: Tensor
    slope_N: Tensor
    ratio_N: Tensor
    clipped_N: Tensor


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """Options of the clipped objective. Raises `ValueError` when the clips cannot contain a ratio of 1.

    The term is homogeneous: multiplying A by a weight w ≥ 0 multiplies loss and slope by w.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low < 1 and self.clip_high >= 0 and self.dual_clip > 1 + self.clip_high):
            raise refusal(
                "clips must satisfy 0 <= clip_low < 1, clip_high >= 0 and dual_clip > 1 + clip_high",
                got=self,
                why="a ratio of 1 must lie inside the clips, and the dual clip beyond them",
                do="the usual values are 0.2, 0.28 and 3.0",
            )

    def term(self, logprobs_N: Tensor, old_logprobs_N: Tensor | None, advantage_N: Tensor) -> PolicyTerm:
        """`old_logprobs_N` None means that the weights have not moved: r = 1 exactly, slope −A."""
        old_N = logprobs_N if old_logprobs_N is None else old_logprobs_N
        ratio_N = log_ratio(logprobs_N, old_N).exp()
        plain_N = -ratio_N * advantage_N
        bounded_N = -ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high) * advantage_N
        loss_N = torch.maximum(plain_N, bounded_N)
        limit_N = torch.where(advantage_N < 0, -self.dual_clip * advantage_N, torch.inf)
        loss_N = torch.minimum(loss_N, limit_N)
        active_N = (plain_N >= bounded_N) & (plain_N <= limit_N)
        return PolicyTerm(loss_N, torch.where(active_N, plain_N, 0.0), ratio_N, ~active_N)
