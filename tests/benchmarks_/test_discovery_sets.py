"""The sets of the discovery benchmark follow from its stated rule and from nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from selfdistill.runs.discovery import Sequential, pass_at_k

SAMPLES = 2176


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks.discovery")


def test_sets_are_the_first_that_the_rule_admits(benchmark: ModuleType) -> None:
    """With 2,176 samples one success is 64 / 2176 = 0.029 < 0.03, two are twice that."""
    assert pass_at_k(SAMPLES, 1, 64) == pytest.approx(64 / 2176)
    rows = [
        {"task": "d", "place": 3, "samples": SAMPLES, "right": 1, "informed": 48, "informed_right": 0},
        {"task": "c", "place": 2, "samples": SAMPLES, "right": 0, "informed": 48, "informed_right": 1},
        {"task": "b", "place": 1, "samples": 256, "right": 2},
        {"task": "a", "place": 0, "samples": SAMPLES, "right": 0, "informed": 48, "informed_right": 0},
        {"task": "e", "place": 4, "samples": SAMPLES, "right": 0, "informed": 20, "informed_right": 0},
    ]
    found = benchmark.choose_sets(rows, SAMPLES, 20)
    assert found == {"very hard": ["a", "c", "d", "e"], "teacher blind": ["a", "d"]}
    assert benchmark.choose_sets(rows, SAMPLES, 1) == {"very hard": ["a"], "teacher blind": ["a"]}
    programs = [
        {"task": name, "place": place, "right": right}
        for place, (name, right) in enumerate({"x": 1, "y": 9, "z": 90}.items())
    ]
    assert benchmark.choose_sets(programs, 640, 20, sets=("hard", "very hard")) == {"hard": ["x"], "very hard": []}
    assert pass_at_k(640, 1, 64) == pytest.approx(0.1)


def test_arms_are_compared_with_the_form_of_multi_turn_that_needs_the_fewest_attempts(benchmark: ModuleType) -> None:
    def arm(label: str, *times: int) -> Any:
        return benchmark.ArmResults(label, [Sequential((time,), 64) for time in times], [], 64)

    arms = [arm("multi-turn", 4, 4), arm("multi-turn, random", 2, 4), arm("read-first", 4, 8)]
    assert "those of multi-turn, random (" in benchmark.against_reading(arms, 64)
    assert "read-first 2.00 (2.00–2.00)" in benchmark.against_reading(arms, 64)


def test_every_way_is_a_strategy_with_settings_it_has(benchmark: ModuleType) -> None:
    for window, lora in ((benchmark.VERBS_WINDOW, ""), (0, benchmark.PROGRAMS_LORA), (512, benchmark.PROGRAMS_LORA)):
        arms = tuple(benchmark.parse_arm(arm) for arm in benchmark.arms_for(window, lora))
        strategy_comparison = benchmark.StrategyComparison(arms, ("verb",))
        configs = [strategy_comparison.config(arm) for arm in strategy_comparison.arms]
        names = {config.strategy.name for config in configs}
        assert names == {"best-of-k", "hybrid", "multi-turn", "read-first", "self-distill"}
        reading = [config.strategy for config in configs if config.strategy.name in ("multi-turn", "read-first")]
        assert {strategy.window for strategy in reading} == {window or 32_000}
        assert {config.run.lora is not None for config in configs if config.strategy.learns} == {bool(lora)}


def test_a_line_that_a_kill_cut_short_is_measured_again(benchmark: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    file.write_text('{"task": "a", "right": 0}\n{"task": "b", "ri')
    assert benchmark.rows_of(file) == [{"task": "a", "right": 0}]
    assert benchmark.rows_of(tmp_path / "nothing") == []
