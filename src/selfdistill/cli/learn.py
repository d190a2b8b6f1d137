"""`selfdistill learn`: a model learns what documents say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfdistill.cli import arguments as arg
from selfdistill.cli.arguments import as_overrides, flag, optional
from selfdistill.cli.output import print_settings, print_table
from selfdistill.runs import fresh_path
from selfdistill.view.progress import RunDisplay

if TYPE_CHECKING:
    from selfdistill.training.documents import Compared

OWN = "documents."


def learn(
    documents: Annotated[
        list[str] | None,
        arg.argument(
            "Text files, or folders of .md and .txt files; and settings KEY=VALUE, of the run or documents.KEY.",
            "DOCS... [KEY=VALUE]",
        ),
    ] = None,
    config: arg.ConfigFile = None,
    model: arg.Model = None,
    known: Annotated[
        str | None,
        optional("JSONL file of tasks {prompt, answer} to measure forgetting. (default: short facts)"),
    ] = None,
    steps: Annotated[
        int | None, optional("Training steps. (default: until each question was drawn documents.passes times)")
    ] = None,
    seed: arg.Seed = None,
    out: Annotated[Path | None, optional("Directory of all results. (default: runs/learn)")] = None,
    resume: Annotated[Path | None, optional("Directory to resume, with its settings.")] = None,
    list_settings: Annotated[bool, flag("--list-settings", "Print the settings of documents and exit.")] = False,
) -> None:
    """Learn what documents say: the model answers questions about them without reading them.

    The model writes questions about each passage, keeps those that it answers alike from the passage, and is trained on
    its own answers, towards what it would answer with the passage in its context.
    """
    from selfdistill.config import load_config, parse_override
    from selfdistill.errors import ConfigError
    from selfdistill.options import Where, build
    from selfdistill.training import documents as learning
    from selfdistill.training.document_questions import DocumentOptions

    words = documents or []
    overrides = [parse_override(word) for word in words if "=" in word and not Path(word).exists()]
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    own = {key.removeprefix(OWN): value for key, value in overrides if key.startswith(OWN)}
    own |= {"known": known} if known else {}
    options = build(DocumentOptions, own, Where(OWN.rstrip(".")))
    if list_settings:
        print_settings(options, prefix=OWN)
        return
    if resume is not None:
        given = {"config": config, "model": model, "known": known, "steps": steps, "seed": seed, "out": out}
        arg.refuse([*words, *arg.given(given)], "what is resumed keeps its documents and settings")
        learning.refuse_other(resume)
        path = resume
    else:
        if not paths:
            raise ConfigError("no document is named", do="name files or folders: selfdistill learn notes/ --model DIR")
        path = out or fresh_path(Path("runs"), "learn")
        chosen = [
            *as_overrides({"model": model, "steps": steps, "seed": seed}),
            *((key, value) for key, value in overrides if not key.startswith(OWN)),
        ]
        settings = load_config(config, chosen, base=learning.SETTINGS)
        fixed = "steps" in (key for key, _ in chosen)
        learning.prepare(paths, settings, options, path, steps=fixed)
    with RunDisplay("learn") as display:
        found = learning.learn(path, display)
    _print(found, path, learning.model_of(path))


def _print(found: Sequence[Compared], path: Path, model: Path) -> None:
    rows = [(one.name, str(one.before), str(one.after), str(one.after.n)) for one in found]
    print_table(("right answers, 95 % interval", "before", "after", "answers"), rows)
    for one in found:
        if one.name == found[-1].name:
            typer.echo(
                f"known tasks changed by {one.change.value:+.2f} ({one.change.low:+.2f} – {one.change.high:+.2f})"
            )
    typer.echo(f"questions and answers:  {path}")
    typer.echo(f"the run:                selfdistill view {path / 'run'}")
    typer.echo(f"talk to the model:      selfdistill chat --model {model}")
    typer.echo(f"its weights, for transformers and peft: {model}")
