"""Runs side by side, in processes of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from selfdistill.errors import ConfigError, RunError
from selfdistill.loops.compare import compare, demo_configs
from selfdistill.loops.train import train
from selfdistill.runs import Quiet, read_run


def test_the_demo_gives_both_methods_the_same_verbs_budget_and_seed(tmp_path: Path) -> None:
    sdpo, grpo = demo_configs(tmp_path, seed=3, generations=2560)
    assert (sdpo.method.name, grpo.method.name) == ("sdpo", "grpo")
    assert sdpo.generations == grpo.generations == 2560
    assert sdpo.seed == grpo.seed == 3
    assert sdpo.world == grpo.world
    assert Path(sdpo.out).parent == Path(grpo.out).parent == tmp_path / "demo-seed3"
    with pytest.raises(ConfigError, match="steps"):
        demo_configs(tmp_path, seed=3, generations=5)


def test_runs_in_their_own_processes_give_the_bits_they_give_alone(config_of, heard, tmp_path: Path) -> None:
    """The second one fails: it is said in the end, and the first is whole."""
    good = config_of("hashed", out=str(tmp_path / "good"), steps=2)
    bad = config_of("BreaksLater", out=str(tmp_path / "bad"), steps=3)
    with pytest.raises(RunError, match=r"bad failed[\s\S]*more than half of a batch"):
        compare([good, bad], lambda name: heard)
    alone = read_run(train(replace(good, out=str(tmp_path / "alone")), Quiet()))
    beside = read_run(tmp_path / "good")
    assert [record.grad_norm for record in beside.steps] == [record.grad_norm for record in alone.steps]
    assert [(r.uid, r.token_ids) for r in beside.rollouts()] == [(r.uid, r.token_ids) for r in alone.rollouts()]
    told = [name for name, _ in heard.events]
    assert told.count("started") == 2
    assert told.count("step") == 4
    assert told.count("finished") == 1
