from __future__ import annotations

from pathlib import Path

import pytest

from core_parts import QUESTION
from selfdistill.envs.base import score_all, tasks_of
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.registry import ENVIRONMENTS, environment_options, make_environment
from selfdistill.envs.verbs.env import VerbsEnvironment, VerbsOptions
from selfdistill.errors import ConfigError
from selfdistill.types import Completion, Outcome

HEADER = "from selfdistill import Completion, Message, Outcome, Task\n"
FUNCTION = HEADER + (
    "def env(task, completion):\n"
    "    return Outcome(float(completion == task['answer']), feedback='no')\n"
    "def tasks():\n"
    "    return [Task('t', (Message('user', '7 + 5?'),), {'answer': '12'})]\n"
)
OBJECTS = (
    "from __future__ import annotations\n"
    "from dataclasses import dataclass\n"
    "from selfdistill import Outcome\n"
    "@dataclass\n"
    "class Strict:\n"
    "    least: float = 0.5\n"
    "    def score(self, task, completion):\n"
    "        return Outcome(self.least)\n"
    "class Named:\n"
    "    name = 'called so'\n"
    "    def score(self, task, completion):\n"
    "        return Outcome(1.0)\n"
    "class Needy:\n"
    "    def __init__(self, key):\n"
    "        self.key = key\n"
    "ready = Strict(0.25)\n"
    "number = 7\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own_env.py").write_text(FUNCTION)
    (tmp_path / "objects.py").write_text(OBJECTS)
    return tmp_path


def scored(env, text: str = "12") -> Outcome:
    task = tasks_of(env, "train")[0] if tasks_of(env, "train") else QUESTION
    (outcome,) = score_all(env, [(task, Completion("r", text))])
    assert isinstance(outcome, Outcome)
    return outcome


def test_a_function_in_a_file_is_an_environment_with_the_tasks_beside_it(file: Path) -> None:
    for name in (f"{file}/own_env.py:env", f"{file}/own_env.py"):
        env = make_environment(name, {}, seed=0)
        assert env.name == "own_env"
        assert [task.id for task in tasks_of(env, "train")] == ["t"]
        assert scored(env) == Outcome(1.0, "no")
        assert scored(env, "13") == Outcome(0.0, "no")


def test_a_class_or_an_object_in_a_file_is_an_environment(file: Path) -> None:
    assert scored(make_environment(f"{file}/objects.py:Strict", {}, seed=0)).reward == 0.5
    assert scored(make_environment(f"{file}/objects.py:ready", {}, seed=0)).reward == 0.25
    assert make_environment(f"{file}/objects.py:ready", {}, seed=0).name == "objects"
    assert make_environment(f"{file}/objects.py:Named", {}, seed=0).name == "called so"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_env.py:evn", "did you mean 'env'"),
        ("objects.py", "has no 'env'"),
        ("objects.py:number", "is no environment"),
        ("objects.py:Needy", r"cannot be made[\s\S]*missing 1 required positional argument: 'key'"),
        ("missing.py:env", "no such file"),
    ],
)
def test_a_file_that_holds_no_such_environment_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment(f"{file}/{name}", {}, seed=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [("import nosuchmodule", "nosuchmodule"), ("def environment(:\n", "SyntaxError"), ("1 / 0", "line 1")],
)
def test_a_file_that_cannot_be_imported_names_the_reason(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ConfigError, match=rf"cannot be imported[\s\S]*{message}"):
        make_environment(f"{tmp_path}/bad.py", {}, seed=0)


def test_an_environment_from_a_file_takes_no_settings(file: Path) -> None:
    with pytest.raises(ConfigError, match="no settings"):
        make_environment(f"{file}/own_env.py", {"least": 1}, seed=0)


def test_the_built_in_environments_are_made_from_their_options() -> None:
    verbs = make_environment("verbs", {"verbs": 3, "steps": [1]}, seed=5)
    assert isinstance(verbs, VerbsEnvironment)
    assert (verbs.options.verbs, verbs.options.steps, verbs.seed) == (3, (1,), 5)
    assert make_environment("verbs", {"draw": 9}, seed=5).seed == 9  # type: ignore[attr-defined]
    assert isinstance(make_environment("code", {}, seed=0), CodeEnvironment)


def test_unknown_environments_and_options_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'verbs'"):
        make_environment("verb", {}, seed=0)
    with pytest.raises(ConfigError, match="did you mean 'cases'"):
        make_environment("verbs", {"case": 1}, seed=0)
    with pytest.raises(ConfigError, match=r"env\.verbs should be a whole number"):
        make_environment("verbs", {"verbs": "many"}, seed=0)
    assert environment_options("verbs", {}) == VerbsOptions()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_has_a_summary(name: str) -> None:
    assert len(ENVIRONMENTS[name].env.__doc__ or "") > 20
