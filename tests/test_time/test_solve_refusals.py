"""What a search is made of, what it refuses, and where it may go."""

from __future__ import annotations

import json

import pytest

from selfdistill.errors import ConfigError, DataError, RunError
from selfdistill.runs.solving import SolveResult
from selfdistill.test_time.config import config_from, solve_settings
from selfdistill.test_time.solve import solve


def test_settings_come_back_as_they_were(search_of) -> None:
    config = search_of("hybrid", "rare", 30, limits={"unit": "tokens"}, settings={"strategy.share": 0.5})
    assert config_from(json.loads(json.dumps(solve_settings(config)))) == config
    assert config.run.optimiser.warmup_steps == 0
    assert search_of("grpo", "rare").run.method.name == "grpo"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"budget": 0}, ConfigError, "budget must be a whole number, 1 or more"),
        ({"limits": {"unit": "hours"}}, ConfigError, "one of attempts, tokens, seconds"),
        ({"tasks": ["q9"]}, DataError, r"there is no such task[\s\S]*did you mean"),
        ({"tasks": ["nowhere.jsonl"]}, DataError, "nowhere.jsonl"),
        ({"settings": {"steps": 3}}, ConfigError, r"does not read this setting[\s\S]*--budget"),
        ({"settings": {"evaluation.every": 3}}, ConfigError, "does not read this setting"),
        ({"settings": {"optimiser.schedule": "linear"}}, ConfigError, "no last step"),
        ({"settings": {"strategy.bacth": 3}}, ConfigError, "did you mean 'batch'"),
        ({"settings": {"method": "rltf_sd"}}, ConfigError, "samples more than attempts"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    search_of, tmp_path, changes, error, said
) -> None:
    with pytest.raises(error, match=said):
        solve(search_of("self-distill", "rare", **changes), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_question_that_does_not_fit_is_refused_and_others_are_asked(search_of, tmp_path, recorder) -> None:
    rows = [{"prompt": "What? " * 200, "id": "long"}, {"prompt": "What is seven plus five?", "id": "short"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data": str(file)}
    with pytest.raises(DataError, match="no question fits the model"):
        solve(search_of("best-of-k", "rare", tasks=["long"], settings=data), recorder, out=tmp_path / "a")
    found = solve(search_of("best-of-k", "rare", tasks=[str(file)]), recorder, out=tmp_path / "b")
    assert [result.task for result in found] == ["short"]
    assert any("1 of 2 tasks are skipped" in note for note in recorder.notes)


def test_where_a_search_cannot_go_is_said_with_what_can_be_done(search_of, tmp_path) -> None:
    file, folder, fresh = (tmp_path / name for name in ("file", "folder", "fresh"))
    file.write_text("mine")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    fresh.mkdir()
    (fresh / ".probe").write_text("left by a kill")
    config = search_of("best-of-k", "hints", 8)
    with pytest.raises(RunError, match="cannot be written to"):
        solve(config, out=file)
    with pytest.raises(RunError, match="already in use") as error:
        solve(config, out=folder)
    assert "--resume" not in error.value.do, "there is nothing to go on with"
    assert solve(config, out=fresh)[0].attempts == 8


def test_a_directory_in_use_is_not_overwritten_and_a_resume_keeps_its_settings(search_of, tmp_path) -> None:
    solve(search_of("best-of-k", "hints", 8), out=tmp_path)
    with pytest.raises(RunError, match=r"already in use[\s\S]*selfdistill solve --resume"):
        solve(search_of("best-of-k", "hints", 8), out=tmp_path)
    with pytest.raises(RunError, match=r"cannot change its settings[\s\S]*solve.budget"):
        solve(search_of("best-of-k", "hints", 9), out=tmp_path, resume=True)
    older = json.loads((tmp_path / "config.json").read_text())
    del older["settings"]["solve"]["exhaust_budget"], older["settings"]["sampling"]["top_p"]
    (tmp_path / "config.json").write_text(json.dumps(older))  # of a version without these settings
    (again,) = solve(search_of("best-of-k", "hints", 8), out=tmp_path, resume=True)
    assert isinstance(again, SolveResult)
    assert again.attempts == 8
