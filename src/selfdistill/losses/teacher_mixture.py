"""Log-ratio: what the teacher's distribution is, and how much it changes the odds of what was said.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher.

The teacher is made of views, one per context or set of weights. Views "for" say what is wanted, views "against" what is
not; each may have read only some of the positions, and the weights of those that did are shares of 1 there. How they
become one distribution q is an `TeacherMixture`: a product (the default) or a contrast. Views are read one
after the other, so that their number costs time and no memory; everything is exact where views agree: the same
context gives u = log q − log p = 0 to the last bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from selfdistill.losses.head import Head
from selfdistill.losses.refusal import refusal
from selfdistill.losses.split import BucketedDistribution

Anchor = Literal["student", "teacher"]


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """One reading of the answers: hidden states at the same positions as the student's, their head, and a weight.

    `against` marks a view of what is not wanted. `present_N` (bool) says which positions this view read; None: all.
    Elsewhere its hidden states may be anything finite.
    """

    hidden_ND: Tensor
    head: Head
    weight: float = 1.0
    against: bool = False
    present_N: Tensor | None = None

    def logits(self, rows: slice, out_CV: Tensor | None = None) -> Tensor:
        """logits_CV of some positions, cut off from the graph; in `out_CV` where given."""
        return self.head.logits(self.hidden_ND[rows], out_CV)

    def reads(self, rows: slice) -> bool:
        """Whether it read any of these positions."""
        return self.present_N is None or bool(self.present_N[rows].any())

    def shares(self, rows: slice, like: Tensor) -> float | Tensor:
        """Its weight at these positions: one number, or [C, 1] with 0 where it is absent."""
        return self.weight if self.present_N is None else self.weight * self.present_N[rows, None].to(like)

    def cut_off(self, head: Head) -> TeacherStates:
        """The same view without a graph, under a head without one."""
        return replace(self, hidden_ND=self.hidden_ND.detach(), head=head)


@dataclass(frozen=True, slots=True)
class MixtureInputs:
    """Some positions: who reads them, and the student's own logits there. `room_CV` may be used for the result."""

    views: Sequence[TeacherStates]
    rows: slice
    temperature: float
    student_CV: Tensor
    room_CV: Tensor | None = None

    def of(self, *, against: bool) -> list[TeacherStates]:
        """The views of one side that read any of these positions."""
        return [view for view in self.views if view.against == against and view.reads(self.rows)]


class TeacherMixture(ABC):
    """How the views become one distribution."""

    __slots__ = ()
    reads_against: ClassVar[bool] = False

    @property
    def normalised(self) -> bool:
        """Whether q sums to 1, as every support but the sampled token needs."""
        return True

    @abstractmethod
    def logits(self, reading: MixtureInputs) -> Tensor:
        """logits_CV of q at the temperature: log q up to a constant per position, or log q as it is if `normalised`
        is False. A fresh tensor, or the reading's room."""


@dataclass(frozen=True, slots=True)
class Product(TeacherMixture):
    """The normalised geometric mixture of the views "for": log q = log_softmax of Σ_j w_j z_j / temperature.

    Two views of the same context with weights (1 − ρ, ρ), one by frozen and one by current weights, are the
    trust-region teacher q ∝ q_ref^{1−ρ} q_θ^{ρ} (arXiv 2601.20802, A.2). The mixture is formed in float32: at ρ = .01
    the current weights' share would vanish in bfloat16 logits.
    """

    def logits(self, reading: MixtureInputs) -> Tensor:
        """The weighted sum of the views' logits, at the temperature."""
        mixed_CV = product_logits(reading.of(against=False), reading.rows, reading.room_CV)
        return mixed_CV if reading.temperature == 1.0 else mixed_CV.div_(reading.temperature)


