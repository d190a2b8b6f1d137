from pathlib import Path

import pytest
from view_runs import make_run

from selfdistill.errors import RunError
from selfdistill.view.groups import grouped
from selfdistill.view.tables import Table, comparison, completions_to_reach, duration


def cells(table: Table, row: str) -> list[str]:
    return next(list(line[1:]) for line in table.rows if line[0] == row)


def test_comparison_says_what_was_gained_and_what_it_cost(tmp_path: Path):
    sdpo = make_run(tmp_path / "a", "sdpo", [2, 55, 80, 96], [100, 99, 98, 97])
    grpo = make_run(tmp_path / "b", "grpo", [2, 10, 20, 30], [100, 90, 80, 65])
    table = comparison([sdpo, grpo])
    assert table.header == ("", "SDPO", "GRPO")
    assert cells(table, "new verbs: before") == ["0.020 (0.01–0.07)", "0.020 (0.01–0.07)"]
    assert cells(table, "new verbs: after") == ["0.960 (0.90–0.98)", "0.300 (0.22–0.40)"]
    assert cells(table, "tasks solved") == ["15 of 16", "5 of 16"]
    assert cells(table, "completions to reach 0.50") == ["128", "not reached"]
    assert cells(table, "completions to reach 0.95") == ["384", "not reached"]
    assert cells(table, "plain English: after") == ["1.000 (0.96–1.00)"] * 2
    assert cells(table, "known verbs: after")[1].startswith("0.650")
    assert cells(table, "completions") == ["384", "384"]
    assert cells(table, "wall time") == ["1:30", "1:30"]
    assert "n = 100" in table.note


def test_seeds_of_one_method_share_a_column(tmp_path: Path):
    runs = [
        make_run(tmp_path / str(seed), "sdpo", [0, final], [100, 99], seed) for seed, final in enumerate((70, 80, 90))
    ]
    table = comparison(runs)
    assert table.header == ("", "SDPO")
    # mean 0.8, deviation 0.1, t(2) = 4.303: 0.8 ± 0.248, of which a share can reach 1
    assert cells(table, "new verbs: after") == ["0.800 (0.55–1.00)"]
    assert cells(table, "completions to reach 0.75") == ["128 (2 of 3 seeds)"]
    assert "3 seeds" in table.note


def test_rehearsal_is_a_method_of_its_own_in_a_table(tmp_path: Path):
    bare = make_run(tmp_path / "a", "sdpo", [0], [100])
    replayed = make_run(tmp_path / "b", "sdpo", [0], [100], replay={"per_step": 32})
    assert [group.label for group in grouped([bare, replayed])] == ["SDPO", "SDPO + replay"]


def test_a_run_without_evaluations_has_a_table(tmp_path: Path):
    table = comparison([make_run(tmp_path / "a", "sdpo", [], [])])
    assert cells(table, "completions") == ["0"]
    assert cells(table, "tasks solved") == ["–"]


def test_completions_to_reach_is_the_first_time(tmp_path: Path):
    run = make_run(tmp_path / "a", "sdpo", [0, 60, 40, 60], [100] * 4)
    assert completions_to_reach(run, 0.5) == 128
    assert completions_to_reach(run, 0.61) is None


def test_markdown():
    table = Table(("", "SDPO"), (("after", "0.9"),), "a note")
    assert table.markdown() == "|  | SDPO |\n| --- | ---: |\n| after | 0.9 |\n\na note\n"


def test_duration():
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3600)] == ["0:00", "1:00", "1:01", "1:00:00"]


def test_a_search_is_no_run_of_training(tmp_path: Path):
    runs = [make_run(tmp_path / "a", "sdpo", [5], [99]), make_run(tmp_path / "b", "sdpo", [5], [99], solve={})]
    with pytest.raises(RunError, match=r"search for solutions[\s\S]*/b[\s\S]*compare --arm"):
        comparison(runs)
