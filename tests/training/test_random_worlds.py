"""Environments that draw from the global generators repeat: in another run of the seed, and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfdistill.runs import read_run
from selfdistill.test_time.solve import solve
from selfdistill.training import loop as training
from selfdistill.training.evaluation import measure
from selfdistill.training.loop import train

pytestmark = pytest.mark.usefixtures("unhurried")
STEPS = {"steps": 3, "evaluation": {"every": 1, "tasks": 2}, "checkpoint_every": 1}


class Killed(BaseException):
    """Stands for a kill between two steps."""


def outcomes(path: Path) -> list[tuple[Any, ...]]:
    """What was asked and scored, and what was measured on the way."""
    run = read_run(path)
    measured = [(record.step, record.split, record.accuracy.value) for record in run.evals]
    return [(r.uid, r.task, r.reward, r.feedback) for r in run.rollouts()] + measured


@pytest.mark.parametrize("env", ["dicing", "Dicing"])
def test_outcomes_repeat_with_the_seed_and_after_a_kill(config_of, tmp_path, monkeypatch, env: str) -> None:
    first, again, other, killed = (
        config_of(env, **STEPS, out=str(tmp_path / name), seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1), ("killed", 0))
    )
    wanted = outcomes(train(first))
    assert outcomes(train(again)) == wanted
    theirs = outcomes(train(other))
    assert {row[3] for row in theirs if len(row) == 4}.isdisjoint(row[3] for row in wanted if len(row) == 4)
    real, made = training.one_step, [0]

    def dies_in_the_third(*arguments: Any) -> Any:
        made[0] += 1
        if made[0] == 3:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(training, "one_step", dies_in_the_third)
    with pytest.raises(Killed):
        train(killed)
    monkeypatch.undo()
    assert outcomes(train(killed, resume=True)) == wanted


def test_measurements_and_searches_repeat_too(config_of, search_of, tmp_path) -> None:
    found = []
    for name in ("one", "two"):
        measured = config_of("dicing", out=str(tmp_path / f"eval-{name}"))
        searched = search_of("multi-turn", "dicing", budget=6)
        measure(measured)
        solve(searched, out=tmp_path / f"solve-{name}")
        [folder] = [path for path in (tmp_path / f"solve-{name}").iterdir() if path.is_dir()]
        found.append((outcomes(Path(measured.out)), outcomes(folder)))
    assert found[0] == found[1]
