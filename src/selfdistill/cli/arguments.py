"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def optional(text: str, *names: str) -> Any:
    """An option without a default of its own; its help text names what applies in its place."""
    return typer.Option(*names, help=text, show_default=False)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings by dotted key, such as optimiser.lr=1e-5 teacher.kind=ema; "
        "`selfdistill train --list-settings` lists them.",
        show_default=False,
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
Data = Annotated[str | None, optional("JSONL file of tasks. (default: the environment's own tasks)")]
Seed = Annotated[int | None, optional("Seed of every random choice. (default: 0)")]


def as_overrides(flags: Mapping[str, object]) -> list[tuple[str, object]]:
    """The options that were given, as settings."""
    return [(key, value) for key, value in flags.items() if value is not None]
