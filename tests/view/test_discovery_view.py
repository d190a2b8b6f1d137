"""Tables and curves of discovery from results written out by hand."""

from __future__ import annotations

from pathlib import Path

from selfdistill.runs.discovery import Independent, Sequential
from selfdistill.runs.solving import SolveResult
from selfdistill.view.discovery import arm_of, discovery_figure, levels_table, means_table

BUDGET = 32


def result(task: str, seed: int, at: int | None, *, batch: int = 4, right: int = 0) -> SolveResult:
    return SolveResult(
        task=task, strategy="s", model="m", env="w", seed=seed, budget=BUDGET, unit="attempts", attempts=BUDGET,
        rounds=8, tokens=9, wall_s=1.0, solved_at=at, solved_round=None if at is None else -(-at // batch), right=right,
    )  # fmt: skip


def arms():
    slow = [result("b", 0, None), result("b", 1, 32), result("a", 0, 16), result("a", 1, 16)]
    fast = [result("a", 0, 4), result("a", 1, 8), result("b", 0, 8), result("b", 1, 8)]
    return [arm_of("slow", slow, batch=4), arm_of("fast", fast, batch=4)]


def test_results_become_one_value_a_task_in_one_order_for_all() -> None:
    slow, fast = arms()
    assert slow.by_attempts == [Sequential((16, 16), 32), Sequential((None, 32), 32)]
    assert fast.by_rounds == [Sequential((1, 2), 8), Sequential((2, 2), 8)]


def test_independent_attempts_of_all_seeds_are_pooled() -> None:
    found = arm_of("k", [result("a", 0, 5, right=1), result("a", 1, None)], batch=16, independent=True)
    assert found.by_attempts == [Independent(64, 1)]
    assert found.by_rounds == [Independent(64, 1, per=16)]
    assert found.rounds == 2, "of the budget of one seed"


def test_the_table_of_means() -> None:
    """Slow: (16 + 16 + 32 + 32) / 4 = 24; fast: (4 + 8 + 8 + 8) / 4 = 7. Two tasks: even 0 and 1 are not certain."""
    lines = means_table(arms(), BUDGET).splitlines()
    assert "discovery@2 | discovery@8 | discovery@32" in lines[0]
    assert "| slow | 0.00 (0.00–0.66) | 0.00 (0.00–0.66) | 0.75 (0.20–0.97) | 24 (6–31) | 3.4× (" in lines[2]
    assert "| 3.36× (" in lines[2], "paired: √(16 / √32 · 32 / 8)"
    assert lines[2].endswith("| 6.0 |"), "rounds of four: (4 + 4 + 8 + 8) / 4"
    assert "| fast | 0.00 (0.00–0.66) | 1.00 (0.34–1.00) | 1.00 (0.34–1.00) | 7 (" in lines[3]


def test_the_table_of_levels_tells_all_of_them() -> None:
    lines = levels_table(arms(), BUDGET).splitlines()
    assert lines[0].count("%") == 10
    assert lines[2].split(" | ")[1:6] == ["16 (4.0×)"] * 2 + ["16 (2.0×)"] * 3
    assert lines[2].split(" | ")[6:] == ["32 (4.0×)", "32 (4.0×)", "–", "–", "– |"]
    assert lines[3].split(" | ")[1:4] == ["4", "4", "8"]


def test_the_figure_is_written(tmp_path: Path) -> None:
    pooled = arm_of("k", [result(task, 0, None, right=1) for task in "ab"], batch=16, independent=True)
    file = discovery_figure([pooled, *arms()], BUDGET, "two tasks", tmp_path / "curves.png")
    assert file.read_bytes()[:4] == b"\x89PNG"
