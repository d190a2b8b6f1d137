"""Whatever is written on the command line or in a file of settings: a message and exit code 2, and nothing else."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app

runner = CliRunner()
WORLD = (
    "from selfdistill import Message, Outcome, Task\n"
    "def tasks():\n    return [Task('a', (Message('user', 'What is seven plus five?'),))]\n"
    "def environment(task, completion):\n    return Outcome(0.0, 'no')\n"
)
FILES = {
    "world.py": WORLD,
    "tasks.jsonl": json.dumps({"prompt": "f", "fn_name": "f", "tests": [{"input": [1], "output": 2}]}) + "\n",
    "file": "x",
    "types.toml": 'steps = "x"\n[optimiser]\nlr = [1]\n',
    "twice.toml": "steps = 1\nsteps = 2\n",
    "number.toml": "method = 3\n",
    "name.toml": "[method]\nname = ['a']\n",
    "tables.toml": '[[method]]\nname = "sdpo"\n',
    "dates.toml": "steps = 2020-01-01\nmodel = 07:00:00\n",
    "list.toml": "environment = []\n",
    "nested.toml": "a = " + "[" * 3000 + "]" * 3000,
    "deep.toml": ".".join(["a"] * 3000) + " = 1\n",
    "kinds.toml": "teacher = 3\nlora = 4\n",
    "infinite.toml": "steps = inf\n",
    "empty_key.toml": '"" = 1\n',
    "within.toml": "[optimiser.lr]\nx = 1\n",
    "broken.jinja": "{% for",
    "edited/config.json": "{}",
    "searched/config.json": '{"settings": {"solve": 3}}',
    "listed/config.json": '{"settings": []}',
    "typed/config.json": '{"settings": {"steps": "x"}}',
    "contest/contest.json": '{"ways": 3}',
    "folder/x": "",
    "folder.jsonl/x": "",
    "folder.py/x": "",
    "folder.toml/x": "",
}
SETTINGS = [name for name in FILES if name.endswith(".toml")]
LINES = [
    *(f"train --config {name}" for name in [*SETTINGS, "folder", "folder.toml", "nowhere.toml", "''"]),
    *(f"train --data {name}" for name in ("folder", "folder.jsonl", "nowhere.jsonl", "file")),
    *(
        f"train --env {name}"
        for name in ("folder.py:x", ":environment", "world.py:nowhere", "''", "world.py:environment:x")
    ),
    *(f"train --method {name}" for name in ("''", "folder.py", "world.py:environment")),
    *(f"train --model {name}" for name in ("''", "folder", "file", "'a b'", "sapling-huge")),
    *(f"train --resume {name}" for name in ("edited", "searched", "listed", "typed", "folder", "file", "nowhere")),
    *(f"train {text}" for text in ("--seed -1", f"--seed {10**30}", "--steps -1", "--steps 1e3", "--steps 0")),
    *(f"train {text}" for text in ("=3", "3", "a=", "steps=", "seed=true", "optimiser=3", "optimiser.lr.x=3")),
    *(f"train {text}" for text in ("method.x.y=1", "method.context.kind=x", "lora.targets=[1]", "a.b.c.d=1")),
    *(f"train device={name}" for name in ("nowhere", "cuda:99")),
    "train dtype=int8",
    "train chat_template=broken.jinja --env world.py:environment",
    "train chat_template=nowhere --env world.py:environment",
    "train chat_template=folder --env world.py:environment",
    "train teacher.kind=other",
    "train env.verbs=99999",
    "train env.steps=[9]",
    "train env.verbs=3 --data tasks.jsonl",
    "train thinking=on",
    "train thinking=maybe",
    "train --out file --env world.py:environment",
    "train --out file/run --env world.py:environment",
    "train --out /proc/run --env world.py:environment",
    *(f"eval {text}" for text in ("--rollouts 0", "--rollouts -1", "--tasks 0", "--temperature nan")),
    *(f"eval {text}" for text in ("--temperature -1", "--temperature inf", "--data folder", "--teacher --tasks 0")),
    *(f"solve {text}" for text in ("--budget -1", "--budget 0", "--unit hours", "--strategy x", "--strategy ''")),
    *(f"solve {text}" for text in ("--strategy folder.py", "--task x", "--task folder.jsonl", "--task ''")),
    *(f"solve --resume {name}" for name in ("folder", "edited", "searched", "nowhere", "file")),
    *(f"solve {text}" for text in ("strategy.batch=0", "strategy.x=1", "strategy=3", "--keep --strategy best-of-k")),
    *(f"compare {text}" for text in ("", "nowhere", "file", "folder", "listed", "folder --plot x.nothing")),
    *(
        f"compare --env world.py:environment --out out {text}"
        for text in (
            "--arm ''",
            "--arm ' '",
            "--arm x",
            "--arm 'x: '",
            "--arm ': hybrid'",
            "--arm 'hybrid strategy.batch'",
            '--arm "hybrid \'x"',
            "--arm 'hybrid seed=3'",
            "--arm 'hybrid steps=3'",
            "--arm hybrid --arm hybrid",
            "--arm 'hybrid strategy.batch=0'",
            "--arm 'hybrid optimiser.lr=nan'",
            "--arm hybrid --seeds 0",
            "--arm hybrid --seeds -3",
            f"--arm hybrid --seeds {10**12}",
            "--arm hybrid --seed -1",
            "--arm hybrid --jobs 0",
            "--arm hybrid --jobs -1",
            "--arm hybrid --budget 0",
            "--arm hybrid --budget -1",
            "--arm hybrid --task x",
            "--arm hybrid --plot folder",
            "--arm hybrid --plot file/x.png",
            "--arm folder.py",
        )
    ),
    "compare --arm hybrid --env world.py:environment --out file",
    *(f"compare --resume {name}" for name in ("folder", "strategy_comparison", "nowhere", "file")),
    *(f"credit {text}" for text in ("--question x", "--question '' --answer y --feedback z", "--advantage nan")),
    *(f"credit {text}" for text in ("--top 0", "--top -1", "--advantage inf", "--run folder", "--uid x")),
    *(f"credit --uid x --run {name}" for name in ("nowhere", "file", "folder", "typed")),
    *(f"demo {text}" for text in ("--completions 0", "--completions -1", "--completions 1", "--seed -1")),
    *(f"methods {name}" for name in ("x", "''", "folder.py", "world.py:environment")),
    *(f"environments {name}" for name in ("x", "''", "world.py:environment")),
    *(f"check {text}" for text in ("--data nowhere.jsonl", "--data folder", "--data tasks.jsonl --answers folder")),
    "nothing",
    "--nothing",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bad-input")
    for name, text in FILES.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    return place


@pytest.mark.parametrize("line", LINES)
def test_bad_input_is_a_message_and_nothing_is_written(line: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    before = {path for path in folder.rglob("*") if "__pycache__" not in str(path)}
    result = runner.invoke(app, shlex.split(line), env={"COLUMNS": "200"})
    assert result.exit_code == 2, f"{result.exception!r}\n{result.output}"
    assert result.stderr.strip()
    assert "Traceback" not in result.output
    assert {path for path in folder.rglob("*") if "__pycache__" not in str(path)} == before


def test_the_budget_of_the_demo_is_named_with_what_a_step_takes() -> None:
    result = runner.invoke(app, ["demo", "--completions", "0"])
    assert "at least the 128 completions of one step" in result.stderr
    assert "--completions 0" in result.stderr


def test_a_contest_that_no_way_could_begin_leaves_nothing_behind(folder: Path, monkeypatch) -> None:
    """So that the same command with a correct model is no other strategy comparison."""
    monkeypatch.chdir(folder)
    arms = "compare --arm best-of-k --env world.py:environment --out contested --seeds 1 --budget 1 --model folder"
    result = runner.invoke(app, shlex.split(arms), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "a model directory has config.json" in result.stderr
    assert not (folder / "contested").exists()
