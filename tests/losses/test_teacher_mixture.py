"""The teacher of several forward passes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import textbook
import torch
from kernel_runs import run
from torch import Tensor

from selfdistill.losses import (
    Clip,
    Contrast,
    ForwardKL,
    FullVocabulary,
    FusedResult,
    Head,
    LossSpec,
    Product,
    ReverseKL,
    SampledToken,
    TeacherMixture,
    TeacherStates,
    TokenWeights,
    TopK,
    fused_loss,
)

ALL: tuple[TeacherMixture, ...] = (
    Product(),
    Contrast(),
    Contrast(2.0, anchor="teacher"),
)


def gradient(result: FusedResult, case: textbook.Problem) -> Tensor:
    return torch.autograd.grad(result.loss, case.hidden_ND)[0]


def mask(*present: int) -> Tensor:
    return torch.tensor(present, dtype=torch.bool)


def others(count: int, **options: Any) -> list[TeacherStates]:
    """Views of other contexts, by other weights."""
    return [textbook.problem(seed=10 + index, **options).teacher for index in range(count)]


def table(*rows: list[float]) -> tuple[Tensor, Head]:
    """Hidden states that are log-probabilities, under a head that changes nothing."""
    log_p = torch.tensor(rows, dtype=torch.float64).log()
    return log_p, Head(torch.eye(log_p.shape[1], dtype=torch.float64))


def teacher_of(mixture: TeacherMixture, p: list[float], views: list[tuple[list[float], bool]]) -> Tensor:
    """q over three tokens, read off token by token."""
    hidden, head = table(p, p, p)
    seen = [TeacherStates(*table(q, q, q), weight=1.0, against=against) for q, against in views]
    loss_spec, tokens = LossSpec(SampledToken(), ReverseKL(), mixture=mixture), torch.arange(3)
    weights = TokenWeights(distil_N=torch.ones(3))
    return fused_loss(loss_spec, hidden, head, tokens, weights, teacher=seen).stats.teacher_logprobs_N.exp()


def test_contrast_by_hand() -> None:
    """For (.4, .4, .2) against (.2, .4, .4) leaves (2, 1, 1/2); the student (1/2, 1/4, 1/4) becomes (8, 2, 1) / 11."""
    views = [([0.4, 0.4, 0.2], False), ([0.2, 0.4, 0.4], True)]
    student = [0.5, 0.25, 0.25]
    torch.testing.assert_close(teacher_of(Contrast(), student, views), torch.tensor([8, 2, 1]).double() / 11)
    raw = teacher_of(Contrast(normalise=False), student, views)
    torch.testing.assert_close(raw, torch.tensor([1, 1 / 4, 1 / 8]).double())
    anchored = teacher_of(Contrast(anchor="teacher"), student, views)
    torch.testing.assert_close(anchored, torch.tensor([8, 4, 1]).double() / 13)


def test_views_against_are_averaged_not_multiplied() -> None:
    """Two against, (.1, .8, .1) and (.3, .2, .5): their mean (.2, .5, .3) is taken from (.4, .3, .3)."""
    views = [([0.4, 0.3, 0.3], False), ([0.1, 0.8, 0.1], True), ([0.3, 0.2, 0.5], True)]
    raw = teacher_of(Contrast(normalise=False), [0.25, 0.5, 0.25], views)
    torch.testing.assert_close(raw, torch.tensor([0.25 * 2, 0.5 * 0.6, 0.25]).double())


@pytest.mark.parametrize("mixture", [Product(), Contrast()], ids=str)
def test_absent_views_are_as_if_never_passed(mixture: TeacherMixture) -> None:
    """Answers with different numbers of contexts: each position is read by its own views alone, whatever lies in the
    others' hidden states there, and the weights of those present are shares of 1."""
    case, (one, other, against) = textbook.problem(), others(3)
    here = mask(1, 1, 0, 0, 1, 0)

    def spoiled(view: TeacherStates, present: Tensor) -> TeacherStates:
        return replace(view, hidden_ND=view.hidden_ND.where(present[:, None], 1e15), present_N=present)

    views = [
        replace(spoiled(one, here), weight=2.0),
        replace(spoiled(other, ~here | mask(1, 0, 0, 0, 0, 0)), weight=6.0),
    ]
    if mixture.reads_against:
        views.append(replace(spoiled(against, mask(1, 0, 0, 0, 0, 0)), against=True))
    for chunk in (1, 2, None):
        divergence_N = run(case, LossSpec(mixture=mixture), views, chunk=chunk).stats.divergence_N
        alone = [run(case, LossSpec(), [view]).stats.divergence_N for view in (one, other)]
        torch.testing.assert_close(divergence_N[1:], alone[0].where(here, alone[1])[1:])
        both = [replace(one, weight=0.25), replace(other, weight=0.75)]
        both += [replace(against, against=True)] if mixture.reads_against else []
        together_N = run(case, LossSpec(mixture=mixture), both).stats.divergence_N
        torch.testing.assert_close(divergence_N[0], together_N[0])


