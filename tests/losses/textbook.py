"""The same quantities as `selfdistill.losses`, written the long way: in probabilities, over whole matrices, with
autograd. Slow, memory-hungry and plain, so that the kernel has something independent to agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.losses import (
    Clip,
    ClippedForwardKL,
    Clipping,
    Contrast,
    Divergence,
    ForwardKL,
    FullVocabulary,
    Head,
    JensenShannon,
    Product,
    ReverseKL,
    SampledToken,
    Support,
    Tanh,
    TeacherMixture,
    TeacherStates,
    TopK,
)


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


def normalised(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def target(
    mixture: TeacherMixture,
    views: Sequence[TeacherStates],
    p: Tensor,
    p_ref: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """q, in probabilities: powers, products and sums. `p` is the student; no gradient flows through it."""
    p = p.detach()

    def side(against: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Shares [J, N, 1] and distributions [J, N, V] of one side's views, and whether a position has any."""
        ours = [v for v in views if v.against == against]
        if not ours:
            return torch.zeros(1, len(p), 1).to(p), p[None], torch.zeros(len(p), 1, dtype=torch.bool)
        q = torch.stack([probabilities(v.hidden_ND.to(p), _as(p, v.head), temperature) for v in ours]).detach()
        ones = torch.ones(len(p), dtype=torch.bool)
        w = torch.stack([v.weight * (ones if v.present_N is None else v.present_N).to(p) for v in ours])[..., None]
        return (w / w.sum(0)).nan_to_num(0.0), q, w.sum(0) > 0

    w, q, _ = side(False)
    product = normalised((q**w).prod(0))
    if isinstance(mixture, Contrast):
        w_against, q_against, contrasted = side(True)
        ratio = product / (w_against * q_against).sum(0).where(contrasted, torch.ones(()).to(p))
        raw = (p if mixture.anchor == "student" else product) * ratio**mixture.strength
        return torch.where(contrasted, normalised(raw) if mixture.normalise else raw, product)
    assert isinstance(mixture, Product)
    return product


def _as(like: Tensor, head: Head) -> Head:
    """The head in `like`'s number format, without a gradient."""
    bias = None if head.bias_V is None else head.bias_V.detach().to(like)
    return Head(head.weight_VD.detach().to(like), bias, head.softcap, head.scale)


def value(shape: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """D(p, q), for autograd through p."""
    if isinstance(shape, ClippedForwardKL):
        return (q * (q / p).log()).clamp(max=shape.limit).sum(-1)
    return divergence({ReverseKL: 1.0, ForwardKL: 0.0}.get(type(shape), getattr(shape, "alpha", 0.0)), p, q)


def advantage(shape: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """h(log q/p), the column of formulas."""
    r = q / p
    if isinstance(shape, JensenShannon):
        return (1 - shape.alpha) * (1 - shape.alpha + shape.alpha * r).log()
    if isinstance(shape, ClippedForwardKL):
        return torch.where(q * r.log() > shape.limit, -1.0, r - 1)
    return r.log() if isinstance(shape, ReverseKL) else r - 1


def held(clipping: Clipping | None, a: Tensor) -> Tensor:
    """Φ(a)."""
    if isinstance(clipping, Clip):
        return a.clamp(-clipping.limit, clipping.limit)
    if isinstance(clipping, Tanh):
        return (a / clipping.scale).tanh()
    return a


def outcomes(support: Support, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Both distributions on what is compared. Tokens that are not kept become (1, 1), which every divergence and
    every surrogate counts as 0."""
    if isinstance(support, FullVocabulary):
        return p, q
    assert isinstance(support, TopK)
    named = {"student": [p], "teacher": [q], "both": [p, q]}[support.of]
    ranks = [x.argsort(-1, descending=True).argsort(-1) for x in named]
    kept = torch.stack([rank < support.k for rank in ranks]).any(0)

    def seen(x: Tensor) -> Tensor:
        inside, one = torch.where(kept, x, 0.0), torch.ones(()).to(x)
        if not support.tail:
            return torch.where(kept, normalised(inside), one)
        outside = torch.where(kept, 0.0, x).sum(-1, keepdim=True)
        return torch.cat([torch.where(kept, x, one), torch.where(kept.all(-1, keepdim=True), one, outside)], -1)

    return seen(p), seen(q)


@dataclass
class Numbers:
    """Per position: what autograd differentiates, the divergence (of a sampled token its estimate), and Σ |p h(u)|."""

    surrogate_N: Tensor
    divergence_N: Tensor
    magnitude_N: Tensor


def numbers(
    support: Support, shape: Divergence, clipping: Clipping | None, p: Tensor, q: Tensor, tokens_N: Tensor
) -> Numbers:
    """Any support, shape and bound; q is held fixed."""
    q = q.detach()
    if isinstance(support, SampledToken):
        p_y, q_y = (x.gather(-1, tokens_N[:, None])[:, 0] for x in (p, q))
        a = advantage(shape, p_y, q_y).detach()
        return Numbers(-held(clipping, a) * p_y.log(), value(shape, p_y[:, None], q_y[:, None]) / p_y, a.abs())
    p, q = outcomes(support, p, q)
    a = advantage(shape, p, q).detach()
    d, magnitude = value(shape, p, q), (p.detach() * a).abs().sum(-1)
    loss = d if clipping is None else -(p * held(clipping, a)).sum(-1)
    return Numbers(loss, d, magnitude)


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
    teacher: TeacherStates
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
        teacher=TeacherStates(normal(positions, size), teacher_head),
        tokens_N=torch.randint(vocabulary, (positions,), generator=draw),
        weight_N=torch.rand(positions, generator=draw, dtype=torch.float64) + 0.1,
    )


def parameters(case: Problem) -> list[Tensor]:
    """What the gradient is taken with respect to."""
    return [x for x in (case.hidden_ND, case.head.weight_VD, case.head.bias_V) if x is not None]


def gradients(loss: Tensor, case: Problem) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters(case)))
