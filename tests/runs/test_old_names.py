"""Records of earlier versions are read under today's names; settings and options of theirs are refused with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.config import load_config
from selfdistill.errors import ConfigError, RunError
from selfdistill.runs import EvalRecord, RolloutRecord, StepRecord, read_run
from selfdistill.runs.old_names import SETTINGS
from selfdistill.runs.store import allowed_changes

ACCURACY = {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9}
STEP = {
    "event": "step", "step": 1, "generations": 4, "tokens": 40, "wall_s": 1.0, "reward": 0.5, "accuracy": 0.5,
    "loss": "NaN", "grad_norm": 1.0, "lr": 1e-5, "evidence": 0.25,
    "dropped": {"flat_group": 2, "judging_failed": 3, "no_context": 1},
}  # fmt: skip
EVAL = {"event": "eval", "step": 0, "generations": 0, "wall_s": 0.0, "split": "retained", "accuracy": ACCURACY}
ROLLOUT = {
    "event": "rollout", "step": 1, "uid": "1-0-0", "task": "t", "prompt": "p", "completion": "c", "stop": "end",
    "drop": "lone_success", "evidence": [0.5, "Infinity"],
}  # fmt: skip
AFTER = {"retained_accuracy": ACCURACY, "holdout_accuracy": None}
SUMMARY = {
    "method": "sdpo", "model": "m", "world": "code", "seed": 0, "steps": 1, "generations": 4, "tokens": 40,
    "wall_s": 1.0, "before": {}, "after": AFTER,
}  # fmt: skip


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    settings = {"method": {"name": "sdpo"}, "world": {"name": "code"}, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (EVAL, STEP))
    )
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(ROLLOUT, separators=(",", ":")) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    return tmp_path


def test_a_run_of_an_earlier_version_is_read_under_todays_names(old_run: Path) -> None:
    run = read_run(old_run)
    (step,), (measured,), (rollout,) = run.steps, run.evals, run.rollouts()
    assert isinstance(step, StepRecord)
    assert (step.completions_sampled, step.log_ratio) == (4, 0.25)
    assert step.dropped == {"zero_advantage": 2, "scoring_failed": 3, "no_context": 1}
    assert isinstance(measured, EvalRecord)
    assert measured.split == "forgetting"
    assert isinstance(rollout, RolloutRecord)
    assert (rollout.drop, rollout.log_ratio) == ("only_success", (0.5, float("inf")))
    assert run.summary is not None
    assert (run.summary.env, run.summary.completions_sampled) == ("code", 4)
    assert run.summary.after.forgetting_accuracy is not None
    assert run.config["settings"]["env"] == {"name": "code"}


def test_a_run_of_an_earlier_version_is_not_resumed(old_run: Path) -> None:
    with pytest.raises(RunError, match="earlier version is read, but not resumed"):
        allowed_changes(old_run, {}, ())


@pytest.mark.parametrize("old", SETTINGS)
def test_an_old_setting_is_refused_with_its_name_of_today(old: str) -> None:
    with pytest.raises(ConfigError, match=rf"{old}[\s\S]*write {SETTINGS[old]} in place of {old}"):
        load_config(None, [f"{old}.something=1"])


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["train", "--world", "code"], "--env"),
        (["compare", "--way=best-of-k"], "--arm"),
        (["demo", "--generations", "9"], "--completions"),
    ],
)
def test_an_old_option_is_refused_with_its_name_of_today(words: list[str], new: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert f"write {new}" in done.output
