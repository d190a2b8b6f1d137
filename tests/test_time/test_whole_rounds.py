"""A round is made when its line is in metrics.jsonl: a kill between the two files of records loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest
from search_facts import facts

from selfdistill.runs import read_run, store
from selfdistill.test_time.config import SolveConfig, solve_config
from selfdistill.test_time.solve import solve

ENVIRONMENTS = Path(__file__).with_name("solve_envs.py")


class Killed(RuntimeError):
    """Stands for a kill: nothing is saved, nothing is closed."""


def kill_at(number: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies when a share of the `number`-th text is on the disk."""
    real, calls = store._write, [0]

    def write(file: IO[bytes], text: str, path: Path) -> None:
        calls[0] += 1
        if calls[0] == number:
            real(file, text[: int(share * len(text))], path)
            raise Killed
        real(file, text, path)

    monkeypatch.setattr(store, "_write", write)


@pytest.fixture
def config(model_dir: Path) -> SolveConfig:
    own = {"model": str(model_dir), "env": f"{ENVIRONMENTS}:hints", "device": "cpu", "sampling.max_new_tokens": 8}
    return solve_config("multi-turn", list(own.items()), tasks=["q0", "q1"], limits={"budget": 5})


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_kill_between_rollouts_and_metrics_loses_nothing_and_repeats_nothing(
    config: SolveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Two tasks of five rounds of one attempt, two texts a round. Killed at the second text of the third round of the
    second task, and again when the resume, which says a line to both files of both, has one to say."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    solve(config, out=whole)
    kill_at(12, share, monkeypatch)
    with pytest.raises(Killed):
        solve(config, out=cut)
    assert [len(read_run(path).steps) for path in sorted(cut.glob("0*"))] == [3, 2]
    monkeypatch.undo()
    kill_at(4, share, monkeypatch)
    with pytest.raises(Killed):
        solve(config, out=cut, resume=True)
    monkeypatch.undo()
    solve(config, out=cut, resume=True)
    assert facts(cut) == facts(whole)
    assert [rollout.step for rollout in read_run(cut / "001-q1").rollouts()] == [1, 2, 3, 4, 5]
