"""`selfdistill journal`: look into the journal of a served model, search, export and delete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdistill.cli.arguments import argument, flag, optional
from selfdistill.errors import ConfigError
from selfdistill.faces.terminal import plain
from selfdistill.live.exchange import Exchange
from selfdistill.live.export import TrainingRows
from selfdistill.live.journal import Journal
from selfdistill.live.recover import recover as copy_readable
from selfdistill.live.updates import UpdateRecord

app = typer.Typer(no_args_is_help=True, help="Look into the journal of a served model: search, export, delete.")
File = Annotated[Path, argument("Journal of `selfdistill serve`.", "FILE")]
SHOWN = 600  # characters of a text in a list
Limit = Annotated[int, typer.Option(min=1, help="Most entries that are shown.")]


@app.command()
def look(
    file: File,
    name: Annotated[str | None, argument("Conversation, or receipt of one exchange.")] = None,
    limit: Limit = 20,
) -> None:
    """Show what a journal holds: its conversations, newest first, or the exchanges of one."""
    with Journal.open(file) as journal:
        if name is not None:
            exchanges = list(journal.exchanges(name))[-limit:]
            for exchange in exchanges or [journal.exchange(name)]:
                _print_exchange(journal, exchange, SHOWN if exchanges else None)
            return
        counts = journal.counts()
        table = Table(box=box.SIMPLE_HEAD)
        for head in ("conversation", "exchanges", "side calls", "last (UTC)", "begins with"):
            table.add_column(head, overflow="fold", no_wrap=head == "last (UTC)")
        for each in journal.conversations(limit=limit):
            numbers = str(each.exchanges), str(each.exchanges - each.main)
            table.add_row(*map(Text, (each.id, *numbers, each.last[:16].replace("T", " "), _short(each.begins))))
        Console().print(table)
        typer.echo(
            f"{counts['exchanges']} exchanges in {counts['conversations']} conversations; {counts['follow_ups']} were "
            f"followed up, {counts['feedback']} times feedback; {counts['bytes'] / 1e6:.1f} MB"
        )
        if served := journal.versions.served:
            pinned = ", pinned" if served.pinned else ""
            typer.echo(f"served: version {served.id} of {counts['versions']}{pinned}, {served.path or served.model}")


@app.command()
def search(file: File, text: Annotated[str, argument("Text of a request or an answer.")], limit: Limit = 20) -> None:
    """Show the newest exchanges with a text in the user's turn or in the answer; upper and lower case are one."""
    with Journal.open(file) as journal:
        found = list(journal.search(text, limit=limit))
        for exchange in found:
            _print_exchange(journal, exchange, SHOWN)
        more = f" (the newest; --limit shows more than {limit})" if len(found) == limit else ""
        typer.echo(f"{len(found)} exchanges{more}")


@app.command()
def export(
    file: File,
    out: Annotated[Path, argument("JSONL file to write.", "OUT")],
    conversation: Annotated[list[str] | None, optional("Conversation to export; repeatable. (default: all)")] = None,
) -> None:
    """Write answers that somebody replied to as rows for `selfdistill train`."""
    with Journal.open(file) as journal:
        rows, written = TrainingRows(journal, conversation or ()), 0
        try:
            with out.open("x", encoding="utf-8") as lines, _removed_if_stopped(out):
                for row in rows:
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written += 1
        except FileExistsError:
            raise ConfigError("the file exists", got=out, do="name another one, or remove it") from None
        except OSError as error:
            raise ConfigError("the file cannot be written", got=f"{out}: {error.strerror}") from None
    left_out = ", ".join(f"{count} ({reason})" for reason, count in rows.left_out.items() if count)
    typer.echo(f"{written} rows in {out}; exchanges left out: {left_out or 'none'}")
    if written:
        typer.echo(f"train on them: selfdistill train --data {out} method=user_replies method.logged=true")


@app.command()
def delete(
    file: File,
    names: Annotated[list[str] | None, argument("Conversations, or receipts of exchanges.", "NAME")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Conversations without an exchange for this many days.")
    ] = None,
    yes: Annotated[bool, flag("--yes", "Delete without asking.")] = False,
) -> None:
    """Delete conversations with everything said in them, by name or by age. Nothing brings them back.

    Exported files, backups and weights that learned from them are not touched.
    """
    if (older_than is None) == (not names):
        raise ConfigError("what should be deleted?", do="give conversations or receipts, or --older-than DAYS")
    with Journal.open(file) as journal:
        chosen = list(names or ()) or journal.older_than(older_than or 0)
        if not chosen:
            typer.echo("nothing is as old as that")
            return
        if not yes:
            what = f"{len(chosen)} conversations" if older_than is not None else ", ".join(chosen)
            typer.confirm(f"Delete {what} from {file}?", abort=True)
        gone = journal.delete(*chosen)
    typer.echo(f"{gone.exchanges} exchanges deleted")
    if not gone.complete:
        typer.echo(f"another process reads the journal: copies stay in {file}-wal until it is done; delete again then")


