"""A teacher kept as its most likely tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import signal_textbook as textbook
import torch

from selfdistill.signal import (
    Average,
    Clip,
    ForwardKL,
    FullVocabulary,
    FusedResult,
    JensenShannon,
    Product,
    ReverseKL,
    Signal,
    TeacherView,
    TokenWeights,
    TopK,
    cheaper_as_top_k,
    fused_signal,
    keep_top_k,
)


def run(case: textbook.Problem, view: TeacherView, signal: Signal, chunk: int | None = None) -> FusedResult:
    weights = TokenWeights(distil_N=case.weight_N)
    return fused_signal(signal, case.hidden_ND, case.head, case.tokens_N, weights, views=[view], chunk=chunk)


@pytest.mark.parametrize("shape", [ReverseKL(), ForwardKL(), JensenShannon(0.3)], ids=str)
@pytest.mark.parametrize("bound", [None, Clip(0.2)], ids=str)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_tokens_give_what_hidden_states_give(shape: Any, bound: Any, tail: bool, dtype: torch.dtype) -> None:
    """Kept tokens come from a product of other row counts than the update's: equal to rounding, not bit for bit."""
    case = textbook.problem(positions=11, vocabulary=33, dtype=dtype, bias=True, softcap=5.0)
    kept = keep_top_k(case.teacher, 4, temperature=0.7)
    assert kept.hidden_ND.numel() == 0
    signal = Signal(TopK(4, of="teacher", tail=tail), shape, temperature=0.7, bound=bound)
    for chunk in (3, None):
        ours, theirs = run(case, kept, signal, chunk), run(case, case.teacher, signal, chunk)
        torch.testing.assert_close(ours.loss, theirs.loss)
        torch.testing.assert_close(ours.stats.magnitude_N, theirs.stats.magnitude_N)
        for one, other in zip(textbook.gradients(ours.loss, case), textbook.gradients(theirs.loss, case), strict=True):
            torch.testing.assert_close(one, other)


def test_what_was_not_kept_is_unknown() -> None:
    """log q(y) is known where y is among the kept tokens, NaN elsewhere; the teacher's entropy is not known at all."""
    case = textbook.problem()
    signal = Signal(TopK(2, of="teacher"))
    ours, theirs = run(case, keep_top_k(case.teacher, 2), signal).stats, run(case, case.teacher, signal).stats
    top = textbook.probabilities(case.teacher.hidden_ND, case.teacher.head).topk(2).indices
    inside = (top == case.tokens_N[:, None]).any(-1)
    assert inside.any()
    assert not inside.all()
    assert torch.equal(ours.teacher_logprobs_N.isnan(), ~inside)
    torch.testing.assert_close(ours.teacher_logprobs_N[inside], theirs.teacher_logprobs_N[inside])
    assert ours.teacher_entropy_N.isnan().all()


def test_keeping_more_than_there_is_keeps_all_but_one() -> None:
    """As the support does: K is capped at V − 1, where top-K with a tail is the full vocabulary."""
    case = textbook.problem()
    kept = keep_top_k(case.teacher, 100)
    assert kept.kept is not None
    assert kept.kept.k == 6
    whole = run(case, case.teacher, Signal(FullVocabulary())).loss
    torch.testing.assert_close(run(case, kept, Signal(TopK(50, of="teacher"))).loss, whole)


def test_the_smaller_of_the_two() -> None:
    """Qwen3-8B has 4,096 hidden numbers of 2 bytes; an id and a log-probability are 12."""
    assert cheaper_as_top_k(100, 4096, 2)
    assert cheaper_as_top_k(682, 4096, 2)
    assert not cheaper_as_top_k(683, 4096, 2)
    assert not cheaper_as_top_k(20, 96, 2)


@pytest.mark.parametrize(
    ("signal", "why"),
    [
        (Signal(FullVocabulary()), "asks for other tokens"),
        (Signal(TopK(3)), "asks for other tokens"),
        (Signal(TopK(3, of="both")), "asks for other tokens"),
        (Signal(TopK(4, of="teacher")), "asks for other tokens"),
        (Signal(TopK(3, of="teacher"), evidence=Average()), "mixes over the whole vocabulary"),
        (Signal(TopK(3, of="teacher"), evidence=Product(student=0.1)), "mixes over the whole vocabulary"),
        (Signal(TopK(3, of="teacher"), temperature=0.5), "temperature 1, not 0.5"),
    ],
)
def test_what_kept_tokens_cannot_answer_is_refused(signal: Signal, why: str) -> None:
    case = textbook.problem()
    with pytest.raises(ValueError, match=why):
        run(case, keep_top_k(case.teacher, 3), signal)


def test_kept_tokens_are_the_only_view() -> None:
    case = textbook.problem()
    views = [replace(keep_top_k(case.teacher, 3), weight=0.5), replace(case.teacher, weight=0.5)]
    with pytest.raises(ValueError, match="2 views are mixed"):
        fused_signal(
            Signal(TopK(3, of="teacher")),
            case.hidden_ND,
            case.head,
            case.tokens_N,
            TokenWeights(distil_N=case.weight_N),
            views=views,
        )


def test_nothing_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing of the teacher"):
        keep_top_k(textbook.problem().teacher, 0)
