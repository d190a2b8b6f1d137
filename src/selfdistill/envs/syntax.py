"""Whether the Python that comes with a task can run in the sandbox at all: it compiles, and imports what is there."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

_CATCH = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, slots=True)
class CodeFault:
    """What is wrong with a piece of code, as an error's parts. `part` and `index` name the piece of a task's spec, as
    in public, 2."""

    expected: str
    got: str
    why: str
    do: str
    part: str = ""
    index: int = 0


def spec_fault(spec: Mapping[str, Any]) -> CodeFault | None:
    """The first thing wrong with the code of a code task: prelude, setup, tests that are statements."""
    pieces = [(part, 0, spec[part]) for part in ("prelude", "setup") if spec.get(part)]
    if spec.get("kind") == "assert":
        pieces += [(part, index, t) for part in ("public", "private") for index, t in enumerate(spec.get(part, ()))]
    for part, index, source in pieces:
        if (fault := code_fault(source)) is not None:
            return replace(fault, part=part, index=index)
    return None


@lru_cache(maxsize=1024)  # headers are those of every row, and tasks are drawn again
def code_fault(source: str) -> CodeFault | None:
    """What is wrong with one piece of code, if anything is."""
    why, do = "every answer would fail", "correct the code, or leave the row out"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\d": it runs
            compile(source, "code", "exec", dont_inherit=True)
            tree = ast.parse(source if "import" in source else "")
    except SyntaxError as error:
        got = f"line {error.lineno}: {error.msg}: {(error.text or '').strip()!r:.200}"
        return CodeFault("Python that compiles", got, why, do)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return CodeFault("Python that compiles", f"{type(error).__name__}: {error}", why, do)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node, skipped = waiting.pop(), set[int]()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            missing = [name for name in names if name.partition(".")[0] not in {"__main__", *sys.stdlib_module_names}]
            if missing:
                got, do = f"line {node.lineno}: the module {missing[0]}", f"write it without {missing[0]}"
                why = f"programs in the sandbox read the standard library alone: {why}"
                return CodeFault("imports of the standard library alone", got, why, f"{do}, or leave the row out")
        elif isinstance(node, ast.Try) and any(map(_catches_import_error, node.handlers)):
            skipped = set(map(id, node.body))
        waiting += [child for child in ast.iter_child_nodes(node) if id(child) not in skipped][::-1]
    return None


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    caught = {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)} if handler.type else _CATCH
    return bool(caught & _CATCH)
