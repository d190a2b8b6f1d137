"""The commands of the embedded model: grow it again, measure it, write its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.display import RunDisplay
from selfdistill.cli.guard import Guarded

sapling = typer.Typer(
    name="sapling",
    cls=Guarded,
    no_args_is_help=True,
    help="The embedded model: grow it again from nothing, and measure what it can do.",
)


@sapling.command()
def grow(
    out: Annotated[Path, typer.Option(help="Folder for the growing state and, at the end, the model.")] = Path("grown"),
    size: Annotated[str, typer.Option(help="Which recipe: sapling or sapling-small.")] = "sapling",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    compile_model: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the model first.")] = True,
) -> None:
    """Grow a sapling. Takes up to two hours on two cores; started again, it goes on where it stopped."""
    import torch

    from selfdistill.errors import ConfigError, nearest
    from selfdistill.sapling.grow import grow as run_growing
    from selfdistill.sapling.recipe import RECIPES

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


@sapling.command()
def card(
    model: Annotated[str, typer.Option(help="sapling, another embedded size, or a model directory.")] = "sapling",
    n: Annotated[int, typer.Option(help="Tasks of each row.")] = 600,
    out: Annotated[Path, typer.Option(help="File for the card.")] = Path("CARD.md"),
) -> None:
    """Measure what a sapling can do, on words and programs it never met, and write its card."""
    from selfdistill.errors import ModelError
    from selfdistill.models.load import load_policy
    from selfdistill.sapling.card import card_text, measure_card

    policy = load_policy(model, device="cpu", trained=False)
    file = Path(policy.base.name_or_path or model) / "growth.json"
    try:
        growth = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        do = "name an embedded model, or one that `selfdistill sapling grow` made"
        raise ModelError("this model has no record of how it was grown", got=f"{file} ({error})", do=do) from error
    with RunDisplay() as display:
        lines = measure_card(policy, display.reporter("card"), n=n)
    out.write_text(card_text(model, lines, growth), encoding="utf-8")
    typer.echo(out.read_text(encoding="utf-8"))
