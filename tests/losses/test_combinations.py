"""Every log-ratio × support × shape × bound × head × number format against autograd through the textbook formulas.

Five positions over seven tokens, hidden size 4. The textbook differentiates all heads and formats of a combination at
once, in float64 on the rounded inputs; the kernel runs each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import pytest
import textbook
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
    FusedResult,
    Head,
    JensenShannon,
    LossSpec,
    Product,
    ReverseKL,
    SampledToken,
    Support,
    Tanh,
    TeacherMixture,
    TeacherStates,
    TokenWeights,
    TopK,
    fused_loss,
)

MIXTURES: dict[str, TeacherMixture] = {
    "product": Product(),
    "contrast": Contrast(0.7),
    "contrast-teacher": Contrast(0.5, anchor="teacher"),
    "contrast-raw": Contrast(0.7, normalise=False),
    "contrast-raw-teacher": Contrast(0.5, anchor="teacher", normalise=False),
}
SUPPORTS: dict[str, Support] = {
    "full": FullVocabulary(),
    "student-tail": TopK(3),
    "teacher-tail": TopK(2, of="teacher"),
    "both-tail": TopK(2, of="both"),
    "student-renormalised": TopK(3, tail=False),
    "teacher-renormalised": TopK(3, of="teacher", tail=False),
    "both-renormalised": TopK(2, of="both", tail=False),
    "sampled": SampledToken(),
}
SHAPES: dict[str, Divergence] = {
    "reverse": ReverseKL(),
    "forward": ForwardKL(),
    "jensen-shannon": JensenShannon(0.3),
    "clipped": ClippedForwardKL(0.05),
}
CLIPPINGS: tuple[Clipping | None, ...] = (None, Clip(0.3), Tanh(0.5))
HEADS = ("plain", "tied", "bias", "softcap", "scale")
DTYPES = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 4e-6), torch.bfloat16: (2e-6, 1.2e-2)}
POSITIONS, VOCABULARY, SIZE = 5, 7, 4
IDS = torch.tensor([1, 3, 3, 0, 6])  # where a tied head's own rows are the hidden states
WEIGHT = torch.tensor([0.3, -0.2, 0.5, 1.0, 0.7], dtype=torch.float64)  # one token is pushed away from its teacher
PRESENT = [[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 0, 1, 0], [0, 1, 0, 1, 1]]  # nobody is against the third position


@dataclass(frozen=True)
class Case:
    """One head in one number format, and who teaches."""

    kind: str
    leaves: tuple[Tensor, ...]
    head: Head
    wanted: tuple[TeacherStates, ...]
    against: tuple[TeacherStates, ...]
    reference: TeacherStates
    tokens_N: Tensor

    def hidden(self, leaves: tuple[Tensor, ...]) -> Tensor:
        """The student's hidden states: rows of the head's own weight if they are tied, leaves of their own if not."""
        return torch.tanh(leaves[0][IDS]) if self.kind == "tied" else leaves[1]

    def with_leaves(self, leaves: tuple[Tensor, ...]) -> Head:
        return replace(self.head, weight_VD=leaves[0], bias_V=leaves[-1] if self.kind == "bias" else None)

    def views(self, mixture: TeacherMixture) -> list[TeacherStates]:
        return [*self.wanted, *(self.against if isinstance(mixture, Contrast) else ())]


@cache
def cases() -> list[Case]:
    return [make_case(kind, dtype) for kind, dtype in product(HEADS, DTYPES)]


def make_case(kind: str, dtype: torch.dtype) -> Case:
    draw = torch.Generator().manual_seed(HEADS.index(kind))

    def normal(*shape: int) -> Tensor:
        return (0.8 * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype)

    weight, hidden, bias = normal(VOCABULARY, SIZE), normal(POSITIONS, SIZE), normal(VOCABULARY)
    leaves = {"tied": (weight,), "bias": (weight, hidden, bias)}.get(kind, (weight, hidden))
    head = Head(weight, softcap=2.0 if kind == "softcap" else None, scale=0.5 if kind == "scale" else 1.0)
    own = replace(head, weight_VD=normal(VOCABULARY, SIZE), bias_V=bias if kind == "bias" else None)
    views = [
        TeacherStates(normal(POSITIONS, SIZE), own, weight, index >= 2, torch.tensor(present, dtype=torch.bool))
        for index, (weight, present) in enumerate(zip((0.7, 0.2, 1.0, 3.0), PRESENT, strict=True))
    ]
    tokens = torch.randint(VOCABULARY, (POSITIONS,), generator=draw)
    reference = TeacherStates(normal(POSITIONS, SIZE), own)
    return Case(
        kind, tuple(x.requires_grad_() for x in leaves), head, tuple(views[:2]), tuple(views[2:]), reference, tokens
    )


def kernel(case: Case, loss_spec: LossSpec) -> FusedResult:
    return fused_loss(
        loss_spec,
        case.hidden(case.leaves).to(case.leaves[0].dtype),
        case.with_leaves(case.leaves),
        case.tokens_N,
        TokenWeights(distil_N=WEIGHT),
        teacher=case.views(loss_spec.mixture),
        chunk=2 if case.leaves[0].dtype == torch.float64 else None,
    )


@cache
def exact_probabilities() -> tuple[list[tuple[Tensor, ...]], Tensor, Tensor]:
    """Float64 leaves of every case, and student and reference probabilities of all cases one after the other."""
    leaves = [tuple(x.detach().double().requires_grad_() for x in case.leaves) for case in cases()]
    p = [
        textbook.probabilities(rounded(case, case.hidden(x)), case.with_leaves(x), 0.8)
        for case, x in zip(cases(), leaves, strict=True)
    ]
    references = [case.reference for case in cases()]
    p_ref = [textbook.probabilities(v.hidden_ND.double(), double(v.head), 0.8) for v in references]
    return leaves, torch.cat(p), torch.cat(p_ref).detach()


def rounded(case: Case, hidden_ND: Tensor) -> Tensor:
    """As the kernel sees a tied case's hidden states: in the case's format. The gradient passes straight through."""
    return hidden_ND + (hidden_ND.detach().to(case.leaves[0].dtype).double() - hidden_ND.detach())


def double(head: Head) -> Head:
    bias = None if head.bias_V is None else head.bias_V.detach().double()
    return replace(head, weight_VD=head.weight_VD.detach().double(), bias_V=bias)


@cache
def exact_targets(name: str) -> Tensor:
    """The teacher of all cases under one log-ratio."""
    _, p, p_ref = exact_probabilities()
    targets = []
    for index, case in enumerate(cases()):
        rows = slice(index * POSITIONS, (index + 1) * POSITIONS)
        targets.append(textbook.target(MIXTURES[name], case.views(MIXTURES[name]), p[rows], p_ref[rows], 0.8))
    return torch.cat(targets)


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
@pytest.mark.parametrize(
    ("mixture", "support"),
    [pair for pair in product(MIXTURES, SUPPORTS) if pair[1] == "sampled" or MIXTURES[pair[0]].normalise],
)
def test_values_and_gradients_equal_autograd(mixture: str, support: str, clipping: Clipping | None) -> None:
    leaves, p, _ = exact_probabilities()
    q, tokens = exact_targets(mixture), torch.cat([case.tokens_N for case in cases()])
    for shape in SHAPES.values():
        loss_spec = LossSpec(SUPPORTS[support], shape, temperature=0.8, mixture=MIXTURES[mixture], clipping=clipping)
        expected = textbook.numbers(SUPPORTS[support], shape, clipping, p, q, tokens)
        flat = [x for ours in leaves for x in ours]
        total = (WEIGHT.repeat(len(leaves)) * expected.surrogate_N).sum()
        gradients = iter(torch.autograd.grad(total, flat, retain_graph=True))
        for index, case in enumerate(cases()):
            rows = slice(index * POSITIONS, (index + 1) * POSITIONS)
            result = kernel(case, loss_spec)
            assert_close(result, expected, rows, case)
            for leaf, ours in zip(case.leaves, torch.autograd.grad(result.loss, case.leaves), strict=True):
                theirs = next(gradients)
                tolerance = DTYPES[leaf.dtype][1] * max(1.0, float(theirs.abs().max()))
                assert (ours - theirs).abs().max() < tolerance, (shape, case.kind, leaf.dtype)


def assert_close(result: FusedResult, expected: textbook.Numbers, rows: slice, case: Case) -> None:
    tolerance = DTYPES[case.leaves[0].dtype][0]
    pairs = {
        "loss": (result.loss, (WEIGHT * expected.divergence_N[rows]).sum()),
        "divergence": (result.stats.divergence_N, expected.divergence_N[rows]),
        "magnitude": (result.stats.magnitude_N, expected.magnitude_N[rows]),
    }
    for name, (ours, theirs) in pairs.items():
        gap = (ours.detach() - theirs.detach()).abs() / theirs.detach().abs().clamp(min=1)
        assert gap.max() < tolerance, (name, case.kind, case.leaves[0].dtype)
