"""The examples run as their own docstrings say, on a tiny random model, and are as short as they promise."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import selfdistill as sd
from selfdistill import Additive, SampledToken, Tanh, load_config, load_data, read_run
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.registry import make_environment
from selfdistill.errors import ConfigError
from selfdistill.methods import find_method, get_method
from selfdistill.plugins import load_from_file, short_name
from selfdistill.runs import Run
from selfdistill.runs.events import RunStart
from selfdistill.test_time.config import config_from, solve_config, solve_settings
from selfdistill.test_time.solve import default_path, solve
from selfdistill.training.loop import train
from selfdistill.types import Completion, DropReason, Outcome, Rollout, RolloutGroup, Task
from tiny_models import tiny_policy_dir

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SMALL = ["steps=2", "tasks_per_step=2", "rollouts_per_task=2", "sampling.max_new_tokens=8", "device=cpu"]
METHOD = f"{EXAMPLES / 'my_method.py'}:Lessons"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_policy_dir(tmp_path_factory.mktemp("model")))


def trained(model: str, out: Path, *settings: str) -> Run:
    config = load_config(None, [f"model={model}", f"out={out}", *SMALL, *settings])
    return read_run(train(config))


def code_lines(file: Path) -> int:
    """Lines of code: no docstring, comment or empty line."""
    tree = ast.parse(file.read_text())
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(file.read_text().splitlines(), start=1)
    return sum(bool(text.strip()) and not text.strip().startswith("#") and n not in docstrings for n, text in lines)


def test_they_are_short():
    assert code_lines(EXAMPLES / "ten_lines.py") <= 12
    assert code_lines(EXAMPLES / "my_env.py") <= 15
    assert code_lines(EXAMPLES / "my_method.py") <= 25
    assert code_lines(EXAMPLES / "my_strategy.py") <= 12


def test_the_world_judges_and_trains(model: str, tmp_path: Path):
    name = f"{EXAMPLES / 'my_env.py'}:env"
    env = make_environment(name, {}, seed=0)
    task = env.tasks("train")[2]
    assert task.messages[0].content == "What is 13 plus 13?"
    assert env.score(task, Completion("a", "It is 26.\n")) == Outcome(1.0)
    assert env.score(task, Completion("b", "26 or so")) == Outcome(
        0.0, "The answer ends with so, which is not the sum."
    )
    assert env.score(task, Completion("c", " ")) == Outcome(0.0, "The answer is empty.")
    run = trained(model, tmp_path / "run", f"env={name}")
    assert [step.samples for step in run.steps] == [4, 4]
    assert run.steps[0].contexts == {"feedback": 4}
    assert run.steps[0].grad_norm > 0


def test_the_ten_lines_train_the_embedded_model_and_their_feedback_keeps_the_answer(tmp_path: Path):
    example = runpy.run_path(str(EXAMPLES / "ten_lines.py"))
    reward, rows = example["reward"], example["ROWS"]
    small = {"tasks_per_step": 3, "rollouts_per_task": 4, "progress": False}
    run = sd.train(env=reward, data=rows, steps=1, out=tmp_path / "run", **small)
    assert run.steps[0].samples > 0
    assert run.steps[0].grad_norm > 0
    for task in sd.load_data(rows):
        line = task["line"]
        assert reward(task, f"def f(x):\n    x = {line}\n    return x") == (1.0, "")
        score, feedback = reward(task, "def f(x):\n    return x")
        assert (score, task["case"] in feedback, line in feedback) == (0.0, True, False)


def test_the_tasks_are_solved_by_the_obvious_programs():
    tasks = {task.id: task for task in load_data(EXAMPLES / "my_tasks.jsonl")}
    answers = {
        "double": "def double(xs):\n    return [2 * x for x in xs]",
        "initials": "def initials(text: str) -> str:\n    return ''.join(word[0].upper() for word in text.split())",
        "sum": "import sys\nprint(sum(int(line) for line in sys.stdin))",
    }
    pairs = [(tasks[name], Completion(name, f"```python\n{code}\n```")) for name, code in answers.items()]
    env = CodeEnvironment()
    assert [outcome.reward for outcome in env.score_batch(pairs)] == [1, 1, 1]
    assert [outcome.reward for outcome in env.for_evaluation().score_batch(pairs)] == [1, 1, 1]
    wrong = env.score(tasks["double"], Completion("w", "```python\ndef double(xs):\n    return xs + xs\n```"))
    assert wrong.reward == 0
    assert "[1, 2, 1, 2]" in wrong.feedback


def test_a_run_on_the_tasks(model: str, tmp_path: Path):
    run = trained(model, tmp_path / "run", f"data={EXAMPLES / 'my_tasks.jsonl'}")
    assert run.config["settings"]["env"]["name"] == "code"
    assert {rollout.task for rollout in run.rollouts()} == {"double", "initials", "sum"}
    assert all(rollout.feedback for rollout in run.rollouts())


def test_the_method_credits_and_trains(model: str, tmp_path: Path):
    method = get_method(METHOD, {"reward": 0.25})
    task = Task("t", ())
    outcomes = (Outcome(1.0), Outcome(0.0, "wrong"), Outcome(0.0))
    rollouts = [Rollout(task, (), Completion(str(n), ""), outcome) for n, outcome in enumerate(outcomes)]
    rollouts.append(Rollout(task, (), Completion("3", ""), drop=DropReason.ENV_RAISED))
    success, failure, no_signal_steps, dropped = method.credits(RolloutGroup(task, tuple(rollouts)))
    assert (success.advantage, success.distil) == (0.25, 0.0)
    assert (failure.advantage, failure.distil, failure.context.feedback) == (0.0, 1.0, "wrong")
    assert (no_signal_steps, dropped) == (DropReason.NO_CONTEXT, DropReason.ENV_RAISED)
    run = trained(model, tmp_path / "run", f"method={METHOD}", f"env={EXAMPLES / 'my_env.py'}", "method.reward=0.5")
    assert run.steps[-1].samples == 4
    assert run.config["settings"]["method"] == {"name": METHOD, "reward": 0.5}
    assert run.config["settings"]["optimiser"]["weight_decay"] == 0.0, "what the method needs of a run"


def test_its_relative_learns_from_the_same_lessons_in_another_way(model: str, tmp_path: Path):
    method = f"{EXAMPLES / 'my_method.py'}:Hints"
    loss_spec = get_method(method, {}).loss_spec(1.0)
    assert (loss_spec.support, loss_spec.shaping) == (SampledToken(), Additive(clipping=Tanh(1.0)))
    run = trained(model, tmp_path / "run", f"method={method}", f"env={EXAMPLES / 'my_env.py'}")
    assert run.steps[0].contexts == {"feedback": 4}
    assert run.steps[0].grad_norm > 0


def test_the_strategy_reads_the_newest_feedback_learns_and_resumes(model: str, tmp_path: Path):
    name = f"{EXAMPLES / 'my_strategy.py'}:Reminded"
    own = [
        "env=" + f"{EXAMPLES / 'my_env.py'}:env",
        f"model={model}",
        "device=cpu",
        "sampling.max_new_tokens=8",
    ]
    config = solve_config(
        name, [*own, "strategy.batch=2", "strategy.before=Wrong:"], tasks=["12"], limits={"budget": 4}
    )
    assert default_path(config).name == "solve-my_strategy-my_env-seed0"
    again = config_from(solve_settings(config))
    assert solve_settings(again) == solve_settings(config), "a resume finds it by its file"
    assert again.strategy.prompts.__code__ == config.strategy.prompts.__code__
    [found] = solve(config, out=tmp_path / "search")
    assert found.attempts == 4
    run = read_run(tmp_path / "search" / "000-12")
    assert [step.samples for step in run.steps] == [2, 2]
    assert ["Wrong:" in rollout.prompt for rollout in run.rollouts()] == [False, False, True, True]
    with pytest.raises(ConfigError, match="is no strategy"):
        solve_config(METHOD)


def test_a_run_is_named_after_the_files_it_uses(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    starts: list[RunStart] = []
    monkeypatch.chdir(tmp_path)
    settings = [f"model={model}", f"method={METHOD}", f"env={EXAMPLES / 'my_env.py'}", "steps=1"]
    train(load_config(None, [*settings, *SMALL[1:]]), lambda e: starts.append(e) if isinstance(e, RunStart) else None)
    assert starts[0].path == Path("runs/my_method-my_env-seed0")
    assert short_name("sdpo") == "sdpo"


def test_the_commands_of_the_examples(model: str, tmp_path: Path):
    """As a user types them, from the directory of the repository."""
    base = [sys.executable, "-m", "selfdistill"]
    out = tmp_path / "run"
    line = ["train", "--env", "examples/my_env.py:env", "--method", "examples/my_method.py:Lessons"]
    settings = ["--model", model, "--out", str(out), "method.reward=0.5", *SMALL]
    subprocess.run([*base, *line, *settings], cwd=ROOT, check=True, capture_output=True)
    assert read_run(out).summary is not None
    listed = subprocess.run(
        [*base, "methods", "examples/my_method.py:Lessons"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "method.reward" in listed.stdout


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "mine.py:Mine", "there is no such file"),
        ("class Mine: ...", "mine.py:Mine", "is no method"),
        ("class Mine: ...", "mine.py:Main", "did you mean 'Mine'?"),
        ("x = 1", "mine.py:Mine", "define Mine in it"),
        ("import dataclasses\nraise KeyError('a')", "mine.py:Mine", "KeyError: 'a' (line 2)"),
        ("def broken(:", "mine.py:Mine", "SyntaxError"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    source = 'x'\n    teacher = None",
            "mine.py:Mine",
            "derives from `selfdistill.Method`",
        ),
    ],
)
def test_a_file_that_holds_no_method(tmp_path: Path, text: str | None, name: str, message: str):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError) as raised:
        find_method(str(tmp_path / name))
    assert message in str(raised.value)


def test_dataclasses_with_postponed_annotations_can_be_loaded(tmp_path: Path):
    text = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class A:
    k: ClassVar[int] = 3
    x: int = 1
"""
    (tmp_path / "late.py").write_text(text)
    found, module = load_from_file(str(tmp_path / "late.py"), default="A")
    assert (found(), found.k) == (module.A(1), 3)
