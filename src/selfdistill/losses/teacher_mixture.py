"""The teacher's distribution q, from one or several forward passes over the answers.

Legend: N answer positions, C positions of one chunk, V vocabulary, D hidden size; p student, q teacher.

Each pass (`TeacherStates`) is of one context or one set of weights, for the answer or, in a contrast, against it. Each
may cover only some of the positions: the weights of those that do are normalised there. A `TeacherMixture` makes one
distribution of them: a product (the default) or a contrast. Passes are read one after the other, so that their number
costs time and no memory. Where they agree the result is exact: the same context gives u = log q − log p = 0, bit by
bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from selfdistill.errors import Ranged, check_choice, option
from selfdistill.losses.head import Head
from selfdistill.losses.support import BucketedDistribution

Anchor = Literal["student", "teacher"]


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """One forward pass over the answers: hidden states at the student's positions, their head, and a weight.

    `against` marks a pass whose prompt is contrasted with the others. `present_N` (bool) are the positions it covers;
    None: all. Elsewhere its hidden states may be anything finite.
    """

    hidden_ND: Tensor
    head: Head
    weight: float = 1.0
    against: bool = False
    present_N: Tensor | None = None

    def at(self, rows: slice) -> TeacherStates:
        """The pass at some of its positions."""
        present_C = None if self.present_N is None else self.present_N[rows]
        return replace(self, hidden_ND=self.hidden_ND[rows], present_N=present_C)

    def covered(self) -> Tensor:
        """covered_N (bool)."""
        everywhere_N = torch.ones(len(self.hidden_ND), dtype=torch.bool, device=self.hidden_ND.device)
        return everywhere_N if self.present_N is None else self.present_N


Passes: TypeAlias = Sequence[TeacherStates]


class TeacherMixture(Ranged, ABC):
    """How several passes become one distribution."""

    __slots__ = ()
    reads_against: ClassVar[bool] = False
    normalise: bool
    """Whether q sums to 1, as every support but the sampled token needs."""

    @abstractmethod
    def logits(self, passes: Passes, student_CV: Tensor, temperature: float, out_CV: Tensor | None) -> Tensor:
        """logits_CV of q at the temperature, from the passes at C positions: log q up to a constant per position, or
        log q itself unless `normalise`. A fresh tensor, or `out_CV`. `student_CV` is not yet divided by the
        temperature."""


@dataclass(frozen=True, slots=True)
class Product(TeacherMixture):
    """The normalised geometric mixture of the passes: log q = log_softmax of Σ_j w_j z_j / temperature.

    Two passes over the same context with weights (1 − ρ, ρ), one by frozen and one by current weights, are the
    trust-region teacher q ∝ q_ref^{1−ρ} q_θ^{ρ} (arXiv 2601.20802, A.2). The mixture is formed in float32: at ρ = .01
    the current weights' share would vanish in bfloat16 logits.
    """

    normalise = True

    def logits(self, passes: Passes, student_CV: Tensor, temperature: float, out_CV: Tensor | None) -> Tensor:
        """Σ_j w_j z_j / temperature of the passes that cover each position. Each moves the sum so far by its share, so
        that equal passes give that pass exactly, and so does one with all the weight."""
        steps = _steps(passes, out_CV)
        mixed_CV, _ = next(steps)
        for logits_CV, share in steps:
            if isinstance(share, float):
                mixed_CV.add_((logits_CV - mixed_CV).mul_(share))
            else:
                unless_all_CV = torch.where(share == 0, mixed_CV, (logits_CV - mixed_CV).mul_(share).add_(mixed_CV))
                mixed_CV = torch.where(share == 1, logits_CV, unless_all_CV)
        return mixed_CV if temperature == 1.0 else mixed_CV.div_(temperature)


@dataclass(frozen=True, slots=True)
class Contrast(TeacherMixture):
    """The passes for the answer beyond those against it: log q ∝ log anchor + strength · (log T⁺ − log T̄⁻).

    T⁺ is the product of the passes for, T̄⁻ the arithmetic mean of those against; a part that both sides share, the
    style of a teacher's prompt above all, cancels. `anchor` "student" moves the student by the difference; "teacher" is
    (1 + strength) T⁺ − strength T̄⁻ in logs. Without `normalise` the difference is kept as it is, which only the
    sampled token can use. Positions that no pass against covers fall back on T⁺ alone.

    Raises `ConfigError` also for an unknown anchor. Source: arXiv 2606.11709.
    """

    reads_against: ClassVar[bool] = True

    strength: float = option(1.0, "multiplies the difference", above=0)
    anchor: Anchor = "student"
    normalise: bool = True

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        check_choice("anchor of a contrast", self.anchor, get_args(Anchor))

    def logits(self, passes: Passes, student_CV: Tensor, temperature: float, out_CV: Tensor | None) -> Tensor:
        """The difference of two normalised sides is exactly 0 where they agree, and the anchor's logits stay."""
        wanted, against = ([each for each in passes if each.against == side] for side in (False, True))
        wanted_CV = Product().logits(wanted, student_CV, temperature, None)
        log_wanted_CV = log_probs(wanted_CV, 1.0)
        alone_CV = wanted_CV if self.normalise else log_wanted_CV
        if not any(each.covered().any() for each in against):
            return alone_CV
        contrasted_C = torch.stack([each.covered() for each in against]).any(0)
        difference_CV = log_wanted_CV.sub(_mean_log_probs(against, temperature)).mul_(self.strength)
        anchor_CV = alone_CV
        if self.anchor == "student":
            anchor_CV = student_CV if temperature == 1.0 else student_CV / temperature
            anchor_CV = anchor_CV if self.normalise else log_probs(anchor_CV, 1.0)
        return torch.where(contrasted_C[:, None], difference_CV.add_(anchor_CV), alone_CV)


def log_probs(logits_NV: Tensor, temperature: float) -> Tensor:
    """log_softmax(z / temperature) over the last axis, as the kernel rounds it."""
    return BucketedDistribution.of(logits_NV if temperature == 1.0 else logits_NV / temperature).log_p()


def _mean_log_probs(passes: Passes, temperature: float) -> Tensor:
    """log Σ_j w_j softmax(z_j / temperature) of the passes that cover each position. Formed in logs, where small
    probabilities keep their digits; equal passes give that pass exactly."""
    steps = _steps(passes)
    mean_CV = log_probs(next(steps)[0], temperature)
    for logits_CV, share in steps:
        other_CV = log_probs(logits_CV, temperature)
        share_C1 = torch.as_tensor(share, dtype=mean_CV.dtype, device=mean_CV.device)
        both_CV = torch.logaddexp(mean_CV + torch.log1p(-share_C1), other_CV + share_C1.log())
        mean_CV = torch.where(mean_CV == other_CV, mean_CV, both_CV)
    return mean_CV


def _steps(passes: Passes, out_CV: Tensor | None = None) -> Iterator[tuple[Tensor, float | Tensor]]:
    """Of each pass that covers any position: logits_CV (of the first in `out_CV`), and its share of the weight so far,
    one number or [C, 1]. The first has a share of 1, an absent one of 0."""
    total: float | Tensor = 0.0
    for each in passes:
        if each.present_N is not None and not each.present_N.any():
            continue
        logits_CV, out_CV = each.head.logits(each.hidden_ND, out_CV), None
        weight = each.weight if each.present_N is None else each.weight * each.present_N[:, None].to(logits_CV)
        total = total + weight
        if isinstance(total, float):
            yield logits_CV, (weight / total if total else 0.0)
        else:
            yield logits_CV, torch.where(total == 0, 0.0, weight / total)
