"""What commands print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from selfdistill.options import settings_of
from selfdistill.runs import Event, Guard, Note, Run
from selfdistill.view.tables import comparison


def print_comparison(runs: Sequence[Run], *, markdown: bool = False) -> None:
    """Runs side by side."""
    table = comparison(runs)
    console = Console()
    if markdown:
        console.print(table.markdown(), markup=False, highlight=False, soft_wrap=True)
        return
    print_table(table.header, table.rows)
    console.print(table.note, style="dim", highlight=False)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; the first column is text, the others are numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_listing(entries: Mapping[str, str]) -> None:
    """Names of a registry, each with the first paragraph of its description."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in entries.items():
        table.add_row(name, " ".join(text.strip().split("\n\n")[0].split()))
    Console().print(table)


def print_settings(value: Any, prefix: str = "") -> None:
    """Every setting of a component: key, value as JSON, range and meaning."""
    table = Table("setting", "value", "takes", "meaning", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for setting in settings_of(value, prefix):
        table.add_row(setting.key, json.dumps(setting.value), setting.expected, setting.text)
    Console().print(table, markup=False)


def print_notes(event: Event) -> None:
    """A callback that prints notes, and what guards decide, alone."""
    if isinstance(event, Note | Guard):
        print(event.text, flush=True)
