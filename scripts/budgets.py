"""Prints how the code stands against its budgets. They are targets: nothing fails here.

python scripts/budgets.py
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, TESTS = ROOT / "src" / "selfdistill", ROOT / "tests"
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Name, lines and whether it is fully typed, of every function in a folder."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, FUNCTION):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                untyped = [a for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{file.relative_to(ROOT)}:{node.name}", lines, not untyped and node.returns is not None


def code_lines(file: Path) -> int:
    """Lines that are neither empty nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in file.read_text().splitlines())


def settings() -> int:
    """How many settings a user can reach in a run, with the method and the environment that it starts with."""
    sys.path.insert(0, str(SOURCE.parent))
    from selfdistill.config import load_config
    from selfdistill.options import settings_of

    return len(list(settings_of(load_config())))


def main() -> None:
    """Prints one line for each budget."""
    found = sorted(functions(SOURCE), key=lambda function: function[1])
    lengths = [lines for _, lines, _ in found]
    files = {file: len(file.read_text().splitlines()) for file in SOURCE.rglob("*.py")}
    longest_file = max(files, key=lambda file: files[file])
    source, tests = (sum(code_lines(file) for file in folder.rglob("*.py")) for folder in (SOURCE, TESTS))
    typed = sum(typed for _, _, typed in found) / len(found)
    rows = [
        ("function length, median", f"{statistics.median(lengths):.0f}", "≤ 12"),
        ("function length, 90th percentile", f"{lengths[int(0.9 * (len(lengths) - 1))]}", "≤ 40"),
        ("function length, longest", f"{lengths[-1]}  {found[-1][0]}", "≤ 80"),
        ("file length, median", f"{statistics.median(files.values()):.0f}", "~150"),
        ("file length, longest", f"{files[longest_file]}  {longest_file.relative_to(ROOT)}", "≤ 400"),
        ("functions fully typed", f"{typed:.1%}", "100%"),
        ("tests : code", f"{tests / source:.2f}  ({tests:,} : {source:,} lines)", "≥ 0.9"),
        ("settings", f"{settings()}", "≤ 60"),
    ]
    for name, value, target in rows:
        print(f"{name:34} {target:>7}   {value}")  # noqa: T201 (a script's output)


if __name__ == "__main__":
    main()
