"""Schedules by hand, and the entropy gate over lists of medians."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from token_tables import table

from selfdistill.errors import ConfigError
from selfdistill.losses import LossSpec, TokenTable, weigh_tokens
from selfdistill.losses.schedules import Constant, EntropyGate, Linear, Memory, Schedule, Trapezoid


def test_constant() -> None:
    assert [Constant(0.5).at(step) for step in (0, 7, 10**6)] == [0.5, 0.5, 0.5]


def test_a_teacher_is_read_where_it_has_strength_and_wherever_a_gate_reads_it() -> None:
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
    with pytest.raises(ConfigError, match=r"must be a number, 0 or more"):
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
    with pytest.raises(ConfigError, match=rf"(?s)^{name} must be a whole number, [01] or more.*generation batches"):
        make()


def run(gate: EntropyGate, passes: Sequence[float | None], memory: Memory) -> tuple[list[bool], Memory]:
    states = []
    for reading in passes:
        is_open, memory = gate.decide(reading, memory)
        states.append(is_open)
    return states, memory


def test_a_schmitt_trigger_by_hand() -> None:
    """Warm-up over 1.0, 1.2, 0.8: the reference is 1.0, so it closes below 0.93 and opens from 1.0."""
    passes = [1.0, 1.2, 0.8, 0.95, 0.93, 0.92, 0.95, 0.999, 1.0, 0.94, 0.5]
    states, memory = run(EntropyGate(0.93, warmup=3), passes, {})
    assert states == [False] * 3 + [True, True, False, False, False, True, True, False]
    assert memory["gate_reference"] == pytest.approx(1.0)


def test_after_the_warm_up_a_low_reading_still_passes_or_not_by_the_lower_threshold() -> None:
    assert run(EntropyGate(0.5, warmup=1), [2.0, 1.1], {})[0] == [False, True]
    assert run(EntropyGate(0.5, warmup=1), [2.0, 0.9, 1.1], {})[0] == [False, False, False]


def test_without_hysteresis_it_is_one_threshold() -> None:
    assert run(EntropyGate(1.0, warmup=1), [1.0, 1.0, 0.99, 1.0], {})[0] == [False, True, False, True]


def test_a_batch_without_a_teacher_changes_nothing() -> None:
    gate = EntropyGate(warmup=2)
    with_gaps, remembered = run(gate, [None, 1.0, None, 1.0, None, 0.5, None, 0.95, 1.0], {})
    plain, same = run(gate, [1.0, 1.0, 0.5, 0.95, 1.0], {})
    assert [with_gaps[i] for i in (1, 3, 5, 7, 8)] == plain == [False, False, False, False, True]
    assert [with_gaps[i] for i in (0, 2, 4, 6)] == [False, False, True, False]
    assert remembered == same


@pytest.mark.parametrize("cut", range(8))
def test_memory_survives_json_at_any_batch(cut: int) -> None:
    gate, passes = EntropyGate(warmup=3), [1.0, 1.3, 0.7, 0.95, 0.9, 0.97, 1.0, 0.99]
    first, memory = run(gate, passes[:cut], {})
    rest, _ = run(gate, passes[cut:], json.loads(json.dumps(memory)))
    assert first + rest == run(gate, passes, {})[0]


def test_memory_is_not_changed_in_place_and_keeps_what_is_not_its_own() -> None:
    memory = {"other": 3.0}
    _, after = EntropyGate().decide(1.0, memory)
    assert memory == {"other": 3.0}
    assert after == {"other": 3.0, "gate_seen": 1.0, "gate_reference": 1.0, "gate_open": 0.0}


def gate_reading(rows: TokenTable) -> float | None:
    return weigh_tokens(LossSpec(gate=EntropyGate()), rows, 0, {}).numbers.get("gate_reading")


def test_the_reading_is_a_median_over_distilled_tokens_that_a_teacher_read() -> None:
    """Of 9, 1, 3, 2, nan, 9 the first is of an answer without credit, the last of a tool: the median of 1, 3, 2."""
    rows = table([1, 5], distil=[0, 1], teacher_entropy=[9, 1, 3, 2, math.nan, 9], counted=[True] * 5 + [False])
    assert gate_reading(rows) == 2.0
    assert gate_reading(table([2])) is None
    assert gate_reading(table([])) is None


def test_the_reading_takes_half_precision() -> None:
    assert gate_reading(table([3], teacher_entropy=[4.0, 0.5, 1.5], dtype=torch.bfloat16)) == 1.5


@pytest.mark.parametrize("off", [0.0, 1.01, -0.5, math.nan])
def test_thresholds_out_of_range_are_refused(off: float) -> None:
    with pytest.raises(ConfigError, match=r"(?s)^off must be a number above 0, up to 1.*try 0\.93"):
        EntropyGate(off=off)


def test_a_gate_that_never_warms_up_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)^warmup must be a whole number, 1 or more.*try 5"):
        EntropyGate(warmup=0)
