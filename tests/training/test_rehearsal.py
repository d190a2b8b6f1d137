"""Replay and several updates in whole runs; what each update makes of it is in tests/methods."""

from __future__ import annotations

import pytest

from selfdistill.models import sampler
from selfdistill.runs import read_run
from selfdistill.training import samples, steps
from selfdistill.training.loop import train


def test_a_step_that_makes_no_update_samples_no_prompts(config_of, monkeypatch) -> None:
    uids: list[str] = []
    real = sampler.sample
    for module in (steps, samples):  # replay, and all else
        monkeypatch.setattr(module, "sample", lambda *a, **k: uids.extend(k["uids"]) or real(*a, **k))
    config = config_of("NeverSplits", method="grpo", replay={"per_step": 2}, steps=1)
    [step] = read_run(train(config)).steps
    assert {uid.partition("-")[0] for uid in uids} == {"1", "eval"}
    assert (step.samples, step.extra["updates"], step.extra["replayed"]) == (0, 0, 0)


@pytest.mark.parametrize("tasks_per_update", [0, 1])
def test_a_run_says_how_many_prompts_it_rehearsed(config_of, tasks_per_update) -> None:
    config = config_of("Splits", replay={"per_step": 3}, steps=1, tasks_per_update=tasks_per_update)
    [step] = read_run(train(config)).steps
    assert step.extra["replayed"] == 3
    assert step.extra["updates"] == (2 if tasks_per_update else 1)
