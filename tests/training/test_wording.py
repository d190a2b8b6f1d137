"""The wording of the teacher's prompt, and the attempt in it, as settings of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import selfdistill as sd
from selfdistill.config import load_config
from selfdistill.errors import ConfigError
from selfdistill.runs import RolloutRecord, read_run
from selfdistill.training.loop import train

ENV = """
from selfdistill import Message, Outcome, Task

def tasks():
    return [Task(f"q{n}", (Message("user", f"Say {n}."),), demonstration="It is five.") for n in range(2)]

def environment(task, completion):
    return Outcome(0.0, feedback="Not so.")
"""
SMALL: dict[str, Any] = {
    "device": "cpu",
    "steps": 1,
    "tasks_per_step": 2,
    "rollouts_per_task": 2,
    "checkpoint_every": 1,
    "sampling": {"max_new_tokens": 6},
    "evaluation": {"tasks": 2, "every": 0},
}
WORDS = {"feedback": "It failed: {feedback}", "message": "{question} {context} Again."}


def settings(model_dir: Path, folder: Path, **more: Any) -> list[tuple[str, Any]]:
    (folder / "own.py").write_text(ENV)
    own = {"model": str(model_dir), "env": f"{folder / 'own.py'}:environment", "out": str(folder / "run")}
    return [*({**SMALL, **own, **more}).items()]


def prompts(model_dir: Path, path: Path) -> list[tuple[RolloutRecord, str]]:
    """The rollouts of a run, each with what the teacher read."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return [(row, str(tokenizer.decode(list(row.teacher_prompt_ids)))) for row in read_run(path).rollouts()]


def test_another_wording_reaches_the_teacher_is_recorded_and_taken_by_a_resume(model_dir, tmp_path: Path) -> None:
    path = train(load_config(None, settings(model_dir, tmp_path, context={"templates": WORDS})))
    saved = json.loads((path / "config.json").read_text())["settings"]
    assert saved["context"]["templates"].items() > WORDS.items()
    assert saved["context"]["templates"]["reply"] == "The user will answer an earlier attempt with:\n\n{reply}"
    train(load_config(None, [("steps", 2), ("out", str(path))], saved), resume=True)
    rows = prompts(model_dir, path)
    assert {row.step for row, _ in rows} == {1, 2}
    for row, text in rows:
        assert f"Say {row.task[1:]}. It failed: Not so. Again." in text
        assert "Correctly solve" not in text


def test_the_attempt_itself_is_in_the_teachers_prompt_where_it_is_set(model_dir, tmp_path: Path) -> None:
    more = {"method": {"name": "sdpo", "context": {"attempt": True}}}
    rows = prompts(model_dir, train(load_config(None, settings(model_dir, tmp_path, **more))))
    assert rows
    for row, text in rows:
        assert row.context_kind == "feedback+attempt"
        assert row.context == {"attempt": row.completion, "feedback": "Not so."}
        assert text.index("Your earlier attempt:") < text.index("The following is feedback")


def test_answers_that_are_sampled_with_a_context_read_the_same_wording(model_dir, tmp_path: Path) -> None:
    words = {"templates": {"demonstration": "Like so: {demonstration}"}}
    path = train(load_config(None, settings(model_dir, tmp_path, method="pi_distill", context=words)))
    informed = [row for row in read_run(path).rollouts() if row.stage == "informed"]
    assert informed
    assert all("Like so: It is five." in row.prompt for row in informed)


def test_python_sets_wording_and_thinking_as_the_command_line_does(model_dir, tmp_path: Path) -> None:
    own = dict(settings(model_dir, tmp_path, context={"templates": WORDS}, thinking="template"))
    run = sd.train(**own, progress=False)
    assert run.config["settings"]["thinking"] == "template"
    assert all("It failed: Not so. Again." in text for _, text in prompts(model_dir, run.path))
    with pytest.raises(ConfigError, match="switch for thinking"):
        sd.train(**{**own, "thinking": "on", "out": str(tmp_path / "other")}, progress=False)


def test_a_wrong_template_names_its_setting_its_file_and_the_placeholders(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[context.templates]\nfeedback = "It failed."\n')
    with pytest.raises(ConfigError, match=r"context\.templates: feedback lacks the placeholder \{feedback\}"):
        load_config(file)
    file.write_text('[context.templates]\nfedback = "{feedback}"\n')
    with pytest.raises(ConfigError, match=r"context\.templates\.fedback[\s\S]*did you mean 'feedback'"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"unknown placeholder \{hint\}[\s\S]*it needs \{solution\}"):
        load_config(None, ["context.templates.solution=Look: {hint} {solution}"])
