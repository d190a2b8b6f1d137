"""Turns errors that a user can fix into messages without a traceback, and words of earlier versions into errors."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from selfdistill.errors import COLLAPSED, INTERRUPTED, USER_ERROR, CollapseError, SelfDistillError, is_out_of_memory
from selfdistill.runs.events import Interrupted
from selfdistill.runs.old_names import WORDS


class Guarded(TyperGroup):
    """Runs a command. Exit codes: 2 an error that the user can fix, 3 guards stopped a run, 130 Ctrl-C."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses words of earlier versions, naming those of today."""
        for word in (*args[:1], *(word.split("=")[0] for word in args)):
            if word in WORDS:
                raise typer.BadParameter(f"{word} has another name: write {WORDS[word]}", ctx=ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Turns our errors and Ctrl-C into messages on standard error."""
        try:
            return super().invoke(ctx)
        except SelfDistillError as error:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(COLLAPSED if isinstance(error, CollapseError) else USER_ERROR) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            typer.echo(f"OutOfMemoryError: out of memory\n  got  {error}\n  do   lower sampling.batch_tokens", err=True)
            raise typer.Exit(USER_ERROR) from None
        except Interrupted as stop:
            typer.echo(
                f"\nStopped{stop.after}; what was done is saved. Resume with:\n"
                f"  selfdistill {stop.command} --resume {stop.path}",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        except KeyboardInterrupt:
            typer.echo("\nStopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
