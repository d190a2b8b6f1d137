"""The documents are true: their code runs, their settings exist, their links and the tests they name are there."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import typer

import selfdistill as sd
from selfdistill.cli import app
from selfdistill.config import RunConfig, from_settings, load_config, parse_override
from selfdistill.data.load import load_tasks, question_rows
from selfdistill.envs.judge import JudgeOptions
from selfdistill.methods import METHODS, Credit
from selfdistill.options import build
from selfdistill.runs import EvalRecord, RolloutRecord, StepRecord, Summary
from selfdistill.runs.records import Accuracies, Finding, GuardRecord, PreflightRecord, ResumedRecord, TurnRecord
from selfdistill.runs.stats import Estimate
from selfdistill.test_time.comparison import StrategyComparison, parse_arm
from selfdistill.training.document_questions import DocumentOptions
from selfdistill.types import DropReason, Outcome, Task
from tiny_models import tiny_policy_dir

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [*PAGES, *sorted(path for path in (ROOT / "examples").rglob("*.*") if "__pycache__" not in path.parts)]


def blocks(page: Path, tag: str) -> list[str]:
    """The fenced blocks of one language; "" for those without."""
    found: list[str] = []
    fence = None
    for line in page.read_text().splitlines(keepends=True):
        if line.startswith("```"):
            fence = line.strip("`\n") if fence is None else None
            found += [""] if fence == tag else []
        elif fence == tag:
            found[-1] += line
    return found


def every_block(tag: str) -> list[object]:
    return [pytest.param(text, id=f"{page.name}-{n}") for page in PAGES for n, text in enumerate(blocks(page, tag))]


@pytest.mark.parametrize("text", every_block("python"))
def test_python_blocks_run(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As modules: what stands under `if __name__ == "__main__"` is compiled only. A tiny model takes the place of
    others, and learns for a step."""

    def train_tiny(model: str, **given: object) -> sd.Run:
        tiny = str(tiny_policy_dir(tmp_path))
        small = {"steps": 1, "tasks_per_step": 2, "rollouts_per_task": 2, "sampling": {"max_new_tokens": 8}}
        run = train(tiny, **{**given, **small}, out=tmp_path / "run", device="cpu", progress=False)
        assert [step.samples for step in run.steps] == [4]
        return run

    def on_tiny(function: Callable[..., object], **small: object) -> Callable[..., object]:
        small |= {"device": "cpu", "progress": False, "sampling": {"max_new_tokens": 8}}
        return lambda model, **given: function(str(tiny_policy_dir(tmp_path)), **given, **small)

    train = sd.train
    monkeypatch.setattr(sd, "train", train_tiny)
    monkeypatch.setattr(sd, "evaluate", on_tiny(sd.evaluate))
    monkeypatch.setattr(sd, "solve", on_tiny(sd.solve, out=tmp_path / "search"))
    monkeypatch.chdir(ROOT)
    exec(compile(text, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("text", every_block("toml"))
def test_toml_blocks_are_settings(text: str):
    from_settings(tomllib.loads(text))


@pytest.mark.parametrize("text", every_block("json"))
def test_json_rows_are_tasks(text: str, tmp_path: Path):
    json.loads(text)
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    own = "tests" not in text and "test_" not in text and '"test"' not in text
    assert len(question_rows(file) if own else load_tasks(file)) == 1


def test_command_lines_are_understood():
    """Every option exists, and every KEY=VALUE is a setting."""
    program = typer.main.get_command(app)
    plain = [text for page in PAGES for text in blocks(page, "")]
    texts = [line.split("#")[0] for text in plain for line in text.replace("\\\n", "").splitlines()]
    lines = [shlex.split(text) for text in texts if "selfdistill " in text]
    for words in (line for line in lines if line[:1] == ["selfdistill"] or line[1:2] == ["selfdistill"]):
        name, *rest = words[words.index("selfdistill") + 1 :]
        command = program.commands[name]
        command = command.commands[rest.pop(0)] if hasattr(command, "commands") else command
        commands = (
            [command, program.commands["serve"]] if "--" in rest else [command]
        )  # after the dashes, those of both
        known = {option for each in commands for parameter in each.params for option in parameter.opts} | {"--"}
        assert {word for word in rest if word.startswith("-")} <= known, words
        arms = [parse_arm(word) for flag, word in pairwise(rest) if flag == "--arm"]
        assert not arms or StrategyComparison(tuple(arms), ("task",)).config(arms[-1])
        weighted = [word for flag, word in pairwise(rest) if flag == "--data"]
        settings = [word for word in rest if "=" in word and " " not in word and word not in weighted]
        load_config(None, [word for word in settings if not word.startswith(("judge.", "documents."))])
        for prefix, kind in (("judge.", JudgeOptions), ("documents.", DocumentOptions)):
            own = [parse_override(word.removeprefix(prefix)) for word in settings if word.startswith(prefix)]
            build(kind, dict(own))


def test_relative_links_lead_somewhere():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)", page.read_text())]
    assert not [entry for entry in links if "://" not in entry[1] and not (entry[0].parent / entry[1]).exists()]


def test_tests_and_files_that_are_named_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    for file, name in re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", text):
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
    for path in re.findall(r"`((?:tests|docs|examples|scripts|requirements|tools)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py|(?:[a-z_]+/)+)`", text):
        assert any((base / path).exists() for base in (ROOT / "src" / "selfdistill", ROOT)), path


def test_modules_that_are_run_by_name_start():
    """From the root of a clone, as one types the command: without the paths that pytest adds."""
    texts = [page.read_text() for page in (*PAGES, ROOT / "EXPERIMENTS.md", *(ROOT / "tests" / "live").glob("*.py"))]
    names = {name for text in texts for name in re.findall(r"python -m ((?:tests|benchmarks)\.[\w.]*\w)", text)}
    assert not [name for name in names if importlib.util.find_spec(name) is None]
    run = sorted(name for name in names if name.startswith("tests."))
    assert run
    subprocess.run([sys.executable, "-c", f"import {', '.join(run)}"], cwd=ROOT, check=True)
    assert not [text for text in texts if "python tests/" in text]


def test_no_unfinished_words():
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|prototype|WIP|coming soon)\b", flags=re.IGNORECASE)
    assert not [(file, word) for file in WRITTEN for word in unfinished.findall(file.read_text())]


