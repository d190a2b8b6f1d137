"""Strategy comparisons: what runs, what is not repeated, what may be added, what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import selfdistill.test_time.comparison as comparison_module
from selfdistill.errors import ConfigError, DataError, RunError
from selfdistill.runs.events import Callback
from selfdistill.test_time.comparison import (
    COMPARISON,
    Arm,
    StrategyComparison,
    parse_arm,
    read_strategy_comparison,
    results,
    run_comparison,
    run_search,
    searches,
    task_ids,
)

pytestmark = pytest.mark.usefixtures("searches_in_this_process")
ENVIRONMENTS = Path(__file__).with_name("solve_envs.py")


@pytest.fixture
def comparison_of(model_dir: Path):
    def build(*arms: str, env: str = "rare", **changes: Any) -> StrategyComparison:
        own = {"model": str(model_dir), "env": f"{ENVIRONMENTS}:{env}", "device": "cpu", "sampling.max_new_tokens": 8}
        base: dict[str, Any] = {"tasks": ("q0", "q1"), "seeds": 1, "budget": 8, "settings": tuple(own.items())}
        return StrategyComparison(tuple(parse_arm(arm) for arm in arms), **{**base, **changes})

    return build


def test_an_arm_is_a_strategy_with_settings_and_perhaps_a_label() -> None:
    assert parse_arm("hybrid") == Arm("hybrid", "hybrid")
    assert parse_arm("small: hybrid strategy.batch=4") == Arm("small", "hybrid", (("strategy.batch", 4),))
    assert parse_arm("multi-turn strategy.keep='random'").label == "multi-turn strategy.keep='random'"
    for bad, message in (
        ("a: ", "names a strategy"),
        ("x 'y", "cannot be read"),
        ("hybrid 4", "key=value"),
        ("hybrid seed=7", "seeds are those"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_arm(bad)


def test_every_arm_seed_and_task_is_searched_under_one_budget(comparison_of, tmp_path: Path, recorder) -> None:
    """Independent attempts use the whole budget, which their estimate needs; the others stop when they are right."""
    comparison = comparison_of("best-of-k", "turns: multi-turn strategy.batch=4", budget=16)
    whole, found = run_comparison(comparison, tmp_path, recorder)
    assert whole == comparison == read_strategy_comparison(tmp_path)
    assert {label: [(r.seed, r.task) for r in rs] for label, rs in found.items()} == {
        label: [(0, "q0"), (0, "q1")] for label in ("best-of-k", "turns")
    }
    assert all(r.attempts == 16 for r in found["best-of-k"])
    assert all(r.attempts == 16 or r.solved for r in found["turns"])
    assert any(r.right > 0 for r in found["best-of-k"]), "one in twelve is right, and there are 32 attempts"


def test_what_is_finished_is_not_repeated_and_arms_and_seeds_may_be_added(
    comparison_of, tmp_path: Path, recorder
) -> None:
    _, before = run_comparison(comparison_of("best-of-k"), tmp_path, recorder)
    jobs: list[str] = []
    whole, after = run_comparison(comparison_of("multi-turn", seeds=2), tmp_path, lambda event: jobs.append(event.run))
    assert [arm.label for arm in whole.arms] == ["best-of-k", "multi-turn"]
    assert after["best-of-k"][:2] == before["best-of-k"], "wall time and all"
    assert [result.seed for result in after["best-of-k"]] == [0, 0, 1, 1]
    assert list(dict.fromkeys(jobs)) == ["01-multi-turn-seed0-000", "00-best-of-k-seed1-000", "01-multi-turn-seed1-000"]
    assert results(whole, tmp_path) == after
    run_comparison(whole, tmp_path, lambda event: pytest.fail(f"{event.run} runs again"))
    added = replace(whole, arms=(parse_arm("multi-turn"),))
    assert run_comparison(added, tmp_path, lambda event: pytest.fail(f"{event.run} runs again"))[0] == whole


def test_a_folder_holds_one_comparison(comparison_of, tmp_path: Path, recorder) -> None:
    run_comparison(comparison_of("best-of-k"), tmp_path, recorder)
    with pytest.raises(RunError, match="other tasks, budget"):
        run_comparison(comparison_of("best-of-k", tasks=("q2",), budget=4), tmp_path, recorder)
    with pytest.raises(RunError, match="had other settings"):
        run_comparison(comparison_of("best-of-k: multi-turn"), tmp_path, recorder)
    with pytest.raises(RunError, match="no strategy comparison here"):
        read_strategy_comparison(tmp_path / "elsewhere")
    assert read_strategy_comparison(tmp_path) == comparison_of("best-of-k")
    for text in ('"x"', "[1]", "{}", "{", '{"arms": [1], "tasks": [], "settings": []}'):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(RunError, match="no strategy comparison here"):
            read_strategy_comparison(tmp_path)


def test_tasks_are_shared_out_in_handfuls_and_folders_do_not_collide(comparison_of, tmp_path: Path) -> None:
    comparison = comparison_of("a b: hybrid", "a-b: hybrid", tasks=tuple(f"t{n}" for n in range(43)))
    paths = [search.path for search in searches(comparison, tmp_path)]
    assert len(set(paths)) == len(paths) == 6
    assert [len(search.config.tasks) for search in searches(comparison, tmp_path)] == [20, 20, 3] * 2


def test_which_tasks_are_meant(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    row = '{"id": "%s", "prompt": "Give one.", "fn_name": "one", "tests": [{"input": [], "output": 1}]}\n'
    file.write_text("".join(row % name for name in ("one", "two")))
    assert task_ids((str(file),), ()) == ((("data", str(file)),), ("one", "two"))
    assert task_ids((str(file), "two"), ())[1] == ("two",)
    assert task_ids((str(file), "two", "one", "two"), ())[1] == ("two", "one"), "each once"
    with pytest.raises(DataError, match="did you mean 'two'"):
        task_ids((str(file), "tow"), ())
    with pytest.raises(ConfigError, match="from one file"):
        task_ids((str(file), "other.jsonl"), ())
    with pytest.raises(ConfigError, match="from one file"):
        task_ids((str(file),), (("data", "other.jsonl"),))
    once = (("data", str(file)),)
    assert task_ids((str(file),), once) == task_ids((), once) == (once, ("one", "two"))


def make_here(comparison: StrategyComparison, out: Path, callback: Callback) -> None:
    """All searches in this process."""
    out.mkdir()
    (out / COMPARISON).write_text(json.dumps(asdict(comparison)))
    for search in searches(comparison, out):
        run_search(search.path.name, out, callback)


@pytest.mark.parametrize("handful", [1, 20])
def test_a_question_that_is_too_long_is_skipped_by_all_and_the_comparison_ends(
    comparison_of, tmp_path: Path, recorder, monkeypatch: pytest.MonkeyPatch, handful: int
) -> None:
    """Of two tasks, in one search or in two, one can be read by the second arm alone."""
    monkeypatch.setattr(comparison_module, "TASKS_A_JOB", handful)
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "What? " * 9, "id": "long"}, {"prompt": "What?", "id": "short"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = comparison_of("near: best-of-k context.max_prompt_tokens=30", "far: best-of-k", tasks=("long", "short"))
    comparison = replace(made, settings=(*made.settings, ("data", str(file))))
    out = tmp_path / "comparison"
    make_here(comparison, out, recorder)
    assert [result.task for result in results(comparison, out)["far"]] == ["long", "short"]
    _, found = run_comparison(comparison, out, lambda event: pytest.fail(f"{event.run} is made again"))
    assert {label: [result.task for result in own] for label, own in found.items()} == {
        "near": ["short"],
        "far": ["short"],
    }
    alone, other = replace(comparison, tasks=("long",)), tmp_path / "other"
    make_here(alone, other, recorder)
    with pytest.raises(DataError, match="no question fits the model of every arm"):
        run_comparison(alone, other, recorder)


def test_every_seed_must_search_the_same_tasks() -> None:
    with pytest.raises(ConfigError, match=r"every seed would search other tasks[\s\S]*env\.draw=0"):
        task_ids((), (("env", "verbs"), ("env.verbs", 2)))
    _, ids = task_ids((), (("env", "verbs"), ("env.verbs", 2), ("env.draw", 3)))
    assert len(ids) == 2


def test_a_contest_needs_distinct_labels_and_a_seed(comparison_of) -> None:
    with pytest.raises(ConfigError, match="two arms have one label"):
        comparison_of("hybrid", "hybrid")
    with pytest.raises(ConfigError, match="seeds must be a whole number from 1 to 1000"):
        replace(comparison_of("hybrid"), seeds=0)
