"""What `selfdistill methods` prints: every column is read off a method's own values, none is written down twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import getdoc
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdistill.cli.output import print_settings
from selfdistill.losses import Attract, Constant, LossSpec, Product, Separate, TokenMask
from selfdistill.methods import OURS, PRESETS, PUBLISHED
from selfdistill.methods.base import Method

COLUMNS = ("method", "teacher reads", "teacher", "compared by", "coupled by", "needs reward", "rollouts", "arXiv")
SHARES = (0, 4, 1, 3, 4, 1, 0)  # of the width that is left, for all columns but the last, which stands below the first
GAP = 2
PLAIN = (Attract(), Separate(), Constant(1.0), TokenMask(), None)  # what goes without saying
NOTHING = "–"


def print_methods(methods: Mapping[str, Method]) -> None:
    """One row for each; the source stands below the name."""
    rows = [method_row(name, method) for name, method in methods.items()]
    head = (f"{COLUMNS[0]}, {COLUMNS[-1]}", *COLUMNS[1:-1])
    console, table = Console(), Table(box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0), pad_edge=False, show_edge=False)
    for name, width in zip(head, _widths([head, *rows], console.width), strict=True):
        table.add_column(name, width=width, overflow="fold")
    for name, *cells, ids in rows:
        table.add_row(Text.assemble((name, "bold"), "\n", (ids, "dim")), *cells)
    console.print(table)
    counts = f"{len(PUBLISHED)} published methods, {len(PRESETS)} presets of sdpo, {len(OURS)} of our own ({OURS[0]})."
    console.print(f"\n{counts}", style="dim", highlight=False)
    console.print("`selfdistill methods NAME` says more, and lists its settings.", style="dim", highlight=False)


def _widths(rows: Sequence[Sequence[str]], total: int) -> list[int]:
    """Of the columns: their longest word, and a share of what is left of a line."""
    least = [max(len(word) for row in rows for word in row[place].split()) for place in range(len(SHARES))]
    left = max(0, total - sum(least) - GAP * (len(least) - 1))
    return [width + left * share // sum(SHARES) for width, share in zip(least, SHARES, strict=True)]


def print_method(method: Method) -> None:
    """What it is, where it is from, what it needs of a run, and its settings."""
    needs = "  ".join(f"{key}={json.dumps(value)}" for key, value in _flat(method.settings))
    said = [*_paragraphs(method), f"Source: {method.source}.", f"Of a run it sets: {needs}" if needs else ""]
    Console().print("\n\n".join(filter(None, said)), markup=False, highlight=False)
    print_settings(method, prefix="method.")


def _paragraphs(method: Method) -> Iterator[str]:
    """Of the docstring, each on one line, but for what begins with a dash."""
    for paragraph in (getdoc(method) or "").split("\n\n"):
        yield re.sub(r"\n(?!- )\s*", " ", paragraph)


def method_row(name: str, method: Method) -> tuple[str, ...]:
    """The cells of one method, in the order of `COLUMNS`."""
    loss_specs = method.loss_specs(temperature=1.0)
    teacher = describe(method.teacher) if method.teacher else NOTHING
    compared = _each(_compared(loss_spec) for loss_spec in loss_specs) if method.teacher else NOTHING
    coupled = _each(_coupled(loss_spec) for loss_spec in loss_specs)
    source = "\n".join(re.findall(r"\d{4}\.\d{5}", method.source)) or NOTHING
    return (name, method.reads, teacher, compared, coupled, method.needs_reward, _rollouts(method), source)


def describe(value: Any) -> str:
    """A value in words: its name, and what was chosen in it. `TopK(100)` is "top K 100".

    A value of few plain fields says all of its numbers, others say what differs from their defaults.
    """
    chosen = [text for item in fields(value) if (text := _chosen(value, item))]
    return " ".join([_words(type(value).__name__), ", ".join(chosen)]).strip()


def _chosen(value: Any, item: Field[Any]) -> str:
    current, label = getattr(value, item.name), item.name.replace("_", " ")
    if _is_short(value) and _is_number(current):
        return f"{current:g}"
    if current == (item.default_factory() if item.default_factory is not MISSING else item.default):
        return ""
    if isinstance(current, bool):
        return label if current else f"no {label}"
    said = describe(current) if is_dataclass(current) else f"{current:g}" if _is_number(current) else str(current)
    required = item.default is MISSING and item.default_factory is MISSING
    return said if required else f"{label} {said}"


def _is_short(value: Any) -> bool:
    """Whether its numbers speak for themselves; those of an allocation are independent of each other."""
    nested = any(is_dataclass(getattr(value, item.name)) for item in fields(value))
    return len(fields(value)) <= 4 and not nested and not isinstance(value, TokenMask)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(name: str) -> str:
    """`ReverseKL` is "reverse KL"."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).split()
    return " ".join(part if part.isupper() else part.lower() for part in parts)


def _compared(loss_spec: LossSpec) -> str:
    """Divergence and support; where log-ratio becomes an advantage there is no divergence."""
    mixture = () if loss_spec.mixture == Product() else (loss_spec.mixture,)
    parts = (
        (*mixture, loss_spec.support)
        if loss_spec.shaping.needs_log_ratio
        else (loss_spec.divergence, *mixture, loss_spec.support)
    )
    return "\n".join(map(describe, parts))


def _coupled(loss_spec: LossSpec) -> str:
    """All that decides what a token weighs."""
    parts = (loss_spec.distil_sign, loss_spec.shaping, loss_spec.schedule, loss_spec.gate, loss_spec.token_mask)
    clipping = [f"bound {describe(loss_spec.clipping)}"] if loss_spec.clipping else []
    return "\n".join([*(describe(part) for part in parts if part not in PLAIN), *clipping])


def _each(cells: Iterator[str]) -> str:
    """Those of all signals, each once."""
    return "\n".join(dict.fromkeys(filter(None, cells))) or NOTHING


def _rollouts(method: Method) -> str:
    """What is asked of the student, and how often, if the method says so."""
    count = method.settings.get("rollouts_per_task")
    first, *later = [stage.name.replace("_", " ") for stage in method.stages]
    return "\n".join([f"{count} × {first}" if count else first, *later])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