@app.command()
def versions(
    file: File,
    undo: Annotated[int, typer.Option(min=0, help="Versions to drop, the served one first.")] = 0,
    pin: Annotated[int | None, optional("Version to serve, and no other; an undone one too.")] = None,
    unpin: Annotated[bool, flag("--unpin", "Let newer versions follow the served one.")] = False,
) -> None:
    """Show the versions of the weights, and change which one is served, while no server runs.

    A server that runs takes the same from POST /v1/selfdistill/undo and /v1/selfdistill/pin.
    """
    if bool(undo) + (pin is not None) + unpin > 1:
        raise ConfigError("--undo, --pin and --unpin are one change each", do="give one of them")
    changes = undo or pin is not None or unpin
    Journal.open(file).close()  # a journal that is there
    with Journal.serve(file) if changes else Journal.open(file) as journal:
        if undo:
            journal.versions.undo(undo)
        elif pin is not None:
            journal.versions.pin(pin)
        elif unpin:
            journal.versions.unpin()
        for each in journal.versions.all:
            came = f"from {each.parent}" if each.parent else "as it came"
            state = f"{each.state}{', pinned' if each.pinned else ''}"
            typer.echo(
                f"{each.id}  {each.created[:16].replace('T', ' ')}  {state:17}  {came:11}  {each.path or each.model}"
            )


@app.command()
def learn(
    file: File,
    settings: Annotated[
        list[str] | None,
        argument("Settings of learning, such as lessons=4 lr=1e-4; docs/cli.md lists them.", "KEY=VALUE"),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision: auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Perform one update of the served version from what came back, while no server runs.

    A candidate that is admitted is the version that the next server serves.
    """
    from selfdistill.live.learning import read_learning
    from selfdistill.live.update import finish, perform
    from selfdistill.live.updates import Updates

    options = read_learning("now", settings or ())
    assert options is not None
    Journal.open(file).close()  # a journal that is there
    with Journal.serve(file) as journal:
        table = Updates(journal.database)
        table.repaired()
        record = perform(
            journal, table.queue("now").id, options, device=device, dtype=dtype, progress=typer.echo
        )  # fmt: skip
        served = journal.versions.served
        assert served is not None, "there was one to train from"
        record = finish(
            journal, record, lambda path, parent: journal.versions.publish(served.model, path, parent=parent)
        )  # fmt: skip
        _print_update(record)


@app.command()
def updates(file: File, numbers: Annotated[int | None, optional("Update whose numbers are shown.")] = None) -> None:
    """Show the updates of a journal: what was tried, and what became of it."""
    from selfdistill.live.updates import Updates

    with Journal.open(file) as journal:
        table = Updates(journal.database)
        if numbers is not None:
            typer.echo(json.dumps(table.get(numbers).public(), indent=1, ensure_ascii=False))
            return
        found = table.all
        for record in found:
            _print_update(record)
        if not found:
            typer.echo("no update yet")


@app.command()
def check(file: File) -> None:
    """Read every page of a journal, and say whether it is damaged."""
    with Journal.open(file) as journal:
        journal.database.check()
        typer.echo(f"{file} is in order: {journal.counts()['exchanges']} exchanges")


@app.command()
def recover(file: File, new: Annotated[Path, argument("Journal to write.", "NEW")]) -> None:
    """Copy what can still be read of a damaged journal into a new one. The damaged file stays as it is."""
    copied, lost = copy_readable(file, new)
    for table, count in copied.items():
        typer.echo(f"{table}: {count} copied, {lost[table]} lost")


@contextmanager
def _removed_if_stopped(out: Path) -> Iterator[None]:
    """A file that is whole, or none: a second run finds nothing in its way."""
    try:
        yield
    except BaseException:
        out.unlink()
        raise


def _print_exchange(journal: Journal, exchange: Exchange, most: int | None) -> None:
    """An exchange, with at most so many characters of each text."""
    console = Console()
    kind = "" if exchange.kind == "main" else f", side call ({exchange.rule})"
    kind += "" if exchange.status == "complete" else f", {exchange.status}"
    head = f"{exchange.seq}  {exchange.created[:19]}  {exchange.conversation}  version {exchange.version}{kind}"
    console.print(Text(head, style="bold"))
    console.print(Text(f"receipt {exchange.receipt}, {len(exchange.sampled_ids)} tokens sampled", style="dim"))
    lines = [("request", exchange.new_text), ("answer", exchange.text)]
    for name, text in (*lines, *journal.feedback(exchange.seq)):
        rest = len(text[most:]) if most is not None else 0
        more = f" … ({rest} more; look at the receipt shows all)" if rest else ""
        console.print(Text.assemble((f"{name}: ", "dim"), plain(text[:most]), (more, "dim")))
    console.print()


def _print_update(record: UpdateRecord) -> None:
    version = f", version {record.version}" if record.version else ""
    head = f"update {record.id}  {record.created[:16].replace('T', ' ')}  {record.state}{version}"
    typer.echo(f"{head}  {len(record.lessons)} lessons  {plain(record.reason)}")


def _short(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= 60 else f"{line[:59]}…"
