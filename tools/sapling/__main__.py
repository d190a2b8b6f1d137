"""Commands of the embedded model: `python -m tools.sapling grow` and `python -m tools.sapling card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from selfdistill.cli.guard import Guarded
from selfdistill.errors import ConfigError, ModelError, nearest
from selfdistill.models.load import load_policy
from tools.sapling.card import card_text, measure_card
from tools.sapling.grow import grow as run_growing
from tools.sapling.recipe import RECIPES

app = typer.Typer(cls=Guarded, no_args_is_help=True, add_completion=False, help=__doc__)


@app.command()
def grow(
    out: Annotated[Path, typer.Option(help="Directory for the state and, at the end, the model.")] = Path("grown"),
    size: Annotated[str, typer.Option(help="Recipe: sapling or sapling-small.")] = "sapling",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    compile_model: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the model first.")] = True,
) -> None:
    """Grow a sapling: up to two hours on two cores. Run again on the same directory, it resumes."""
    if size not in RECIPES:
        raise ConfigError("unknown size", got=size, do=nearest(size, RECIPES))
    torch.set_num_threads(threads)
    typer.echo("the first round takes longest: the model is compiled for every length of episodes")
    for now in run_growing(RECIPES[size], out, device=device, compile_model=compile_model):
        typer.echo(
            f"round {now.round}/{now.rounds}  tokens {now.tokens / 1e6:.1f} M  "
            f"answers {now.answer_loss:.3f} nats a token  {now.seconds / 60:.0f} min"
        )
    typer.echo(f"model: {out / 'model'}")


@app.command()
def card(
    model: Annotated[str, typer.Option(help="sapling, sapling-small, or the directory of a grown model.")] = "sapling",
    n: Annotated[int, typer.Option(help="Tasks of each row.")] = 600,
    out: Annotated[Path, typer.Option(help="File for the card.")] = Path("CARD.md"),
) -> None:
    """Measure a sapling on held-out words and programs, and write its card."""
    policy = load_policy(model, device="cpu", trained=False)
    file = Path(policy.base.name_or_path or model) / "growth.json"
    try:
        growth = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        do = "name sapling, sapling-small, or a model that `python -m tools.sapling grow` made"
        raise ModelError("this model has no record of how it was grown", got=f"{file} ({error})", do=do) from error
    lines = measure_card(policy, typer.echo, n=n)
    out.write_text(card_text(model, lines, growth), encoding="utf-8")
    typer.echo(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    app()
