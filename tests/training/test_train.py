from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.config import NamedComponent
from selfdistill.errors import ConfigError, DataError, EnvError, RunError, TrainingError
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.models.teacher import Teacher
from selfdistill.runs import EvalEnd, Note, Phase, RunEnd, RunStart, StepEnd, read_run
from selfdistill.runs.events import no_callback
from selfdistill.training import forward, steps, update
from selfdistill.training.loop import PATIENCE, train
from selfdistill.training.recording import TORN
from selfdistill.training.session import open_renderer
from selfdistill.types import DropReason


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    latest = latest_checkpoint(run / "checkpoints")
    assert latest is not None
    return load_file(latest / "model.safetensors")


def test_a_run_leaves_the_directory_that_other_tools_read(config_of, recorder) -> None:
    config = config_of("Splits", replay={"per_step": 2}, checkpoint_every=1)
    path = train(config, recorder)
    run = read_run(path)
    assert sorted(file.name for file in path.iterdir() if not file.name.startswith(".")) == [
        "checkpoints", "config.json", "metrics.jsonl", "rollouts.jsonl", "summary.json",
    ]  # fmt: skip
    assert [folder.name for folder in sorted((path / "checkpoints").iterdir())] == ["step-000002", "step-000003"]
    latest = path / "checkpoints" / "step-000003"
    AutoModelForCausalLM.from_pretrained(latest)
    AutoTokenizer.from_pretrained(latest)
    saved = json.loads((path / "config.json").read_text())
    assert {"settings", "versions", "git_commit", "device", "isolation"} <= saved.keys()
    assert saved["settings"]["seed"] == 0
    assert [record.step for record in run.steps] == [1, 2, 3]
    assert run.summary is not None
    assert (run.summary.steps, run.summary.completions_sampled) == (3, 24)
    assert run.summary.tokens == run.steps[-1].tokens
    assert run.summary.before.train_accuracy is not None
    assert run.summary.after.forgetting_accuracy is not None
    assert run.summary.after.forgetting_accuracy.value == 1.0, "measured by the environment's other judge"
    kinds = [type(event) for event in recorder.events if not isinstance(event, Phase | Note)]
    assert kinds == [RunStart, *[EvalEnd] * 4, *[StepEnd] * 3, *[EvalEnd] * 4, RunEnd]


@pytest.mark.parametrize("method", ["sdpo", "grpo", "sdpo_rich_feedback", "sdpo_outcome"])
def test_sampled_is_trained_plus_dropped_in_every_step(config_of, method: str) -> None:
    config = config_of(method=method, tasks_per_step=2, rollouts_per_task=4, optimiser={"lr": 1e-3, "warmup_steps": 0})
    run = read_run(train(config))
    rollouts, renderer = list(run.rollouts()), open_renderer(config, no_callback)
    assert [record.completions_sampled for record in run.steps] == [8, 16, 24]
    for record in run.steps:
        mine = [rollout for rollout in rollouts if rollout.step == record.step]
        assert len(mine) == 8 == record.samples + sum(record.dropped.values())
        assert Counter(rollout.drop for rollout in mine if rollout.drop) == record.dropped
        assert record.reward == pytest.approx(sum(rollout.reward for rollout in mine) / 8)
        assert record.lr == 1e-3
        assert math.isfinite(record.loss)
        assert math.isfinite(record.grad_norm)
        for rollout in mine:
            distilled = rollout.drop is None and method != "grpo"
            assert len(rollout.log_ratio) == (len(rollout.token_ids) if distilled else 0)
            assert len(rollout.entropy) == (0 if rollout.drop else len(rollout.token_ids))
            assert len(rollout.logprobs) == len(rollout.token_ids)
            assert rollout.policy_version == rollout.step - 1
            assert bool(rollout.teacher_prompt_ids) == distilled
            assert renderer.tokenizer.decode(rollout.prompt_ids).count(rollout.prompt) == 1
            whole = renderer.tokenizer.decode(rollout.token_ids)
            assert "".join(rollout.token_texts).replace(TORN, "") == whole.replace(TORN, "")
            assert len(rollout.token_texts) == len(rollout.token_ids)


