"""Options of the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selfdistill.errors import ConfigError, DataError
from selfdistill.files import is_whole, read_text


def optional(text: str, *names: str) -> Any:
    """An option without a default of its own; its help text names what applies in its place."""
    return typer.Option(*names, help=text, show_default=False)


def _read(value: str | None) -> str | None:
    """The text itself, or that of the file it names after an @, without the line ends behind it. Raises `DataError`."""
    if value is not None and not is_whole(value):
        raise DataError("a text is no UTF-8", got=ascii(value)[:200], do="give it in UTF-8, or as @FILE")
    if value is None or not value.startswith("@"):
        return value
    return read_text(value[1:], what="the text", do="check the name after the @").rstrip("\r\n")


def text_option(meaning: str) -> Any:
    """An option that takes a text, or the name of its file."""
    return typer.Option(help=f"{meaning} Text, or @FILE.", show_default=False, callback=_read)


def flag(name: str, text: str) -> Any:
    """An option that is given or not."""
    return typer.Option(name, help=text)


def argument(text: str, metavar: str | None = None) -> Any:
    """What is written without the name of an option."""
    return typer.Argument(metavar=metavar, help=text, show_default=False)


Overrides = Annotated[
    list[str] | None,
    argument(
        "Settings by dotted key, such as optimiser.lr=1e-5 teacher.kind=ema; `selfdistill train --list-settings` "
        "lists them.",
        "KEY=VALUE",
    ),
]
ConfigFile = Annotated[Path | None, optional("TOML or JSON file of settings.", "--config", "-c")]
Model = Annotated[
    str | None,
    optional("Directory or hub name of a causal language model; sapling is embedded. (default: sapling)"),
]
MethodName = Annotated[str | None, optional("Training method; see `selfdistill methods`. (default: sdpo)")]
EnvName = Annotated[
    str | None,
    optional("Environment that scores answers; see `selfdistill envs`. (default: verbs; code with --data)"),
]
Data = Annotated[
    list[str] | None,
    optional(
        "Tasks: a JSONL, JSON or Parquet file, or a data set of the hub. Repeatable: several are mixed, by weight as "
        "FILE=WEIGHT. (default: the environment's own tasks)"
    ),
]
EvalData = Annotated[str | None, optional("Held-out tasks, as --data. (default: those of the environment)")]
Seed = Annotated[int | None, optional("Seed of every random choice. (default: 0)")]
Track = Annotated[list[str] | None, optional("Log to wandb, trackio or tensorboard as well; repeatable.")]
Steps = Annotated[int | None, optional("Training steps (generation batches). (default: 40)")]


def as_overrides(flags: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The options that were given, as settings."""
    return [(key, mixture(v) if isinstance(v, list) else v) for key, v in flags.items() if v is not None and v != []]


def mixture(sources: Sequence[str]) -> str | list[dict[str, Any]]:
    """The setting `data` for the values of --data: one name as it is, else names with their weights, if no file has
    that name as a whole. Raises `ConfigError`."""
    if len(sources) == 1:
        return sources[0]
    sets = list[dict[str, Any]]()
    for text in sources:
        name, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists():
            sets.append({"source": text})
            continue
        try:
            sets.append({"source": name, "weight": float(weight)})
        except ValueError:
            what, do = "the weight of a data set should be a number", f"write {name}=2"
            raise ConfigError(what, got=f"--data {text}", do=do) from None
    return sets


def given(options: Mapping[str, object]) -> list[str]:
    """The names of the options that were given, as they are written."""
    return [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, [])]


def refuse(words: Sequence[str], what: str, *, why: str = "", do: str = "leave these options out") -> None:
    """Raises `ConfigError` for options and settings that would not be read, where there are any."""
    if words:
        raise ConfigError(what, got=", ".join(words), why=why, do=do)
