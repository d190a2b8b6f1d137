"""What `selfdistill methods` prints, read off the methods' own values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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

COLUMNS = ("method", "teacher reads", "needs reward")
DETAILS = ("teacher", "divergence, support", "weights", "rollouts", "arXiv")
PLAIN = (Attract(), Separate(), Constant(1.0), TokenMask(), None)  # not shown
NOTHING = "–"


def print_methods(methods: Mapping[str, Method]) -> None:
    """One row for each."""
    console, table = Console(), Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, method in methods.items():
        table.add_row(Text(name, style="bold"), method.reads, method.needs_reward)
    console.print(table)
    counts = f"{len(PUBLISHED)} published methods, {len(PRESETS)} presets of sdpo, {len(OURS)} of our own ({OURS[0]})."
    console.print(f"{counts}\n`selfdistill methods NAME` describes one.", style="dim", highlight=False)


def print_method(method: Method) -> None:
    """Its description, source, parts, the settings of a run that it changes, and its own settings."""
    console, needs = Console(), "  ".join(f"{key}={json.dumps(value)}" for key, value in _flat(method.settings))
    parts = [*_paragraphs(method), f"Source: {method.source}.", f"Settings of the run: {needs}" if needs else ""]
    console.print("\n\n".join(filter(None, parts)), markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    reads = (method.reads, method.needs_reward)
    for name, cell in zip((*COLUMNS[1:], *DETAILS), (*reads, *method_details(method)), strict=True):
        table.add_row(name, cell)
    console.print(table, highlight=False)
    print_settings(method, prefix="method.")


def _paragraphs(method: Method) -> Iterator[str]:
    """The docstring's paragraphs, each on one line; list items keep theirs."""
    for paragraph in (getdoc(method) or "").split("\n\n"):
        yield re.sub(r"\n(?!- )\s*", " ", paragraph)


def method_details(method: Method) -> tuple[str, ...]:
    """The cells of one method, in the order of `DETAILS`."""
    loss_specs = method.loss_specs(temperature=1.0)
    teacher = describe(method.teacher) if method.teacher else NOTHING
    compared = _each(_compared(loss_spec) for loss_spec in loss_specs) if method.teacher else NOTHING
    source = "\n".join(re.findall(r"\d{4}\.\d{5}", method.source)) or NOTHING
    return (teacher, compared, _each(_weights(loss_spec) for loss_spec in loss_specs), _rollouts(method), source)


def describe(value: Any) -> str:
    """A value in words: `TopK(100)` is "top K 100". A value of few plain fields shows all its numbers, others show what
    differs from the defaults."""
    chosen = [text for item in fields(value) if (text := _chosen(value, item))]
    return " ".join([_words(type(value).__name__), ", ".join(chosen)]).strip()


def _chosen(value: Any, item: Field[Any]) -> str:
    current, label = getattr(value, item.name), item.name.replace("_", " ")
    number = f"{current:g}" if type(current) in (int, float) else ""
    if number and _is_short(value):
        return number
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    if current == default:
        return ""
    if isinstance(current, bool):
        return label if current else f"no {label}"
    text = number or (describe(current) if is_dataclass(current) else str(current))
    return text if default is MISSING else f"{label} {text}"


def _is_short(value: Any) -> bool:
    """Whether numbers need no label; those of a token mask are independent of each other."""
    nested = any(is_dataclass(getattr(value, item.name)) for item in fields(value))
    return len(fields(value)) <= 4 and not nested and not isinstance(value, TokenMask)


def _words(name: str) -> str:
    """`ReverseKL` is "reverse KL"."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).split()
    return " ".join(part if part.isupper() else part.lower() for part in parts)


def _compared(loss_spec: LossSpec) -> str:
    """Divergence and support; a loss that shapes advantages by the log-ratio has no divergence."""
    divergence = () if loss_spec.shaping.needs_log_ratio else (loss_spec.divergence,)
    mixture = () if loss_spec.mixture == Product() else (loss_spec.mixture,)
    return "\n".join(map(describe, (*divergence, *mixture, loss_spec.support)))


def _weights(loss_spec: LossSpec) -> str:
    """What decides the weight of a token."""
    parts = (loss_spec.distil_sign, loss_spec.shaping, loss_spec.schedule, loss_spec.gate, loss_spec.token_mask)
    clipping = [f"bound {describe(loss_spec.clipping)}"] if loss_spec.clipping else []
    return "\n".join([*(describe(part) for part in parts if part not in PLAIN), *clipping])


def _each(cells: Iterator[str]) -> str:
    """The cells of all losses, each once."""
    return "\n".join(dict.fromkeys(filter(None, cells))) or NOTHING


def _rollouts(method: Method) -> str:
    """The stages, the first one with its number of rollouts if the method sets it."""
    count = method.settings.get("rollouts_per_task")
    first, *later = [stage.name.replace("_", " ") for stage in method.stages]
    return "\n".join([f"{count} × {first}" if count else first, *later])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
