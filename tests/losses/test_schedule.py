"""Schedules, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from selfdistill.losses import EntropyGate, LossSpec
from selfdistill.losses.schedules import Constant, Linear, Schedule, Trapezoid


def test_constant() -> None:
    assert [Constant(0.5).at(step) for step in (0, 7, 10**6)] == [0.5, 0.5, 0.5]


def test_a_teacher_is_heard_where_it_has_strength_and_wherever_a_gate_reads_it() -> None:
    fading = LossSpec(schedule=Linear(0.5, 0.0, 2))
    assert [fading.teaches(step) for step in range(4)] == [True, True, False, False]
    assert all(replace(fading, gate=EntropyGate()).teaches(step) for step in range(4))


def test_linear_by_hand() -> None:
    falling = Linear(0.5, 0.0, 50)
    assert [falling.at(step) for step in (0, 25, 50, 51, 1000)] == [0.5, 0.25, 0.0, 0.0, 0.0]
    rising = Linear(0.0, 0.1, 4)
    assert [rising.at(step) for step in range(6)] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_trapezoid_by_hand() -> None:
    shape = Trapezoid(peak=1.0, warmup=2, hold=1, decay=4)
    assert [shape.at(step) for step in range(10)] == [0, 0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]


def test_the_published_trapezoid() -> None:
    published = Trapezoid()
    assert [published.at(step) for step in (0, 25, 50, 225, 400, 500)] == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0, 0])


def test_a_trapezoid_may_start_at_its_peak() -> None:
    assert [Trapezoid(2.0, 0, 0, 2).at(step) for step in range(4)] == [2.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize(
    "make", [Constant, Linear, lambda value: Linear(0.5, value), Trapezoid], ids=["constant", "start", "end", "peak"]
)
def test_strengths_out_of_range_are_refused(make: Callable[[float], Schedule], wrong: float) -> None:
    with pytest.raises(ValueError, match=r"use Away\(\)"):
        make(wrong)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Linear(steps=0), "steps"),
        (lambda: Trapezoid(warmup=-1), "warmup"),
        (lambda: Trapezoid(hold=-1), "hold"),
        (lambda: Trapezoid(decay=0), "decay"),
    ],
)
def test_lengths_out_of_range_are_refused(make: Callable[[], Schedule], name: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)^{name} must be at least.*use Constant\(value\)"):
        make()