@pytest.mark.parametrize("support", [FullVocabulary(), TopK(2), TopK(3, of="both"), SampledToken()], ids=str)
@pytest.mark.parametrize("shape", [ReverseKL(), ForwardKL()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_contrast_of_equals_is_nothing(support: Any, shape: Any, dtype: torch.dtype) -> None:
    """c⁺ = c⁻, once or as two views each: whatever both say is style, and nothing is left of it. With the teacher as
    anchor, the teacher is left."""
    case = textbook.problem(dtype=dtype, bias=True, softcap=4.0)
    twice = [replace(case.teacher, weight=0.4), replace(case.teacher, weight=0.6)]
    for wanted in ([case.teacher], twice):
        views = [*wanted, *(replace(view, against=True) for view in wanted)]
        nothing = run(case, LossSpec(support, shape, temperature=0.7, mixture=Contrast(3.0)), views)
        assert nothing.loss.item() == 0
        assert all(g.count_nonzero() == 0 for g in textbook.gradients(nothing.loss, case))
        anchored = run(case, LossSpec(support, shape, temperature=0.7, mixture=Contrast(anchor="teacher")), views)
        plain = run(case, LossSpec(support, shape, temperature=0.7), [case.teacher])
        torch.testing.assert_close(anchored.loss, plain.loss)


def test_a_contrast_without_views_against_is_the_teacher() -> None:
    case = textbook.problem()
    assert torch.equal(
        run(case, LossSpec(mixture=Contrast(5.0)), [case.teacher]).loss, run(case, LossSpec(), [case.teacher]).loss
    )


@pytest.mark.parametrize("mixture", ALL, ids=str)
def test_impossible_tokens_stay_impossible(mixture: TeacherMixture) -> None:
    """Padded vocabulary entries: finite, and without any say."""
    pad = torch.tensor([0.0] * 5 + [-torch.inf] * 2)
    case = textbook.problem(dtype=torch.float32)
    heads = [Head(textbook.problem(seed=s, dtype=torch.float32).head.weight_VD.detach(), pad) for s in (0, 1, 2)]
    case = replace(case, head=heads[0], tokens_N=case.tokens_N.clamp(max=4))
    views = [
        TeacherStates(case.teacher.hidden_ND, heads[1], 0.5),
        TeacherStates(case.hidden_ND.detach(), heads[2], 0.5),
    ]
    if mixture.reads_against:
        views.append(TeacherStates(case.teacher.hidden_ND, heads[2], against=True))
    result = run(case, LossSpec(mixture=mixture), views, reference=replace(views[0], weight=1.0))
    cut = [replace(view, head=Head(view.head.weight_VD[:5])) for view in views]
    plain = run(
        replace(case, head=Head(heads[0].weight_VD[:5])),
        LossSpec(mixture=mixture),
        cut,
        reference=replace(cut[0], weight=1.0),
    )
    torch.testing.assert_close(result.loss, plain.loss)
    assert gradient(result, case).isfinite().all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Contrast(0.0), "strength must be a number above 0"),
        (lambda: Contrast(math.inf), "strength must be a number above 0"),
        (lambda: Contrast(anchor="nobody"), "student, teacher"),  # type: ignore[arg-type]
        (lambda: LossSpec(mixture=Contrast(normalise=False)), "sampled token only"),
        (lambda: LossSpec(TopK(3), mixture=Contrast(normalise=False)), "sampled token only"),
    ],
)
def test_impossible_settings_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_teachers_that_cannot_be_formed_are_refused() -> None:
    case, (other,) = textbook.problem(), others(1)
    against, some = replace(other, against=True), mask(1, 1, 1, 1, 1, 0)
    with pytest.raises(ValueError, match="only a contrast"):
        run(case, LossSpec(), [case.teacher, against])
    with pytest.raises(ValueError, match="no teacher"):
        run(case, LossSpec(mixture=Contrast()), [against])
    with pytest.raises(ValueError, match=r"no teacher\n  got  1 of 6"):
        run(case, LossSpec(), [replace(case.teacher, present_N=some)])
    with pytest.raises(ValueError, match=r"present_N.*\(5,\)"):
        run(case, LossSpec(), [replace(case.teacher, present_N=some[1:])])
    with pytest.raises(ValueError, match="must be positive"):
        run(case, LossSpec(mixture=Contrast()), [case.teacher, replace(against, weight=0.0)])
    with pytest.raises(ValueError, match="must be positive"):
        run(case, LossSpec(), [case.teacher, replace(other, weight=-0.5, present_N=some)])
    with pytest.raises(ValueError, match="must cover every position"):
        run(case, LossSpec(), [case.teacher], reference=replace(other, present_N=some))


def test_a_teacher_may_be_missing_where_nothing_is_distilled() -> None:
    case = textbook.problem()
    weights = TokenWeights(distil_N=torch.tensor([1.0, 1, 1, 1, 1, 0]))
    view = replace(case.teacher, present_N=mask(1, 1, 1, 1, 1, 0))
    run(case, LossSpec(), [view], weights=weights)
    run(case, LossSpec(clipping=Clip(1.0)), [], weights=TokenWeights(distil_N=torch.zeros(6)))
