"""`sd.train` takes values: what a file can hold is written to the config, the rest is passed again on a resume."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.api import run_config
from selfdistill.config import from_settings, read_saved, resolved
from selfdistill.errors import ConfigError, DataError, RunError
from selfdistill.methods import METHODS
from selfdistill.prompts.context import Instruction
from selfdistill.runs.events import Interrupted
from selfdistill.training.loop import train as train_loop
from tiny_models import tiny_policy_dir

TASKS = [sd.Task(f"q{n}", (sd.Message("user", f"What is {n} plus {n}?"),), {"answer": str(2 * n)}) for n in range(4)]
SMALL: dict[str, Any] = {
    "steps": 2,
    "tasks_per_step": 2,
    "rollouts_per_task": 4,
    "sampling": {"max_new_tokens": 8},
    "evaluation": {"tasks": 1},
    "device": "cpu",
    "progress": False,
}


def short_answers(task: sd.Task, completion: sd.Completion) -> sd.Outcome:
    right = len(completion.text) % 2 == 0
    return sd.Outcome(float(right), "" if right else "Write an even number of characters.")


@dataclass(frozen=True, slots=True)
class Mine(sd.GRPO):
    """A method of the user's."""

    context: Instruction = field(default_factory=lambda: Instruction("Be brief."))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_policy_dir(tmp_path_factory.mktemp("model")))


def small(model: str, out: Path, **values: Any) -> sd.Run:
    return sd.train(model, **{"env": short_answers, "data": TASKS, "out": out, **SMALL, **values})


def test_a_function_and_tasks_train_a_model(model: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    events: list[sd.Event] = []
    run = small(model, tmp_path / "run", method=sd.SDPO(), callbacks=[events.append], lora=4)
    assert [record.step for record in run.steps] == [1, 2]
    assert not [caught for caught in recwarn if "is_gradient_checkpointing" in str(caught.message)]
    assert run.summary is not None
    assert (run.summary.method, run.summary.env) == ("sdpo", "python:short_answers")
    assert run.model_dir.name == "step-000002"
    assert (run.model_dir / "adapter_model.safetensors").exists()
    assert {record.step for record in run.rollouts(step=2)} == {2}
    assert len(list(run.rollouts())) == 2 * len(list(run.rollouts(2))) == 16
    assert {rollout.task for rollout in run.rollouts()} <= {task.id for task in TASKS}
    assert [type(event) for event in events if isinstance(event, sd.StepEnd | sd.RunEnd)] == [
        sd.StepEnd,
        sd.StepEnd,
        sd.RunEnd,
    ]


def test_a_shipped_method_is_written_with_the_settings_that_were_changed() -> None:
    config = run_config({}, method=sd.SDPO(alpha=0.25))
    assert resolved(config)["method"] == {"name": "sdpo", "alpha": 0.25}
    assert from_settings(resolved(config)) == config
    for kind in METHODS.values():
        config = run_config({}, method=kind())
        assert from_settings(json.loads(json.dumps(resolved(config)))).make_method() == kind()


def test_settings_are_those_of_the_command_line() -> None:
    config = run_config(
        {"steps": 3},
        lora=8,
        settings={"optimiser": {"lr": 1e-4}, "teacher": sd.Ema(rate=0.05), "sampling.max_new_tokens": 9},
    )
    assert (config.steps, config.lora and config.lora.rank, config.optimiser.lr) == (3, 8, 1e-4)
    assert (config.teacher, config.sampling.max_new_tokens) == (sd.Ema(rate=0.05), 9)
    assert config.optimiser.warmup_steps == 0, "the embedded model's own default stays"
    assert run_config({}, lora=sd.LoraOptions(rank=2)).lora == sd.LoraOptions(rank=2)
    assert run_config({}, env={"name": "verbs", "verbs": 3}).env.options == {"verbs": 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settings": {"lr": 1e-4}}, "unknown setting(.|\n)*did you mean 'optimiser.lr'"),
        ({"settings": {"optimiser": {"lr": "fast"}}}, "optimiser.lr should be a number(.|\n)*optimiser.lr = 'fast'"),
        ({"method": sd.SDPO}, "method should be a method(.|\n)*write method=SDPO()"),
        ({"method": sd.SDPO(), "settings": {"method.alpha": 1.0}}, r"method is a value(.|\n)*SDPO\(alpha=…\)"),
        ({"env": short_answers, "settings": {"env.verbs": 3}}, "env is a value"),
        ({"env": 3}, "env is no environment"),
        ({"given": {"model": object()}}, "model should be a directory or a hub name"),
        ({"settings": {"columns": {"answer": len}}}, r"columns should be names(.|\n)*load_data\(…, answer=…\)"),
    ],
)
def test_what_cannot_be_used_is_an_error_without_a_command_line_in_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        run_config(**{"given": {}, **values})
    assert "command line" not in str(raised.value)