def test_evidence_is_that_of_the_weights_at_the_start_of_the_step(config_of, tmp_path) -> None:
    """Whatever updates come before that of an answer: the same as if there were only one."""
    options = {"steps": 1, "optimiser": {"lr": 0.02, "warmup_steps": 0}, "tasks_per_step": 4}
    runs = [
        read_run(train(config_of(out=str(tmp_path / f"{count}"), tasks_per_update=count, **options)))
        for count in (0, 1)
    ]
    one, several = ({r.uid: r.log_ratio for r in run.rollouts() if r.log_ratio_at == "step_start"} for run in runs)
    assert all(bool(r.log_ratio) == bool(r.log_ratio_at) for run in runs for r in run.rollouts())
    assert (runs[0].steps[0].extra["updates"], runs[1].steps[0].extra["updates"] > 1) == (1, True)
    assert one.keys() == several.keys()
    for uid, log_ratio in one.items():
        assert several[uid] == pytest.approx(log_ratio, abs=1e-4)
    first, second = ([r.entropy for r in run.rollouts() if r.entropy] for run in runs)
    assert len(first) == len(second) > 0
    for row, same in zip(first, second, strict=True):
        assert row == pytest.approx(same, abs=2e-4)


def test_a_run_changes_the_weights_and_the_same_settings_give_the_same_bits(config_of, model_dir, tmp_path) -> None:
    first = final_weights(train(config_of()))
    again = final_weights(train(config_of(out=str(tmp_path / "again"))))
    other = final_weights(train(config_of(out=str(tmp_path / "other"), seed=1)))
    start = load_file(model_dir / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in start)
    assert any(not torch.equal(first[name], start[name]) for name in start)
    assert any(not torch.equal(first[name], other[name]) for name in start)


def test_several_updates_share_one_reading_and_the_teacher_moves_once_after_the_last(config_of, monkeypatch) -> None:
    """Real parts, with a note taken at every call."""
    calls: list[str] = []

    def noted(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments, **options):
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((forward, "teacher_pass"), (forward, "behaviour_pass"), (update, "update_policy")):
        noted(owner, name)
    moves = Teacher.update
    monkeypatch.setattr(Teacher, "update", lambda self, policy: (calls.append("teacher moves"), moves(self, policy))[1])
    config = config_of(teacher={"kind": "ema", "rate": 0.5}, steps=1, tasks_per_step=4, tasks_per_update=1)
    record = read_run(train(config)).steps[0]
    assert record.extra["updates"] == 4
    assert calls == ["teacher_pass", "behaviour_pass", *["update_policy"] * 4, "teacher moves"]
    calls.clear()
    train(replace(config, tasks_per_update=0, out=config.out + "-on-policy"))
    assert calls == ["teacher_pass", "update_policy", "teacher moves"], "on-policy: r1 = 1, nothing to compute"


