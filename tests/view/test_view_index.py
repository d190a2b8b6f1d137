"""The index of rollouts: one row is read without the others, while the file grows, after a kill, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_runs import add_step, make_old, make_run

from selfdistill.runs import RunDir
from selfdistill.runs.store import ROLLOUTS
from selfdistill.view.site import index as module
from selfdistill.view.site.index import NAME, RowIndex
from selfdistill.view.site.table import in_short


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", finished=False)


def fresh(run: Path) -> RowIndex:
    index = RowIndex(run / ROLLOUTS)
    index.refresh()
    return index


def uids(index: RowIndex, step: int) -> list[str]:
    return [uid for _, uid in index.heads(step)]


def test_rows_are_found_by_step_and_uid(run: Path) -> None:
    index = fresh(run)
    assert index.counts == {"rows": 24, "void": 0, "unreadable": 0, "torn": False, "bytes": index.size}
    assert index.steps == [1, 2, 3]
    assert uids(index, 2) == [f"2-{group}-{number}" for group in range(2) for number in range(4)]
    place = {uid: place for place, uid in index.heads(3)}["3-1-2"]
    assert next(index.read([place]))[1].feedback == "Expected 1, got 2."
    places = [place for own in index.by_step().values() for place in own]
    assert [row.uid for _, row in index.read(places, "Got 3")] == [
        "1-0-3",
        "1-1-3",
        "2-0-3",
        "2-1-3",
        "3-0-3",
        "3-1-3",
    ]


def test_rows_in_brief_have_the_lines_of_whole_ones(run: Path) -> None:
    index, file = fresh(run), run / ROLLOUTS
    with file.open("ab") as out:  # of a later version, of a reward that is no number, and not distilled
        line = file.read_bytes().splitlines()[1]
        out.write(line.replace(b'"stage":', b'"colour":"red","stage":') + b"\n")
        out.write(line.replace(b'"reward":0.0', b'"reward":"NaN"') + b"\n")
        out.write(line.partition(b'"log_ratio":')[0] + b'"log_ratio":[],"event":"rollout"}\n')
    index.refresh()
    places = [place for own in index.by_step().values() for place in own]
    assert len(places) == 27
    whole, brief = ([row for _, row in index.read(places, brief=brief)] for brief in (False, True))
    assert repr(in_short(brief)) == repr(in_short(whole))
    assert brief[0].token_ids != whole[0].token_ids, "read in the fast way"


def test_a_growing_file_is_read_on_and_a_torn_line_waits_for_its_end(run: Path) -> None:
    index, file = fresh(run), run / ROLLOUTS
    line = file.read_bytes().splitlines(keepends=True)[0].replace(b'"step":1,"uid":"1-', b'"step":4,"uid":"4-')
    with file.open("ab") as out:
        out.write(line[:100])
    index.refresh()
    assert index.counts["torn"]
    assert index.steps == [1, 2, 3]
    with file.open("ab") as out:
        out.write(line[100:])
    index.refresh()
    assert not index.counts["torn"]
    assert uids(index, 4) == ["4-0-0"]


def test_a_resume_takes_rows_back(run: Path) -> None:
    with (run / ROLLOUTS).open("ab") as out:
        out.write(b'{"step":3,"uid":"3-0-0","task"')  # a kill
    index = fresh(run)
    with RunDir.resume(run, 1) as again:
        add_step(again, 2)
    index.refresh()
    assert index.counts | {"bytes": 0} == {"rows": 16, "void": 16, "unreadable": 1, "torn": False, "bytes": 0}
    assert len(uids(index, 2)) == 8
    assert index.steps == [1, 2]


def test_the_index_is_kept_beside_a_long_file_and_made_anew_for_another_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(run)
    assert not (run / NAME).exists(), "a short file needs none"
    monkeypatch.setattr(module, "KEPT_FROM", 1)
    before = fresh(run).counts
    assert (run / NAME).exists()
    monkeypatch.setattr(RowIndex, "_scan", lambda self: pytest.fail("the kept index fits"))
    assert fresh(run).counts == before
    monkeypatch.undo()
    rows = (run / ROLLOUTS).read_bytes().splitlines(keepends=True)
    (run / ROLLOUTS).write_bytes(b"".join(rows[8:] + rows[:8]))
    assert uids(fresh(run), 1) == uids(fresh(run), 1) != []
    assert fresh(run).heads(1)[0][0] == 16, "the places are those of the new file"
    (run / NAME).write_bytes(b"no index")
    assert fresh(run).counts["rows"] == 24


def test_rows_of_an_earlier_version_have_todays_names(tmp_path: Path) -> None:
    index = fresh(make_old(tmp_path / "old"))
    _, row = next(index.read(index.by_step()[1]))
    assert row.log_ratio == (0.5, -1.5)
    assert row.drop == "zero_advantage"


def test_a_run_without_rollouts_has_no_rows(tmp_path: Path) -> None:
    assert fresh(tmp_path).counts["rows"] == 0
