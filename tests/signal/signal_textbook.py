"""The same quantities as `selfdistill.signal`, written the long way: in probabilities, over whole matrices, with
autograd. Slow, memory-hungry and plain, so that the kernel has something independent to agree with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.signal import Head, TeacherView


def logits(hidden_ND: Tensor, head: Head) -> Tensor:
    z = head.scale * torch.einsum("nd,vd->nv", hidden_ND, head.weight_VD)
    if head.bias_V is not None:
        z = z + head.bias_V
    if head.softcap is not None:
        z = torch.tanh(z / head.softcap) * head.softcap
    return z


def probabilities(hidden_ND: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    weights = torch.exp(logits(hidden_ND, head) / temperature)
    return weights / weights.sum(-1, keepdim=True)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def divergence(alpha: float, p: Tensor, q: Tensor) -> Tensor:
    if alpha == 0:
        return kl(q, p)
    if alpha == 1:
        return kl(p, q)
    mixture = (1 - alpha) * p + alpha * q
    return (1 - alpha) * kl(p, mixture) + alpha * kl(q, mixture)


def top_k_with_tail(p: Tensor, q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    kept = p.argsort(-1, descending=True)[:, :k]

    def buckets(x: Tensor) -> Tensor:
        inside = x.gather(-1, kept)
        return torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1)

    return buckets(p), buckets(q)


def top_k_renormalised(p: Tensor, q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    kept = p.argsort(-1, descending=True)[:, :k]
    inside_p, inside_q = p.gather(-1, kept), q.gather(-1, kept)
    return inside_p / inside_p.sum(-1, keepdim=True), inside_q / inside_q.sum(-1, keepdim=True)


def ppo_loss(
    logprob: Tensor, old: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.28, dual: float = 3.0
) -> Tensor:
    """The clipped objective with dual clip, per token, for autograd."""
    ratio = torch.exp(logprob - old)
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    objective = torch.min(ratio * advantage, clipped * advantage)
    return -torch.where(advantage < 0, torch.max(objective, dual * advantage), objective)


@dataclass
class Problem:
    """A student, a teacher and some sampled tokens."""

    hidden_ND: Tensor
    head: Head
    teacher: TeacherView
    tokens_N: Tensor
    weight_N: Tensor


def problem(
    positions: int = 6,
    vocabulary: int = 7,
    size: int = 4,
    *,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    head = Head(
        normal(vocabulary, size).requires_grad_(),
        normal(vocabulary).requires_grad_() if bias else None,
        softcap=softcap,
        scale=scale,
    )
    teacher_head = Head(normal(vocabulary, size), normal(vocabulary) if bias else None, softcap=softcap, scale=scale)
    return Problem(
        hidden_ND=normal(positions, size).requires_grad_(),
        head=head,
        teacher=TeacherView(normal(positions, size), teacher_head),
        tokens_N=torch.randint(vocabulary, (positions,), generator=draw),
        weight_N=torch.rand(positions, generator=draw, dtype=torch.float64) + 0.1,
    )


def parameters(case: Problem) -> list[Tensor]:
    """What the gradient is taken with respect to."""
    return [x for x in (case.hidden_ND, case.head.weight_VD, case.head.bias_V) if x is not None]


def gradients(loss: Tensor, case: Problem) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters(case)))