def test_the_page_of_commands_is_what_the_program_says():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text() == script.cli_page(), "stale: run python scripts/make_docs.py"


def test_the_contract_of_run_directories_names_every_field():
    text = (ROOT / "docs" / "run-directory.md").read_text()
    rows, others = (
        (RolloutRecord, TurnRecord),
        (EvalRecord, PreflightRecord, GuardRecord, Finding, ResumedRecord, Estimate),
    )
    for record in (StepRecord, *rows, *others, Summary, Accuracies):
        names = [field.name for field in fields(record) if field.name not in ("event", "extra")]
        table = text.split("## rollouts.jsonl")[record in rows] if record in (StepRecord, *rows) else text
        assert not [name for name in names if f"`{name}`" not in table]
    assert not [reason for reason in DropReason if f"`{reason}`" not in text]


def test_curves_of_the_pages_have_the_names_that_trackers_log():
    """Both take them from the fields of a step's record; those of its tables stand in the contract."""
    script = (ROOT / "src" / "selfdistill" / "view" / "site" / "static" / "curves.js").read_text()
    text = (ROOT / "docs" / "run-directory.md").read_text()
    titles = script.partition("const CURVES = [")[2].partition("\n];")[0]
    drawn = [name for names in re.findall(r"\[((?:\"[\w/]+\"(?:, )?)+)\]", titles) for name in json.loads(f"[{names}]")]
    assert len(drawn) > 12
    for name in drawn:
        table, _, key = name.partition("/")
        assert table in {field.name for field in fields(StepRecord)}, name
        assert not key or f"`{key}`" in text, name


def test_the_whole_example_is_shown_and_the_readme_is_short_and_has_a_place_for_results():
    readme = (ROOT / "README.md").read_text()
    source = (ROOT / "examples" / "my_env.py").read_text().split('"""')[2].strip()
    assert source in (ROOT / "docs" / "training.md").read_text()
    assert len(readme.split()) < 900
    assert re.search(r"<!-- results:start -->\n.+\n<!-- results:end -->", readme, re.DOTALL)


def test_the_readme_states_the_lines_that_make_runs():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for line in ("-c requirements/pins.txt -r requirements/dev.txt -e .", "selfdistill demo", "python -m pytest -n 2"):
        assert line in readme
        assert line in makefile


def test_the_tree_names_every_module_at_the_top():
    tree = (ROOT / "CONTRIBUTING.md").read_text()
    top = (ROOT / "src" / "selfdistill").iterdir()
    names = [path.name + ("/" if path.is_dir() else "") for path in top if not path.name.startswith("_")]
    assert not [name for name in names if name != "py.typed" and name not in tree]


@pytest.mark.parametrize("name", METHODS)
def test_words_that_a_method_names_exist(name: str):
    """A row's key, a setting or a field that the text of a method names in backticks is one."""
    kind = METHODS[name]
    known = {field.name for owner in (kind, Task, Outcome, Credit, RunConfig) for field in fields(owner)} | set(METHODS)
    named = re.findall(r"`(?:Outcome\.)?([a-z_]+)`", kind.__doc__ or "")
    assert not [word for word in named if word not in known]


def test_every_key_of_a_row_is_documented():
    rows = (ROOT / "docs" / "data.md").read_text()
    keys = {field.name for field in fields(Task)} - {"messages", "spec"}
    assert not [key for key in keys if f"`{key}`" not in rows]
