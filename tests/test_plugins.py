"""A user's own file: it may import its neighbours, and whatever it does is told with its line, never as a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.envs.base import score_all, tasks_of
from selfdistill.envs.registry import make_environment
from selfdistill.errors import ConfigError, DataError, EnvError
from selfdistill.methods import get_method
from selfdistill.prompts.render import Renderer
from selfdistill.test_time.strategies import get_strategy
from selfdistill.training.samples import credit_rollouts, roll_out
from selfdistill.types import Completion, Message, Outcome, Rollout, RolloutGroup, Task

SOURCE = Path(__file__).parent.parent / "src"
TASK = Task("t", (Message("user", "What?"),))
HEADER = "from dataclasses import dataclass\nfrom selfdistill import *\n"
WORLD = HEADER + (
    "from {neighbour} import right\n"
    "def tasks():\n    return [Task('t', (Message('user', 'What?'),))]\n"
    "def env(task, completion):\n"
    "    from {neighbour}_later import feedback\n"
    "    return Outcome(right(), feedback())\n"
)
METHOD = HEADER + "from selfdistill.methods import SDPO\n@dataclass(frozen=True)\nclass Own(SDPO):\n"
runner = CliRunner()


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def with_neighbours(folder: Path, neighbour: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{neighbour}.py").write_text("def right():\n    return 1.0\n")
    (folder / f"{neighbour}_later.py").write_text("def feedback():\n    return 'well'\n")
    (folder / "own.py").write_text(WORLD.format(neighbour=neighbour))
    return folder / "own.py"


def test_a_file_may_import_its_neighbours_also_later_from_a_function(tmp_path: Path) -> None:
    env = make_environment(f"{with_neighbours(tmp_path / 'a', 'neighbour_a')}:env", {}, seed=0)
    assert [task.id for task in tasks_of(env, "train")] == ["t"]
    assert score_all(env, [(TASK, Completion("r", "12"))]) == [Outcome(1.0, "well")]


def test_methods_and_strategies_may_too(tmp_path: Path) -> None:
    (tmp_path / "neighbour_b.py").write_text("NUMBER = 0.25\n")
    (tmp_path / "method.py").write_text("from neighbour_b import NUMBER\n" + METHOD + "    alpha: float = NUMBER\n")
    assert get_method(f"{tmp_path}/method.py:Own", {}).alpha == 0.25  # type: ignore[attr-defined]
    (tmp_path / "strategy.py").write_text(
        "from neighbour_b import NUMBER\n" + HEADER + "from selfdistill.test_time.strategies.bare import BestOfK\n"
        "@dataclass(frozen=True)\nclass Own(BestOfK):\n    number: float = NUMBER\n"
    )
    assert get_strategy(f"{tmp_path}/strategy.py:Own", {}).number == 0.25  # type: ignore[attr-defined]


def test_a_process_of_its_own_finds_them_again(tmp_path: Path, model_dir: Path) -> None:
    """As `selfdistill compare --arm` starts one for every search."""
    env = with_neighbours(tmp_path / "c", "neighbour_c")
    command = ["compare", "--arm", "multi-turn", "--env", f"{env}:env", "--model"]
    command += [str(model_dir), "--seeds", "1", "--budget", "2", "--jobs", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill", *command, "device=cpu", "sampling.max_new_tokens=4"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("searches/*/*/result.json")]
    assert [result["solved_at"] for result in results] == [1], "the neighbour scored"


@pytest.mark.parametrize("option", ["--env", "--method", "--strategy"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys\nsys.exit(3)\n", "ends the program: exit(3) (line 2)"),
        ("exit()\n", "ends the program"),
        ("raise RuntimeError('of mine')\n", "RuntimeError: of mine (line 1)"),
        ("def f(:\n", "SyntaxError"),
        ("import no_such_neighbour\n", "no_such_neighbour"),
        ("\0", "cannot be imported"),
        ("other = 1\n", "has no 'wanted'"),
        ("wanted = 7\n", "is no "),
    ],
)
def test_a_file_that_cannot_be_used_is_a_message_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, source: str, said: str
) -> None:
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    command = "solve" if option == "--strategy" else "train"
    result = runner.invoke(app, [command, option, "bad.py:wanted", "--out", "out"], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["bad.py"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    def credit(self, group, index):\n        return group.nothing\n", r"AttributeError[\s\S]*line 7"),
        ("    def credit(self, group, index):\n        exit(1)\n", r"exit\(1\)[\s\S]*line 7"),
        ("    def credit(self, group, index):\n        return 1.0\n", r"a Credit, several, or a DropReason[\s\S]*1\.0"),
        ("    def credits(self, group):\n        return []\n", "0 for 1"),
    ],
)
def test_a_method_that_fails_on_a_group_is_named_with_its_line(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "method.py").write_text(METHOD + body)
    method = get_method(f"{tmp_path}/method.py:Own", {})
    rollout = Rollout(TASK, (1,), Completion("r", "12", (2,)), Outcome(0.0, "no"))
    with pytest.raises(ConfigError, match=rf"Own [\s\S]*{said}"):
        credit_rollouts(method, [RolloutGroup(TASK, (rollout,))], renderer=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    def loss_specs(self, temperature):\n        return 1 / 0\n", r"fails in its `loss_specs`[\s\S]*line 7"),
        ("    def __post_init__(self):\n        raise KeyError('x')\n", r"fails in its settings[\s\S]*line 7"),
        ("    steps: Nothing = 1\n", r"fails in its settings[\s\S]*Nothing"),
    ],
)
def test_a_method_that_cannot_be_made_is_named_with_its_line(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "method.py").write_text("from __future__ import annotations\n" + METHOD.replace("*\n", "*;", 1) + body)
    with pytest.raises(ConfigError, match=said):
        get_method(f"{tmp_path}/method.py:Own", {})


def test_an_abstract_method_and_a_stage_that_fails_are_named(tmp_path: Path, tiny_policy) -> None:
    (tmp_path / "method.py").write_text(
        HEADER + "@dataclass(frozen=True)\nclass Own(Method):\n    pass\n"
        "class Stage:\n    name = 'answer'\n    def requests(self, group, count):\n        return group.nothing\n"
    )
    with pytest.raises(ConfigError, match=r"Own in .*method\.py fails in its settings[\s\S]*abstract"):
        get_method(f"{tmp_path}/method.py:Own", {})
    (tmp_path / "neither.py").write_text(
        HEADER
        + "@dataclass(frozen=True)\nclass Own(Method):\n    def loss_spec(self, temperature): return LossSpec()\n"
    )
    with pytest.raises(ConfigError, match=r"fails in its settings[\s\S]*Own has neither `context` nor a `credit`"):
        get_method(f"{tmp_path}/neither.py:Own", {})
    stage, policy = make_stage(tmp_path / "method.py"), tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, 100)
    with pytest.raises(ConfigError, match=r"Stage in .*method\.py fails in its `requests`[\s\S]*line 9"):
        roll_out(policy, None, renderer, [TASK], None, rollouts=1, seed=0, label="x", stages=(stage,))  # type: ignore[arg-type]


def make_stage(file: Path) -> object:
    from selfdistill.plugins import load_from_file

    return load_from_file(f"{file}:Stage", "Stage")[0]()


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("def tasks():\n    exit()\n", r"cannot name its tasks[\s\S]*own\.py., line 4, in tasks\s+exit\(\)"),
        ("tasks = [Task('t', 'What?')]\n", r"no conversation[\s\S]*'What\?'"),
        ("tasks = [Task('t', [Message('user', 'What?')])]\n", "no conversation"),
        ("tasks = [Task('t', (Message('user', 7),))]\n", "no conversation"),
        ("tasks = [Task('t', (Message('nobody', 'What?'),))]\n", "no conversation"),
        ("tasks = [Task('t', ())]\n", "no conversation"),
    ],
)
def test_tasks_of_a_world_that_cannot_be_asked_are_refused(tmp_path: Path, tasks: str, said: str) -> None:
    (tmp_path / "own.py").write_text(HEADER + tasks + "def env(task, completion):\n    return Outcome(1.0)\n")
    with pytest.raises((EnvError, DataError), match=said):
        tasks_of(make_environment(f"{tmp_path}/own.py", {}, seed=0), "train")
