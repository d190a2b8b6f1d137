"""Writes docs/cli.md from the commands themselves: what `--help` says, and every setting.

python scripts/make_docs.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from selfdistill.cli import app
from selfdistill.config import FOR_MODEL, ReplayOptions, RunConfig
from selfdistill.envs.registry import ENVIRONMENTS, environment_options
from selfdistill.live.learning import LiveLearning
from selfdistill.methods import METHODS, get_method
from selfdistill.models.load import LoraOptions
from selfdistill.models.teacher import Ema, Snapshot, TrustRegion
from selfdistill.options import Setting, settings_of
from selfdistill.runs.scale import Colocate, SamplerOptions
from selfdistill.training.documents import DocumentOptions

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Commands and settings

This page is written by `scripts/make_docs.py` from the program itself; `selfdistill COMMAND --help` prints the same.

Exit codes: 0 done; 1 (`check` alone) rows or answers with problems; 2 an input to correct: what was
wrong, what was got, why it matters and what to do; 3 stopped by guards, with the last good checkpoint back; 130 stopped
by Ctrl-C, after the step was finished and saved.
"""

OPTIONAL = (
    ("lora", LoraOptions(), "lora."),
    ("replay", ReplayOptions(), "replay."),
    ("scale.sampler", SamplerOptions(), "scale.sampler."),
    ("scale.sampler.colocate", Colocate(), "scale.sampler.colocate."),
    ("teacher.kind=ema", Ema(), "teacher."),
    ("teacher.kind=snapshot", Snapshot(), "teacher."),
    ("teacher.kind=trust_region", TrustRegion(), "teacher."),
)


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its whole name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    for key, sub in (below or {}).items():
        yield from commands(sub, f"{name} {key}")


def command_text(name: str, command: Any) -> str:
    """One command: usage, purpose, a table of what it takes."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, "[OPTIONS]", *(_metavar(p) for p in arguments)])
    rows = [
        f"| `{_names(p)}` | {_cell(p.help)}{_default(p)} |"
        for p in command.params
        if p.name != "help" and not getattr(p, "hidden", False)
    ]
    table = ["| takes | meaning |", "|---|---|", *rows] if rows else []
    return "\n".join([f"### `{name}`", "", f"`{usage}`", "", " ".join((command.help or "").split()), "", *table, ""])


def settings_table(settings: Iterator[Setting]) -> str:
    """Key, default, what it takes, meaning."""
    rows = [
        f"| `{s.key}` | `{json.dumps(s.value, ensure_ascii=False)}` | {_cell(s.expected)} | {_cell(s.text)} |"
        for s in settings
    ]
    return "\n".join(["| setting | default | takes | meaning |", "|---|---|---|---|", *rows, ""])


def cli_page() -> str:
    """The whole page."""
    program = typer.main.get_command(app)
    parts = [HEAD, "## Commands\n", *(command_text(*entry) for entry in commands(program, "selfdistill"))]
    parts += ["## Settings of a run\n", _settings_head(), settings_table(settings_of(RunConfig()))]
    parts += ["## Optional tables of a run\n", "Absent by default; setting one key of a table adds the table.\n"]
    parts += [_section(title, value, prefix) for title, value, prefix in OPTIONAL]
    parts += ["## Settings of learning from a journal\n", "Of `serve --learn` and `journal learn`.\n"]
    parts += [settings_table(settings_of(LiveLearning()))]
    parts += ["## Settings of learning from documents\n", "Of `learn`.\n"]
    parts += [settings_table(settings_of(DocumentOptions(), "documents."))]
    parts += ["## Settings of methods\n"]
    parts += [_section(f"method={name}", get_method(name, {}), "method.") for name in METHODS]
    parts += ["## Settings of environments\n"]
    parts += [_section(f"env={name}", environment_options(name, {}), "env.") for name in ENVIRONMENTS]
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, value: Any, prefix: str) -> str:
    return f"### `{title}`\n\n{settings_table(settings_of(value, prefix))}"


def _settings_head() -> str:
    models: dict[str, list[str]] = {}
    for model, settings in FOR_MODEL.items():
        written = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in _flat(settings))
        models.setdefault(written, []).append(f"`{model}`")
    own = "; ".join(f"{' and '.join(names)} with {written}" for written, names in models.items())
    return (
        "Write them in a TOML file for `--config`, or as `key=value` on the command line. A method may ask for other "
        f"defaults (`selfdistill train --list-settings method=NAME`), and so do small models: {own}.\n"
    )


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return _metavar(parameter)
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.name.upper()}"


def _metavar(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    name = name if parameter.required else f"[{name}]"
    return f"{name}..." if parameter.nargs == -1 else name


def _default(parameter: Any) -> str:
    told = parameter.param_type_name == "option" and parameter.show_default and not parameter.is_flag
    return f" (default: {parameter.default})" if told and parameter.default is not None else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(cli_page(), encoding="utf-8")
