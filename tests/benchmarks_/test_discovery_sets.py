"""The sets of the discovery benchmark follow from its stated rule and from nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from selfdistill.runs.discovery import pass_at_k

SAMPLES = 2176


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "discovery.py"
    spec = importlib.util.spec_from_file_location("discovery_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_every_way_is_a_strategy_with_settings_it_has(benchmark: ModuleType) -> None:
    strategy_comparison = benchmark.StrategyComparison(
        tuple(benchmark.parse_arm(arm) for arm in benchmark.ARMS), ("verb",)
    )
    names = [strategy_comparison.config(arm).strategy.name for arm in strategy_comparison.arms]
    assert sorted(set(names)) == ["best-of-k", "hybrid", "multi-turn", "self-distill"]


def test_a_line_that_a_kill_cut_short_is_measured_again(benchmark: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    file.write_text('{"task": "a", "right": 0}\n{"task": "b", "ri')
    assert benchmark.rows_of(file) == [{"task": "a", "right": 0}]
    assert benchmark.rows_of(tmp_path / "nothing") == []
