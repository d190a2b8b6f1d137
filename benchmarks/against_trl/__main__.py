"""This library against TRL, at equal work: one command, ratios with intervals.

    python -m benchmarks.against_trl --out runs/against-trl --trl-python trl-venv/bin/python

TRL lives in a virtual environment of its own; without one, the parts about this library alone are measured, and the
message says in one line how to make it. Reduced by default, for two CPU cores; `--full` is for one large GPU.
Writes results.md and results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.against_trl.child import Skipped, trl_refusal
from benchmarks.against_trl.plan import FULL, REDUCED
from benchmarks.against_trl.ratios import Sheet
from benchmarks.against_trl.sections import SECTIONS, Bench
from selfdistill.models.precision import quiet

WIDTH = 160


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against_trl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/against-trl"), help="folder for models and results")
    parser.add_argument("--trl-python", help="interpreter of the virtual environment that TRL is in")
    parser.add_argument("--only", choices=list(SECTIONS), action="append", help="this section alone; may be repeated")
    parser.add_argument("--own", action="store_true", help="the parts that need no TRL: --only own --only rollouts")
    parser.add_argument("--full", action="store_true", help="for one large GPU: 0.6 to 8 billion parameters")
    parser.add_argument("--repeats", type=int, help="how often the sides alternate")
    return parser.parse_args()


def main() -> None:
    """Measures section after section; what is done is written before the next begins."""
    chosen, console = arguments(), wide_console()
    plan = FULL if chosen.full else REDUCED
    plan = replace(plan, repeats=chosen.repeats or plan.repeats)
    wanted = ["own", "rollouts"] if chosen.own else chosen.only or list(SECTIONS)
    refusal = trl_refusal(chosen.trl_python) if set(wanted) - {"own", "rollouts"} else ""
    if refusal and chosen.trl_python:
        sys.exit(refusal)
    if refusal:
        console.print(f"TRL is left out: {refusal}", soft_wrap=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    trl = Skipped("TRL was left out") if refusal or not chosen.trl_python else chosen.trl_python
    sheets: dict[str, Sheet] = {}
    with console.status("starting") as status, quiet():
        say = status.update if console.is_terminal else console.print
        bench = Bench(plan, chosen.out, trl, say)
        for name in wanted:
            sheets[name] = SECTIONS[name](bench)
            console.print(sheets[name].table())
            write(chosen.out, sheets)


def wide_console() -> Console:
    """The terminal; where there is none, lines that are long enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def write(folder: Path, sheets: dict[str, Sheet]) -> None:
    """The tables so far, for people and for programs."""
    text = "\n".join(sheet.markdown() for sheet in sheets.values())
    (folder / "results.md").write_text(text, encoding="utf-8")
    plain = {name: sheet.plain() for name, sheet in sheets.items()}
    (folder / "results.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
