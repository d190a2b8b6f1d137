"""Methods that ask more than once, or credit more than once, in whole runs of a tiny model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from selfdistill.config import NamedComponent
from selfdistill.errors import ConfigError, TrainingError
from selfdistill.runs import Run, RunStart, read_run
from selfdistill.runs.events import no_callback
from selfdistill.training.loop import PATIENCE, train
from selfdistill.training.session import open_session
from tiny_models import padded

PARTS = Path(__file__).with_name("method_envs.py")


def ran(config_of: Any, method: str | dict[str, Any], out: Path, **changes: Any) -> Run:
    config = replace(config_of(method=method, out=str(out), **changes), env=NamedComponent(f"{PARTS}:Telling"))
    return read_run(train(config))


@pytest.mark.parametrize("reduction", ["sequence-mean", "token-mean"])
def test_uses_of_one_answer_add_up(config_of, tmp_path, reduction: str) -> None:
    one, two = (
        ran(config_of, {"name": f"{PARTS}:{name}", "reduction": reduction}, tmp_path / name, steps=1).steps[0]
        for name in ("Whole", "Halves")
    )
    assert (one.samples, two.samples) == (8, 16)
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("sft", {"demonstration": 2}),
        ("sdft", {"answer": 8}),
        ("opsd", {"answer": 8}),
        ("opcd", {"answer": 8}),
        ("user_replies", {"answer": 8}),
        ({"name": "user_replies", "logged": True}, {"logged": 2}),
        ("pi_distill", {"informed": 8}),
        ("rltf_fm", {"answer": 8}),
        ("rltf_sd", {"answer": 8, "second_attempt": None}),
        ("erl", {"answer": 8, "reflection": None, "reflected_attempt": None}),
    ],
)
def test_every_rollout_is_trained_on_or_dropped_also_off_policy(
    config_of, tmp_path, method: str | dict[str, Any], stages: dict[str, int | None]
) -> None:
    run = ran(config_of, method, tmp_path / "run", steps=1, tasks_per_update=1, seed=1)
    [step] = run.steps
    rollouts = list(run.rollouts())
    counted = Counter(rollout.stage for rollout in rollouts)
    assert counted.keys() == stages.keys()
    assert all(counted[stage] == count for stage, count in stages.items() if count is not None)
    failures = sum(rollout.reward == 0 for rollout in rollouts if rollout.stage == "answer")
    assert all(counted[stage] <= failures for stage, count in stages.items() if count is None)
    dropped = [rollout for rollout in rollouts if rollout.drop]
    assert len(dropped) == sum(step.dropped.values()) < len(rollouts)
    assert step.samples >= len(rollouts) - len(dropped)
    assert (step.extra["updates"], step.extra["skipped"]) == (2, 0)
    assert step.grad_norm > 0
    assert step.completions_sampled == sum(bool(rollout.logprobs) for rollout in rollouts)


@pytest.mark.parametrize("method", ["sdpo", "grpo", "rlsd", "antisd"])
def test_every_number_of_a_step_is_documented(config_of, tmp_path, method: str) -> None:
    """`antisd` has a gate, and `rlsd` weighs tokens one by one."""
    contract = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text()
    (step,) = ran(config_of, method, tmp_path / "run", steps=1).steps
    assert step.extra
    assert not [name for name in step.extra if f"`{name}`" not in contract]


@pytest.mark.parametrize(
    ("method", "steps", "wanted"),
    [
        ("sft", 2, (0, 4, False)),
        ({"name": "user_replies", "logged": True}, 1, (0, 2, False)),
        ("sdft", 1, (8, 0, False)),
        ("erl", 1, (8, 0, True)),
    ],
)
def test_a_run_says_beforehand_what_it_will_sample_and_what_it_is_given(
    config_of, tmp_path, recorder, method: str | dict[str, Any], steps: int, wanted: tuple[int, int, bool]
) -> None:
    config = config_of(method=method, out=str(tmp_path / "run"), steps=steps)
    run = read_run(train(replace(config, env=NamedComponent(f"{PARTS}:Telling")), recorder))
    info = next(event for event in recorder.events if isinstance(event, RunStart))
    assert (info.completions_sampled, info.given, info.more) == wanted
    first = [rollout for rollout in run.rollouts() if rollout.stage in ("answer", "demonstration", "logged")]
    assert len(first) == info.completions_sampled + info.given
    assert (run.steps[-1].completions_sampled > info.completions_sampled) == info.more


def test_tasks_that_lack_what_a_method_reads_are_refused_with_its_name(config_of) -> None:
    with pytest.raises(TrainingError, match="no task has what the method reads, demonstration") as refused:
        train(config_of(method="sft", steps=PATIENCE))
    assert "rows of the data" in refused.value.do
    assert "easier tasks" not in refused.value.do, "more successes would not help a method without a reward"


def test_a_teacher_without_a_name_is_refused_before_any_model_is_loaded(config_of) -> None:
    with pytest.raises(ConfigError, match="the teacher's model is not named"):
        train(config_of(method="opd", model="no/such/model"))


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"temperature": 0.0}])
def test_a_ratio_that_the_sampler_does_not_report_is_refused_before_any_model_is_loaded(config_of, sampling) -> None:
    config = config_of(method="pi_distill", model="no/such/model", sampling={"max_new_tokens": 8, **sampling})
    with pytest.raises(ConfigError, match="weighs answers by the ratio of two probabilities"):
        train(config)


def test_a_second_gate_is_refused_before_any_model_is_loaded(config_of, tmp_path) -> None:
    assert ran(config_of, f"{PARTS}:Gated", tmp_path / "run", steps=1).steps[0].samples == 8
    with pytest.raises(ConfigError, match="more than one signal with a gate"):
        train(config_of(method={"name": f"{PARTS}:Gated", "gates": 2}, model="no/such/model"))


def test_another_model_may_be_the_teacher(config_of, model_dir, tmp_path) -> None:
    run = ran(config_of, "opd", tmp_path / "run", steps=1, teacher={"model": str(model_dir)})
    assert run.steps[0].loss == pytest.approx(0.0, abs=1e-5), "here it is the student itself"
    assert run.steps[0].samples == 8


@pytest.mark.parametrize(("own", "others"), [(0, 13), (13, 0)])
def test_a_teacher_of_one_family_may_pad_its_vocabulary_otherwise(
    config_of, model_dir, tmp_path, own: int, others: int
) -> None:
    """The same weights but for rows that are no tokens: nothing is to be learned, and no such token is said."""
    student, teacher = (padded(model_dir, tmp_path / name, n) for name, n in (("own", own), ("other", others)))
    run = ran(config_of, "opd", tmp_path / "run", steps=1, model=str(student), teacher={"model": str(teacher)})
    assert run.steps[0].loss == pytest.approx(0.0, abs=1e-5)
    assert run.steps[0].samples == 8
    words = len(AutoTokenizer.from_pretrained(model_dir))
    assert max(max(rollout.token_ids) for rollout in run.rollouts()) < words


def test_another_model_is_held_in_the_precision_of_the_run_and_not_trained(config_of, model_dir) -> None:
    config = config_of(method="opd", teacher={"model": str(model_dir)}, dtype="bfloat16")
    session = open_session(replace(config, env=NamedComponent(f"{PARTS}:Telling")), no_callback, learns=True)
    assert session.learner is not None
    teacher = session.learner.teacher.other
    assert teacher is not None
    held = [(value.dtype, value.requires_grad) for value in teacher.model.parameters()]
    assert set(held) == {(torch.bfloat16, False)}


def test_of_several_uses_the_largest_weights_are_recorded_and_rewards_are_those_of_what_was_asked_first(
    config_of, tmp_path
) -> None:
    run = ran(config_of, "pi_distill", tmp_path / "run", steps=1, rollouts_per_task=8)
    rollouts = list(run.rollouts())
    rewards = [rollout.reward for rollout in rollouts]
    assert 0 < sum(rewards) < 16, "some are right, some are not"
    assert run.steps[0].reward == pytest.approx(sum(rewards) / 16)
    for task in ("q0", "q1"):
        own = [rollout for rollout in rollouts if rollout.task == task]
        mean = sum(rollout.reward for rollout in own) / 8
        assert [rollout.advantage for rollout in own] == pytest.approx([(r.reward - mean) / 2 for r in own])
        assert {rollout.distil for rollout in own} == {0.05}