@dataclass(frozen=True, slots=True)
class Contrast(TeacherMixture):
    """What the views "for" say beyond those "against": log q ∝ log anchor + strength · (log T⁺ − log T̄⁻).

    T⁺ is the product of the views "for", T̄⁻ the arithmetic mean of those "against"; what both sides share, the style
    of a teacher's prompt above all, cancels. `anchor` "student" moves the student by the difference; "teacher" is
    (1 + strength) T⁺ − strength T̄⁻ in logs. Without `normalise` the difference is kept as it is, which only the
    sampled token can use. Positions that no view "against" read fall back on T⁺ alone.

    Raises `ValueError` for an unknown anchor or a strength that is not positive. Source: arXiv 2606.11709.
    """

    reads_against: ClassVar[bool] = True

    strength: float = 1.0
    anchor: Anchor = "student"
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.anchor not in get_args(Anchor) or not 0 < self.strength < float("inf"):
            raise refusal(
                "a contrast needs a positive strength and a known anchor",
                got=self,
                why="strength multiplies the difference, the anchor is what it is added to",
                do=f"strength 1.0, anchor one of {', '.join(get_args(Anchor))}",
            )

    @property
    def normalised(self) -> bool:
        """As asked."""
        return self.normalise

    def logits(self, reading: MixtureInputs) -> Tensor:
        """The difference of two normalised sides is exactly 0 where they agree, and the anchor's logits stay."""
        wanted_CV, against = product_logits(reading.of(against=False), reading.rows), reading.of(against=True)
        log_wanted_CV = log_probs(wanted_CV, reading.temperature)
        alone_CV = _at_temperature(wanted_CV, reading.temperature) if self.normalise else log_wanted_CV
        if not against:
            return alone_CV
        unwanted_CV = mean_logits(against, reading.rows, reading.temperature)
        beyond_CV = log_wanted_CV.sub(log_probs(unwanted_CV, 1.0)).mul_(self.strength)
        anchor_CV = reading.student_CV if self.anchor == "student" else wanted_CV
        form = _at_temperature if self.normalise else log_probs
        contrast_CV = beyond_CV.add_(form(anchor_CV, reading.temperature))
        if any(view.present_N is None for view in against):
            return contrast_CV
        contrasted_C = torch.stack([view.present_N[reading.rows] for view in against if view.present_N is not None])
        return torch.where(contrasted_C.any(0)[:, None], contrast_CV, alone_CV)


def log_probs(logits_NV: Tensor, temperature: float) -> Tensor:
    """log_softmax(z / temperature) over the last axis, as the kernel rounds it."""
    return BucketedDistribution.of(_at_temperature(logits_NV, temperature)).log_p()


def _at_temperature(logits_NV: Tensor, temperature: float) -> Tensor:
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def product_logits(views: Sequence[TeacherStates], rows: slice, room_CV: Tensor | None = None) -> Tensor:
    """Σ_j w_j z_j of the views that read each position. Each view moves what is there by its share, so that equal
    views give that view exactly."""
    steps = _steps(views, rows, room_CV)
    mixed_CV, _ = next(steps)
    for logits_CV, share in steps:
        mixed_CV = _toward_(mixed_CV, logits_CV, share)
    return mixed_CV


def mean_logits(views: Sequence[TeacherStates], rows: slice, temperature: float) -> Tensor:
    """log Σ_j w_j softmax(z_j / temperature) of the views that read each position, plus the first one's normaliser.
    Formed in logs, where small probabilities keep their digits; equal views give that view's logits exactly."""
    steps = _steps(views, rows)
    mean_CV = _at_temperature(next(steps)[0], temperature)
    first_C1 = mean_CV.logsumexp(-1, keepdim=True)
    for logits_CV, share in steps:
        other_CV = _at_temperature(logits_CV, temperature)
        share_C1 = torch.as_tensor(share, dtype=mean_CV.dtype, device=mean_CV.device)
        own_C1 = other_CV.logsumexp(-1, keepdim=True)
        first_C1 = torch.where(share_C1 == 1, own_C1, first_C1)  # nobody read this position before
        other_CV = other_CV - (own_C1 - first_C1)
        both_CV = torch.logaddexp(mean_CV + torch.log1p(-share_C1), other_CV + share_C1.log())
        mean_CV = torch.where(mean_CV == other_CV, mean_CV, both_CV)
    return mean_CV


def _steps(
    views: Sequence[TeacherStates], rows: slice, room_CV: Tensor | None = None
) -> Iterator[tuple[Tensor, float | Tensor]]:
    """Each view's logits_CV and its share of all weight seen so far: the first has all, an absent one none."""
    assert views, "positions with weight were checked to have a view"
    total: float | Tensor = 0.0
    for view in views:
        logits_CV, room_CV = view.logits(rows, room_CV), None
        weight = view.shares(rows, logits_CV)
        total = total + weight
        if isinstance(total, float):
            yield logits_CV, (weight / total if total else 0.0)
        else:
            yield logits_CV, torch.where(total == 0, 0.0, weight / total)


def _toward_(mixed_CV: Tensor, other_CV: Tensor, share: float | Tensor) -> Tensor:
    """mixed + share · (other − mixed), exact where both are equal and where one has all the weight. May overwrite the
    first argument."""
    if isinstance(share, float):
        return mixed_CV.add_((other_CV - mixed_CV).mul_(share))
    moved_CV = (other_CV - mixed_CV).mul_(share).add_(mixed_CV)
    return torch.where(share == 1, other_CV, torch.where(share == 0, mixed_CV, moved_CV))
