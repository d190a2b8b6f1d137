"""Whether the Python that comes with a task can run in the sandbox at all: it compiles, and imports what is there."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from keyword import iskeyword
from typing import Any

_CATCH = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, slots=True)
class CodeFault:
    """What was expected of a piece of code, what it is instead, why that matters and what to do. `part` and `index`
    say which piece of a task's spec it is, as in public, 2."""

    expected: str
    got: str
    why: str
    do: str
    part: str = ""
    index: int = 0


def is_name(text: str) -> bool:
    """Whether text can name a function: one identifier, and no keyword."""
    return text.isidentifier() and not iskeyword(text)


def spec_fault(spec: Mapping[str, Any], modules: tuple[str, ...] = ()) -> CodeFault | None:
    """The first thing wrong with the code of a code task: prelude, setup, tests that are statements. `modules` are
    packages that programs may import besides the standard library."""
    for part, index, source in _sources(spec):
        fault = code_fault(source, modules)
        if fault is not None:
            return CodeFault(fault.expected, fault.got, fault.why, fault.do, part, index)
    return None


@lru_cache(maxsize=1024)  # headers are those of every row, and tasks are drawn again
def code_fault(source: str, modules: tuple[str, ...] = ()) -> CodeFault | None:
    """What is wrong with one piece of code, if anything is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\d": it runs
            compile(source, "code", "exec", dont_inherit=True)
    except SyntaxError as error:
        return _not_python(f"line {error.lineno}: {error.msg}: {(error.text or '').strip()!r:.200}")
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return _not_python(f"{type(error).__name__}: {error}")
    missing = _missing_import(source, modules) if "import" in source else None
    if missing is None:
        return None
    name, line = missing
    why = "programs in the sandbox read the standard library alone: every answer would fail"
    do = f"write it without {name}, or leave the row out"
    return CodeFault("imports of the standard library alone", f"line {line}: the module {name}", why, do)


def _not_python(got: str) -> CodeFault:
    return CodeFault("Python that compiles", got, "every answer would fail", "correct the code, or leave the row out")


def _sources(spec: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    for part in ("prelude", "setup"):
        if spec.get(part):
            yield part, 0, spec[part]
    if spec.get("kind") == "assert":
        for part in ("public", "private"):
            for index, test in enumerate(spec.get(part, ())):
                yield part, index, test


def _missing_import(source: str, modules: tuple[str, ...]) -> tuple[str, int] | None:
    """The first module that programs cannot import, with its line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    there = {"__main__", *modules, *sys.stdlib_module_names}
    for node in _must_run(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        for name in names:
            if name.partition(".")[0] not in there:
                return name, node.lineno
    return None


def _must_run(tree: ast.AST) -> Iterator[Any]:
    """All nodes, in order, but for what a `try` that catches a failed import holds."""
    rest = [tree]
    while rest:
        node = rest.pop()
        yield node
        tried = isinstance(node, ast.Try) and any(_catches(handler) for handler in node.handlers)
        skipped = {id(child) for child in node.body} if tried and isinstance(node, ast.Try) else ()
        rest += [child for child in ast.iter_child_nodes(node) if id(child) not in skipped][::-1]


def _catches(handler: ast.ExceptHandler) -> bool:
    caught = {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)} if handler.type else _CATCH
    return bool(caught & _CATCH)