def test_a_teacher_that_has_no_say_at_a_step_is_not_read(config_of, tmp_path) -> None:
    """λ is 1/2 in the first batch and 0 from the second on: no log-ratio there, and the update is that of GRPO."""
    fading = read_run(train(config_of(method={"name": "rlsd", "fades": 1})))
    for rollout in fading.rollouts():
        assert bool(rollout.log_ratio) == (
            rollout.step == 1 and rollout.drop is None and rollout.context_kind != "none"
        )
    assert [record.extra["lambda"] for record in fading.steps] == [0.5, 0.0, 0.0]
    assert [record.log_ratio > 0 for record in fading.steps] == [True, False, False]
    no_signal_steps = config_of(method={"name": "rlsd", "strength": 0.0}, out=str(tmp_path / "no_signal_steps"))
    plain = config_of(method={"name": "grpo", "divide_by_deviation": True}, out=str(tmp_path / "plain"))
    ours, theirs = (final_weights(train(config)) for config in (no_signal_steps, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_distillation_on_a_schedule_is_not_read_where_it_weighs_nothing(config_of, monkeypatch) -> None:
    """SDPG begins at 0; answers that are to be distilled keep their credit in the records."""
    real, passes = forward.teacher_pass, list[int]()

    def counted(*arguments, **options):
        found = real(*arguments, **options)
        passes.append(len(found))
        return found

    monkeypatch.setattr(forward, "teacher_pass", counted)
    run = read_run(train(config_of(method={"name": "sdpg", "warmup": 2, "peak": 1.0}, steps=2)))
    assert passes == [0, 1]
    distilled = [rollout for rollout in run.rollouts() if rollout.distil]
    assert {rollout.step for rollout in distilled} == {1, 2}
    assert all(bool(rollout.log_ratio) == (rollout.step == 2) for rollout in distilled)


def test_an_ema_teacher_is_the_mean_it_says(config_of, model_dir) -> None:
    """One step at rate 1/4 from φ = θ₀: φ = 3/4 θ₀ + 1/4 θ₁."""
    path = train(config_of(teacher={"kind": "ema", "rate": 0.25}, steps=1))
    start, now = load_file(model_dir / "model.safetensors"), final_weights(path)
    shadow = load_file(path / "checkpoints" / "step-000001" / "teacher.safetensors")
    for name, value in start.items():
        torch.testing.assert_close(shadow[f"shadow.{name}"], 0.75 * value + 0.25 * now[name])


def test_an_update_that_is_not_finite_is_skipped_counted_and_said(config_of, recorder, monkeypatch) -> None:
    real = steps.credit_rollouts

    def poisoned(*arguments):
        entries = real(*arguments)
        return [replace(e, samples=tuple(replace(s, distil=math.nan) for s in e.samples)) for e in entries]

    monkeypatch.setattr(steps, "credit_rollouts", poisoned)
    path = train(config_of(steps=1, teacher={"kind": "ema", "rate": 0.5}), recorder)
    assert read_run(path).steps[0].extra["skipped"] == 1
    assert any("1 of 1 updates skipped" in note for note in recorder.notes)
    shadow = load_file(path / "checkpoints" / "step-000001" / "teacher.safetensors")
    assert int(shadow["batches"]) == 0


def test_a_world_that_fails_on_some_answers_loses_those_and_the_run_goes_on(config_of) -> None:
    path = train(config_of("Moody", steps=2, tasks_per_step=1, rollouts_per_task=8))
    rollouts = list(read_run(path).rollouts())
    for step in (1, 2):
        reasons = [rollout.drop for rollout in rollouts if rollout.step == step][:4]
        assert reasons == [
            DropReason.ENV_RAISED,
            DropReason.BAD_OUTCOME,
            DropReason.BAD_OUTCOME,
            DropReason.ENV_TIMEOUT,
        ]
    raised, nan, wrong, slow = rollouts[:4]
    assert raised.fault.startswith("Traceback")
    assert "loop_envs.py" in raised.fault
    assert raised.fault.strip().endswith('KeyError: "the environment\'s own mistake"')
    assert "not a finite number: nan" in nan.fault
    assert "or an Outcome, got str" in wrong.fault
    assert "no outcome after 1 s" in slow.fault
    assert all(rollout.reward is None for rollout in rollouts[:4])


def test_a_world_that_fails_on_most_of_a_batch_stops_the_run_and_its_tracebacks_are_kept(config_of) -> None:
    config = config_of("BreaksLater")
    with pytest.raises(EnvError, match=r"more than half of a batch[\s\S]*8 of 8 rollouts[\s\S]*server is gone"):
        train(config)
    run = read_run(Path(config.out))
    assert [record.step for record in run.steps] == [1, 2]
    faults = [rollout.fault for rollout in run.rollouts() if rollout.step == 2]
    assert sum("ConnectionError: the server is gone" in fault for fault in faults) >= 5
    assert run.summary is None


@pytest.mark.parametrize(
    ("env", "method", "reason", "advice"),
    [
        ("never", "sdpo", "no_context", "the environment returns"),
        ("never", "grpo", "zero_advantage", "easier tasks"),
        ("nearly", "grpo", "zero_advantage", "easier tasks"),
    ],
)
def test_batches_that_teach_nothing_say_why_and_stop_a_run_in_the_end(
    config_of, recorder, env, method, reason, advice
) -> None:
    config = config_of(env, method=method, steps=40, rollouts_per_task=2)
    with pytest.raises(
        TrainingError, match=rf"{PATIENCE} steps in a row produced no training samples[\s\S]*4 {reason}[\s\S]*{advice}"
    ):
        train(config, recorder)
    run = read_run(Path(config.out))
    assert len(run.steps) == PATIENCE
    assert sum(f"produced no training samples: 4 {reason}" in note for note in recorder.notes) == PATIENCE
    assert latest_checkpoint(Path(config.out) / "checkpoints") is not None


def test_a_reference_alone_is_trained_on_and_is_nothing_to_learn_from(config_of, recorder) -> None:
    """Zero-advantage groups have an update, and a run of nothing else is still stopped."""
    config = config_of("never", method={"name": "grpo", "reference_kl": 0.1}, steps=PATIENCE + 1)
    with pytest.raises(TrainingError, match="8 with the reference divergence alone"):
        train(config, recorder)
    [first, *_] = read_run(Path(config.out)).steps
    assert (first.samples, first.dropped, first.informative) == (8, {}, 0)
    assert first.extra["updates"] == 1


@pytest.mark.parametrize(("method", "rollouts", "reason"), [("grpo", 2, "zero_advantage"), ("sdpo", 1, "only_success")])
def test_a_run_that_has_nothing_left_to_learn_ends_well(config_of, recorder, method, rollouts, reason) -> None:
    config = config_of("always", method=method, steps=40, rollouts_per_task=rollouts)
    path = train(config, recorder)
    train(config, recorder, resume=True)
    run = read_run(path)
    assert len(run.steps) == PATIENCE, "resuming it adds nothing"
    assert run.summary is not None
    assert run.summary.steps == PATIENCE
    assert all(record.dropped == {reason: 2 * rollouts} for record in run.steps)
    assert any("nothing is left to learn" in note for note in recorder.notes)
    assert latest_checkpoint(path / "checkpoints") is not None


def test_prompts_that_are_too_long_are_counted_and_skipped(config_of, recorder, tmp_path) -> None:
    rows = [{"prompt": "What? " * 200, "id": "long"}, {"prompt": "What is seven plus five?", "id": "short"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = train(config_of(data=str(tmp_path / "rows.jsonl"), steps=1), recorder)
    assert any("1 of 2 tasks are skipped: longer than 255 tokens" in note for note in recorder.notes)
    assert {rollout.task for rollout in read_run(path).rollouts()} == {"short"}


def test_when_no_prompt_fits_the_run_is_refused_and_nothing_is_written(config_of, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "What? " * 200}) + "\n")
    config = config_of(data=str(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError, match=r"no question fits the model[\s\S]*1 tasks, all longer than 255 tokens"):
        train(config)
    assert not Path(config.out).exists()


def test_rehearsal_may_come_from_a_file_and_its_answers_are_no_rollouts_of_the_run(config_of, tmp_path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Say yes or no.", "Traceback:")))
    config = config_of(replay={"prompts": str(file), "per_step": 2, "weight": 1.0}, steps=2)
    run = read_run(train(config))
    assert len(list(run.rollouts())) == 16
    assert run.steps[0].tokens > sum(len(rollout.token_ids) for rollout in run.rollouts() if rollout.step == 1)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"replay": {"per_step": 1}}, ConfigError, "no tasks for replay"),
        ({"replay": {"prompts": "missing.jsonl"}}, DataError, "missing.jsonl"),
        ({"data": "missing.jsonl"}, DataError, "missing.jsonl"),
        ({"chat_template": "missing.jinja"}, ConfigError, "chat template cannot be read"),
        ({"method": {"name": "sdpo", "topk": 5}}, ConfigError, "did you mean 'top_k'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(config_of, tmp_path, settings, error, said) -> None:
    with pytest.raises(error, match=said):
        train(config_of(**settings))
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_in_use_is_not_overwritten(config_of) -> None:
    config = config_of(steps=1)
    train(config)
    before = (Path(config.out) / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"already in use[\s\S]*--resume"):
        train(config)
    assert (Path(config.out) / "metrics.jsonl").read_bytes() == before


def test_a_reference_changes_a_grpo_run_only_after_the_first_step(config_of, tmp_path) -> None:
    """At the start KL(p‖p_ref) is 0 with a gradient of 0, so the first step is the same; then the reference pulls."""
    plain = train(config_of(method="grpo"))
    leashed = train(config_of(method={"name": "grpo", "reference_kl": 1.0}, out=str(tmp_path / "leashed")))
    first, second = ([record.grad_norm for record in read_run(path).steps] for path in (plain, leashed))
    assert second[0] == pytest.approx(first[0], rel=1e-5)
    assert second[1] != pytest.approx(first[1], rel=1e-5)


def test_under_lora_the_checkpoint_is_an_adapter_and_the_base_is_not_touched(config_of) -> None:
    path = train(config_of(lora={"rank": 2, "alpha": 4}, steps=1))
    latest = path / "checkpoints" / "step-000001"
    assert (latest / "adapter_model.safetensors").is_file()
    assert not (latest / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(latest / "teacher.safetensors") if name != "batches")


def test_warm_up_rises_linearly_and_then_stays(config_of) -> None:
    run = read_run(train(config_of(optimiser={"lr": 1e-3, "warmup_steps": 2}, steps=3)))
    assert [record.lr for record in run.steps] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_rows_of_long_files_whose_tests_cannot_run_are_dropped_when_they_are_drawn(
    config_of, tmp_path, monkeypatch
) -> None:
    """One row of two; the other is drawn, sampled and scored as it would be without it, also after a resume."""
    rows = [
        {"task_id": "good", "text": "Add.", "test_list": ["assert add(1, 2) == 3"]},
        {"task_id": "bad", "text": "Add.", "test_list": ["import numpy"]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = config_of(tasks_per_step=2, checkpoint_every=1)
    base = replace(base, env=NamedComponent("code"), data=str(tmp_path / "rows.jsonl"), steps=2)
    with pytest.raises(DataError, match=r"rows.jsonl:2: MBPP row: field 'test_list\[0\]'[\s\S]*numpy"):
        train(base)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("selfdistill.data.lines.CHECKED_ROWS", 1)
    run = read_run(train(base))
    assert [step.dropped["bad_row"] for step in run.steps] == [4, 4]
    lost = [rollout for rollout in run.rollouts() if rollout.task == "bad"]
    assert {(rollout.drop, rollout.completion, rollout.reward) for rollout in lost} == {("bad_row", "", None)}
    assert all("public[0]" in rollout.fault and "numpy" in rollout.fault for rollout in lost)
    assert all(rollout.reward is not None for rollout in run.rollouts() if rollout.task == "good")
    assert [record.tasks for record in run.evals_of("train")] == [1, 1]
    half = train(replace(base, steps=1, out=str(tmp_path / "half")))
    train(replace(base, out=str(half)), resume=True)
    texts = [[(r.uid, r.completion) for r in read_run(path).rollouts()] for path in (tmp_path / "run", half)]
    assert texts[0] == texts[1]
