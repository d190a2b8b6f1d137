"""The cost of the fused kernel: memory, and products with the head."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import textbook
import torch
from kernel_runs import run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.losses import Contrast, FullVocabulary, LossSpec, Product, Support, TeacherMixture, TokenWeights, TopK

DETACH = torch.ops.aten.detach.default  # shares the memory of its argument
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm_.default)


class Allocations(TorchDispatchMode):
    """Counts elements of what operations return: the largest tensor, and the most alive at once. Counts products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.peak = self.products = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and func is not DETACH and not x._is_view() and x.data_ptr() not in self.seen:
                self.seen.add(x.data_ptr())
                self.alive += x.numel()
                weakref.finalize(x, self.forget, x.data_ptr(), x.numel())
                self.largest, self.peak = max(self.largest, x.numel()), max(self.peak, self.alive)
        self.products += func in PRODUCTS
        return out

    def forget(self, address: int, elements: int) -> None:
        self.seen.discard(address)
        self.alive -= elements


@pytest.mark.parametrize("support", [FullVocabulary(), TopK(5), TopK(5, tail=False)], ids=str)
def test_memory_does_not_grow_with_the_number_of_positions(support: Support) -> None:
    """V = 301, D = 8, chunks of 16. No tensor exceeds one chunk's logits, and eight times the positions add only
    what is kept per position: dH, its scaled copy, the leaf's own gradient and nine stats, 3 · 8 + 9 = 33 numbers, far
    below the 301 of one row of logits."""
    peaks = {}
    for positions in (64, 512):
        case = textbook.problem(positions=positions, vocabulary=301, size=8)
        with Allocations() as seen:
            run(case, LossSpec(support=support), chunk=16).loss.backward()
        assert seen.largest == 16 * 301
        peaks[positions] = seen.peak
    assert peaks[64] < 16 * 16 * 301
    assert peaks[512] - peaks[64] < 448 * 40


@pytest.mark.parametrize("mixture", [Product(), Contrast()], ids=str)
def test_memory_does_not_grow_with_the_number_of_views(mixture: TeacherMixture) -> None:
    """V = 301, chunks of 16: a fourth and a twelfth view are read one after the other."""
    peaks = {}
    for count in (4, 12):
        case = textbook.problem(positions=32, vocabulary=301, size=8)
        others = [textbook.problem(positions=32, vocabulary=301, size=8, seed=s).teacher for s in range(count)]
        views = [replace(view, weight=1 / count) for view in others]
        views += [replace(view, against=True) for view in others] if mixture.reads_against else []
        with Allocations() as seen:
            run(case, LossSpec(mixture=mixture), teacher=views, chunk=16)
        assert seen.largest == 16 * 301
        peaks[count] = seen.peak
    assert peaks[12] < peaks[4] + 16 * 301


def test_a_view_costs_nothing_where_it_read_nothing() -> None:
    """Three chunks of two, the second view present in one of them: four products of teacher logits, not six."""
    case, other = textbook.problem(positions=6), textbook.problem(positions=6, seed=1).teacher
    everywhere, middle = torch.ones(6, dtype=torch.bool), torch.tensor([0, 0, 1, 1, 0, 0], dtype=torch.bool)
    views = [replace(case.teacher, present_N=everywhere), replace(other, present_N=middle)]
    with torch.no_grad(), Allocations() as seen:
        run(case, LossSpec(), teacher=views, chunk=2)
    assert seen.products == 3 + 4


def test_a_term_without_weight_costs_nothing() -> None:
    """No teacher logits where nothing is distilled, chunk by chunk; no gradient products where nothing has weight."""
    case = textbook.problem(positions=6)
    first = torch.tensor([1.0, 1, 0, 0, 0, 0])

    def products(weights: TokenWeights) -> int:
        with Allocations() as seen:
            run(case, LossSpec(), weights=weights, chunk=2)
        return seen.products

    assert products(TokenWeights()) == 3  # the student's logits of three chunks
    assert products(TokenWeights(distil_N=torch.zeros(6), advantage_N=torch.zeros(6))) == 3
    assert products(TokenWeights(distil_N=first)) == 3 + 1 + 2  # one chunk: teacher logits, dH, dW
    assert products(TokenWeights(advantage_N=torch.ones(6))) == 3 + 3 * 2
    assert products(TokenWeights(distil_N=torch.ones(6))) == 3 + 3 * 3
