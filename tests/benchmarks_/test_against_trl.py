"""The plain parts of the comparison with TRL; neither TRL nor a model is needed."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are run from here, and are no part of the package

from benchmarks.against_trl import board  # noqa: E402
from benchmarks.against_trl.board import Board, Entry  # noqa: E402
from benchmarks.against_trl.child import (  # noqa: E402
    TRL_VERSION,
    Skipped,
    failure,
    memory_refusal,
    run_case,
    trl_refusal,
)
from benchmarks.against_trl.ratios import (  # noqa: E402
    Measurement,
    Sheet,
    agree,
    common_accuracy,
    goal,
    ratio,
    seconds_to,
)
from benchmarks.against_trl.work import (  # noqa: E402
    FIRST_ID,
    SIZES,
    Grouped,
    Ragged,
    padded_work,
    ragged_lengths,
    silent_ranks,
    update_flops,
    work_of,
    write_model,
)
from selfdistill.models.load import load_policy  # noqa: E402


@pytest.mark.parametrize(("count", "longest", "share"), [(20, 192, 0.3), (64, 8192, 0.3), (10, 100, 0.8), (8, 64, 1.0)])
def test_ragged_lengths_have_the_longest_and_the_mean_that_were_asked_for(
    count: int, longest: int, share: float
) -> None:
    lengths = ragged_lengths(count, longest, share)
    assert len(lengths) == count
    assert lengths == sorted(lengths)
    assert (min(lengths) >= 1, max(lengths)) == (True, longest)
    assert statistics.fmean(lengths) == pytest.approx(share * longest, abs=1.0)


def test_a_mean_below_one_over_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be"):
        ragged_lengths(4, 100, 0.2)


def test_rollouts_without_signal_are_as_many_as_asked_and_spread_over_the_lengths() -> None:
    quiet = silent_ranks(20, 0.35)
    assert len(quiet) == 7
    lengths = ragged_lengths(20, 192, 0.3)
    assert sum(lengths[rank] for rank in quiet) / sum(lengths) == pytest.approx(0.35, abs=0.05)
    assert silent_ranks(20, 0.0) == set()
    assert silent_ranks(3, 1.0) == {0, 1, 2}


def test_rollouts_follow_from_the_seed_alone_and_hold_no_special_token() -> None:
    ragged = Ragged(count=10, longest=40)
    rows = ragged.rows(1000)
    assert rows == ragged.rows(1000)
    assert rows != Ragged(count=10, longest=40, seed=1).rows(1000)
    assert all(FIRST_ID <= token < 1000 for row in rows for token in (*row.prompt, *row.completion))
    assert all(row.teacher is None or row.teacher[-len(row.prompt) :] == row.prompt for row in rows)


def test_work_counts_tokens_with_a_signal_and_the_rectangle_counts_all() -> None:
    rows = Ragged(count=20, longest=192).rows(1000)
    least, padded = work_of(rows), padded_work(rows)
    assert (least["rollouts"], least["with signal"]) == (20, 13)
    assert padded["answers"] == 20 * 192
    assert least["answers"] < 0.25 * padded["answers"], "0.65 · 0.3 of it, to the rounding"


def test_flops_of_an_update_are_six_and_two_times_the_parameters() -> None:
    size = SIZES["tiny"]
    assert size.body == 2 * (64 * 16 * 2 * 6 + 3 * 64 * 192)
    tokens = {"student": 10, "teacher": 20, "answers": 0}
    assert update_flops(size, tokens) == (6 * 10 + 2 * 20) * size.body
    assert update_flops(size, tokens | {"answers": 1}) - update_flops(size, tokens) == 8 * 64 * 151_936


def test_a_ratio_is_of_neighbours_and_says_how_far_it_spreads() -> None:
    found = ratio([1.0, 2.0, 9.0], [2.0, 8.0, 9.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (0.5, 0.25, 1.0, 3)
    assert str(found) == "0.500 (0.250–1.000)"
    assert str(ratio([1.0], [4.0])) == "0.250"
    assert ratio([], []) is None
    assert ratio([1.0], [0.0]) is None


def test_goals_are_said_and_not_asserted() -> None:
    assert goal("time", ratio([1.0], [4.0]), 0.3).endswith("measured 0.250: reached")
    assert goal("time", ratio([2.0], [4.0]), 0.3).endswith("measured 0.500: NOT reached")
    assert goal("time", None, 0.3).endswith("not measured")


def test_numbers_agree_within_a_share_and_the_first_that_does_not_is_named() -> None:
    assert agree({"loss": 1.0001, "norm": 2.0}, {"loss": 1.0, "norm": 2.0}, 1e-3) == ""
    assert agree({"loss": 1.0, "norm": 2.1}, {"loss": 1.0, "norm": 2.0}, 1e-3).startswith("norm differs")
    assert agree({"loss": math.nan}, {"loss": 1.0}, 1e-3).startswith("loss differs")


def test_a_case_that_was_skipped_shows_its_reason_where_the_time_would_stand() -> None:
    measured = Measurement()
    measured.add(Skipped("does not fit"))
    assert measured.cells == ["does not fit", "–"]
    done = Measurement()
    done.add({"seconds": 2.0, "peak": 5e8, "value": None})
    assert done.cells == ["2.00 s", "0.500 GB"]


def test_a_case_is_not_begun_when_it_would_not_fit() -> None:
    assert memory_refusal(8e9, 10e9) == ""
    assert memory_refusal(25e9, 22e9) == "does not fit: needs about 25 GB of 22 GB"


def test_a_worker_that_died_says_why() -> None:
    assert failure(-9, "") == "does not fit: out of memory"
    assert failure(1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory") == "does not fit: out of memory"
    assert failure(1, "Traceback\nValueError: nonsense") == "failed (1): ValueError: nonsense"


def test_a_case_may_be_larger_than_an_argument_of_a_command() -> None:
    """64 prompts as token ids are."""
    found = run_case(sys.executable, "sampling", {"kind": "none", "prompts": [[123_456] * 100_000]}, 100.0)
    assert found == Skipped("failed (1): KeyError: 'none'")


def test_trl_that_is_missing_is_refused_with_the_line_that_installs_it(tmp_path: Path) -> None:
    for python in (None, str(tmp_path / "python"), sys.executable):
        refusal = trl_refusal(python)
        if python == sys.executable and not refusal:
            pytest.skip("this environment has the right TRL")
        assert f"trl=={TRL_VERSION}" in refusal


def test_seconds_to_an_accuracy_are_of_the_mean_of_a_few_batches() -> None:
    curve = [(1.0, 0.9), (2.0, 0.0), (3.0, 0.3), (4.0, 0.6), (5.0, 0.9)]
    assert seconds_to(curve, 0.39) == 3.0
    assert seconds_to(curve, 0.5) == 5.0
    assert seconds_to(curve, 0.7) is None
    assert common_accuracy([curve, [(1.0, 0.3)] * 3]) == pytest.approx(0.3)
    assert common_accuracy([curve, [(1.0, 1.0)]]) == 0


def test_a_sheet_is_a_table_in_markdown() -> None:
    sheet = Sheet("Title", ("a", "b"), [["1", "2"]], ["a note"])
    assert sheet.markdown() == "## Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n- a note\n"


def test_a_model_is_loaded_with_its_chat_template_and_its_whole_head(tmp_path: Path) -> None:
    small = replace(SIZES["tiny"], hidden=16, intermediate=32, heads=1, kv_heads=1, head_dim=16, vocabulary=64)
    policy = load_policy(str(write_model(tmp_path / "model", small)))
    tokenizer = policy.tokenizer
    assert tokenizer("ab?")["input_ids"] == [6, 7, 42]
    assert policy.head().vocabulary == 64, "the whole head is computed with"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).startswith("<|user|>")


def test_answers_in_groups_share_their_question_and_every_other_group_its_context() -> None:
    rows = Grouped(longest=12, prompt=8, context=16).rows(1000)
    assert len(rows) == 8
    assert {len(row.prompt) for row in rows} == {8}
    assert all(row.teacher is not None and row.teacher[:8] == row.prompt and len(row.teacher) == 16 for row in rows)
    assert [len({row.teacher for row in group}) for group in (rows[:4], rows[4:])] == [1, 4]
    assert max(len(row.completion) for row in rows) == 12


def test_a_board_measures_what_is_missing_and_is_a_table_all_the_while(tmp_path: Path, monkeypatch) -> None:
    entries = [
        Entry("Rollouts", "64 rows", "this library", "sampling", {"n": 1}, flops=4.0),
        Entry("Rollouts", "64 rows", "generate", "sampling", {"n": 2}),
        Entry("Rollouts", "64 rows", "TRL", "peer", {"n": 3}, skipped="no TRL"),
    ]
    found = {1: {"seconds": 2.0, "peak": 10, "value": {"tokens": 100}}, 2: Skipped("not done in 5 s")}
    run = []

    def measured(python: str, module: str, case: dict[str, int], *rest: object) -> object:
        run.append(case["n"])
        return found[case["n"]]

    monkeypatch.setattr(board, "run_case", measured)
    first = Board(tmp_path, entries, peak_flops=8.0, say=lambda text: None)
    assert [row[2] for row in first.sheets()[0].rows] == ["not measured"] * 3
    first.measure(60, 5)
    found[2] = {"seconds": 3.0, "peak": 20, "value": {"tokens": 50}}
    again = Board(tmp_path, entries, peak_flops=8.0, say=lambda text: None)
    assert [row[2] for row in again.sheets()[0].rows] == ["2.00 s", "not measured", "not measured"]
    again.measure(60, 5)
    assert run == [1, 2, 2]
    rows = again.sheets()[0].rows
    assert rows[0][4:8] == ["50.0", "–", "–", "25.0%"]
    assert rows[1][4:7] == ["16.7", "0.333", "0.500"]
    assert rows[2][2:] == ["not measured", "–", "–", "–", "–", "–", "no TRL"]
    assert "16.7" in (tmp_path / "results.md").read_text()