def test_rows_are_read_in_the_form_of_their_environment(tmp_path: Path) -> None:
    rows = [{"prompt": "Square it.", "test_list": ["assert g(2) == 4"]}]
    for env, kind in ((short_answers, None), (None, "assert"), ("code", "assert"), ({"name": "code"}, "assert")):
        (task,) = run_config({}, env=env, data=rows).values.tasks or ()
        assert task.spec.get("kind") == kind
    with pytest.raises(DataError, match=r"data:1: expected a row(.|\n)*\n  got  1"):
        run_config({}, env=short_answers, data=[1])
    with pytest.raises(DataError, match=r"data:1: the row has no shape(.|\n)*env"):
        run_config({}, data=[{"prompt": "2 + 2?", "answer": 4}])
    with pytest.raises(DataError, match="eval_data: no rows"):
        run_config({}, env=short_answers, eval_data=[])


def test_eval_data_takes_the_place_of_the_held_out_split(model: str, tmp_path: Path) -> None:
    """Two of three tasks are not trained on; the third is noted."""
    events: list[sd.Event] = []
    asked = [{"question": f"What is {n} plus {n}?"} for n in (3, 7, 8)]
    values: dict[str, Any] = {"eval_data": asked, "columns": {"prompt": "question"}, "evaluation": {"tasks": 3}}
    run = small(model, tmp_path / "run", **values, callbacks=events.append)
    assert [record.tasks for record in run.evals_of("held_out")] == [3, 3]
    assert "1 of 3 held-out tasks are trained on" in " ".join(e.text for e in events if isinstance(e, sd.Note))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in asked[1:]))
    run = small(model, tmp_path / "files", **{**values, "eval_data": held_out})
    assert [record.tasks for record in run.evals_of("held_out")] == [2, 2]
    assert read_saved(tmp_path / "files", resolved_settings)["eval_data"] == str(held_out)


def resolved_settings(settings: Any) -> Any:
    return settings


def test_callbacks_are_callables() -> None:
    with pytest.raises(ConfigError, match="callbacks should be callables"):
        sd.train(callbacks=["wandb"])  # type: ignore[list-item]


def stopping_after(step: int):
    def stop(event: sd.Event) -> None:
        if isinstance(event, sd.StepEnd) and event.record.step == step:
            raise KeyboardInterrupt

    return stop


def test_a_run_of_values_is_resumed_with_the_same_values_and_no_others(model: str, tmp_path: Path) -> None:
    values = {"method": Mine(), "checkpoint_every": 1, "steps": 3}
    whole = small(model, tmp_path / "whole", **values)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        small(model, out, **values, callbacks=stopping_after(2))
    with pytest.raises(RunError, match=r"the method of this run was a value(.|\n)*sd.train"):
        read_saved(out, from_settings)
    with pytest.raises(ConfigError, match="the env of this run was a value"):
        sd.train(resume=out, method=Mine(), progress=False)
    with pytest.raises(ConfigError, match="the data of this run was a value"):
        sd.train(resume=out, method=Mine(), env=short_answers, progress=False)
    with pytest.raises(ConfigError, match="what is resumed stays in its directory"):
        sd.train(resume=out, out=tmp_path / "other", progress=False)
    with pytest.raises(RunError, match=r"cannot change its settings(.|\n)*data = 'python:3 tasks"):
        sd.train(resume=out, method=Mine(), env=short_answers, data=TASKS[:3], progress=False)
    with pytest.raises(RunError, match=r"cannot change its settings(.|\n)*method"):
        sd.train(resume=out, method=Mine(context=Instruction("?")), env=short_answers, data=TASKS, progress=False)
    resumed = sd.train(resume=out, method=Mine(), env=short_answers, data=TASKS, out=str(out), progress=False)
    assert [replace(step, wall_s=0, seconds={}) for step in resumed.steps] == [
        replace(step, wall_s=0, seconds={}) for step in whole.steps
    ]


def test_ctrl_c_saves_and_the_command_line_resumes_what_a_file_can_hold(model: str, tmp_path: Path) -> None:
    def press(event: sd.Event) -> None:
        if isinstance(event, sd.Phase) and event.name == "updating":
            os.kill(os.getpid(), signal.SIGINT)

    names = {"env": "verbs", "data": None, "method": sd.GRPO(reference_kl=0.01)}
    with pytest.raises(Interrupted, match="stopped after step 1; saved in"):
        small(model, tmp_path / "run", **names, callbacks=press)
    path = train_loop(read_saved(tmp_path / "run", from_settings), resume=True)
    assert len(sd.read_run(path).steps) == 2


def test_progress_goes_to_standard_error(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(model, tmp_path / "run", method="grpo", steps=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "grpo: step 1/1" in err


def test_a_method_is_a_table_too() -> None:
    config = run_config({}, method={"name": "sdpo", "alpha": 0.25})
    assert config.make_method() == sd.SDPO(alpha=0.25)
    with pytest.raises(ConfigError, match="a value, and has its settings itself"):
        run_config({}, method={"name": "sdpo"}, settings={"method.alpha": 0.5})
    with pytest.raises(ConfigError, match=r'its name, or \{"name": …\} with its settings'):
        run_config({}, method=3)
