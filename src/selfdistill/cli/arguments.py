"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Any setting by its dotted key, as in optimiser.lr=1e-5 teacher.kind=ema. "
        "`selfdistill train --list-settings` prints all of them.",
        show_default=False,
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file of settings.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(
        help="Directory or hub name of a causal LM; sapling is embedded. (default: sapling)", show_default=False
    ),
]
MethodName = Annotated[
    str | None, typer.Option(help="How to learn; see `selfdistill methods`. (default: sdpo)", show_default=False)
]
EnvName = Annotated[
    str | None,
    typer.Option(help="Who scores; see `selfdistill envs`. (default: verbs; code with --data)", show_default=False),
]
Data = Annotated[
    str | None, typer.Option(help="JSONL file of tasks. (default: the environment's own tasks)", show_default=False)
]
Seed = Annotated[int | None, typer.Option(help="Decides every random choice. (default: 0)", show_default=False)]


def as_overrides(flags: Mapping[str, object]) -> list[tuple[str, object]]:
    """The options that were given, as settings."""
    return [(key, value) for key, value in flags.items() if value is not None]
