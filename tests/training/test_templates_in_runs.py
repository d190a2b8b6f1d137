"""Runs under chat templates that refuse something: folded, or refused before anything is written or sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_models
from selfdistill.config import load_config
from selfdistill.errors import ConfigError, ModelError, SelfDistillError
from selfdistill.runs import read_run
from selfdistill.test_time.config import solve_config
from selfdistill.test_time.solve import solve
from selfdistill.training.evaluation import measure
from selfdistill.training.loop import train
from tiny_models import tiny_policy_dir

WORLD = """
from selfdistill import Message, Outcome, Task

def tasks():
    return [Task(f"q{n}", (*QUESTION, Message("user", f"Say {n}.")), document="Say it at once.") for n in range(2)]

def environment(task, completion):
    return Outcome(float(len(completion) % 2), feedback="Not so <|im_end|>.", reply="No.")
"""
PLAIN, INSTRUCTED, ANSWERED = (
    "QUESTION = ()",
    "QUESTION = (Message('system', 'Be brief.'),)",
    ("QUESTION = (Message('assistant', 'Hello.'),)"),
)
SMALL = ["steps=1", "tasks_per_step=2", "rollouts_per_task=2", "sampling.max_new_tokens=6", "evaluation.tasks=2"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


def model(shelf: Path, name: str) -> str:
    folder = shelf / name
    made = folder / "tiny-qwen3-0"
    return str(made if made.exists() else tiny_policy_dir(folder, template=getattr(tiny_models, name)))


def settings(shelf: Path, folder: Path, name: str, question: str, *more: str) -> list[Any]:
    file = folder / "own.py"
    file.write_text(WORLD + question)
    own = ["device=cpu", f"model={model(shelf, name)}", f"env={file}:environment", f"out={folder / 'run'}"]
    return [*own, *SMALL, *more]


@pytest.mark.parametrize("name", ["STRICT", "FORGETS_SYSTEM"])
@pytest.mark.parametrize(
    ("question", "method"),
    [(INSTRUCTED, "sdpo"), (PLAIN, "opcd"), (INSTRUCTED, "opcd"), (INSTRUCTED, "rltf_sd"), (PLAIN, "erl")],
)
def test_what_can_be_folded_is_trained_on(shelf, tmp_path, name, question, method) -> None:
    more = ["method.context.text=Be kind."] if method == "opcd" else []
    path = train(load_config(None, settings(shelf, tmp_path, name, question, f"method={method}", *more)))
    assert read_run(path).steps[0].completions_sampled >= 2


@pytest.mark.parametrize(
    ("name", "question", "method", "said"),
    [
        ("STRICT", ANSWERED, "sdpo", r"a prompt of task 'q0' cannot be written[\s\S]*turns must alternate"),
        ("ONE_TURN", PLAIN, "rltf_sd", r"a prompt of task 'q0' cannot be written[\s\S]*one turn only"),
        ("ONE_TURN", PLAIN, "erl", "one turn only"),
        ("BROKEN", PLAIN, "sdpo", r"cannot be used[\s\S]*TemplateSyntaxError"),
        ("NEEDS_MORE", PLAIN, "sdpo", r"cannot be used[\s\S]*UndefinedError"),
        ("FORGETS_QUESTION", PLAIN, "sdpo", "does not write the question"),
    ],
)
def test_what_cannot_is_refused_when_the_run_opens_with_model_and_task(
    shelf, tmp_path, name, question, method, said
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        train(load_config(None, settings(shelf, tmp_path, name, question, f"method={method}")))
    assert model(shelf, name) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_template_for_single_turns_serves_a_method_that_makes_no_others(shelf, tmp_path) -> None:
    path = train(load_config(None, settings(shelf, tmp_path, "ONE_TURN", INSTRUCTED)))
    assert read_run(path).steps


def test_a_search_that_goes_on_with_a_conversation_is_refused_where_the_template_takes_none(shelf, tmp_path) -> None:
    own = settings(shelf, tmp_path, "ONE_TURN", PLAIN)[:3]  # device, model and environment

    def search(strategy: str, *more: str) -> None:
        solve(solve_config(strategy, [*own, *more], limits={"budget": 2}), out=tmp_path / "out")

    with pytest.raises(ModelError, match="one turn only"):
        search("multi-turn", "strategy.attempts=true")
    assert not (tmp_path / "out").exists()
    search("multi-turn", "sampling.max_new_tokens=4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for m in messages %}", r"cannot be used[\s\S]*TemplateSyntaxError[\s\S]*the file of chat_template"),
        ("{{ messages[0]['role'] }}", "does not write the question"),
        ("", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_file_of_a_template_is_a_bad_setting(shelf, tmp_path, text, said) -> None:
    file = tmp_path / "chat.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        train(load_config(None, settings(shelf, tmp_path, "CHATML", PLAIN, f"chat_template={file}")))
    assert not (tmp_path / "run").exists()


def test_thinking_is_a_setting_of_runs_evaluations_and_searches(shelf, tmp_path, recorder) -> None:
    def asked(name: str, *more: str) -> Any:
        return load_config(None, settings(shelf, tmp_path, name, PLAIN, *more))

    for call in (lambda config: train(config, recorder), lambda config: measure(config, recorder)):
        with pytest.raises(ConfigError, match="no switch for thinking"):
            call(asked("CHATML", "thinking=on"))
    with pytest.raises(SelfDistillError, match="one of off, on, template"):
        asked("CHATML", "thinking=maybe")
    assert not (tmp_path / "run").exists()
    path = train(asked("CAN_THINK", "thinking=on"), recorder)
    assert read_run(path).config["settings"]["thinking"] == "on"
    measure(asked("ALWAYS_THINKS", f"out={tmp_path / 'e'}"), recorder)
    assert any("thinking=off does nothing" in note for note in recorder.notes)
