"""Every published method as a small value over one core. To add one: a file here, and a line in `METHODS`.

A user's own needs neither: `--method my_method.py:MyMethod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from selfdistill.errors import ConfigError, nearest
from selfdistill.methods.base import Credit, Method
from selfdistill.methods.grpo import GRPO
from selfdistill.methods.sdpo import SDPO, SDPOOutcome, SDPORichFeedback
from selfdistill.options import Where, build
from selfdistill.plugins import is_file_name, load_from_file

METHODS: Mapping[str, type[Method]] = {
    "sdpo": SDPO,
    "sdpo_rich_feedback": SDPORichFeedback,
    "sdpo_outcome": SDPOOutcome,
    "grpo": GRPO,
}
METHOD_PARTS = [name for name in (*Method.__annotations__, *vars(Method)) if not name.startswith("_")]


def find_method(name: str) -> type[Method]:
    """The class of a method by name, or `FILE.py:NAME` for one of the user's. Raises `ConfigError`."""
    if is_file_name(name):
        return _from_file(name)
    if name not in METHODS:
        do = f"{nearest(name, METHODS)}; or a file of your own: --method my_method.py:MyMethod"
        raise ConfigError("unknown method", got=name, do=do)
    return METHODS[name]


def get_method(name: str, options: Mapping[str, Any]) -> Method:
    """A method with some of its settings replaced. Raises `ConfigError`, also for values that its signal refuses."""
    method = build(find_method(name), options, Where("method"))
    try:
        method.signal(temperature=1.0)
    except ValueError as error:
        raise ConfigError(f"the settings of method {name!r} do not work together", got=error) from error
    return method


def _from_file(name: str) -> type[Method]:
    found, _ = load_from_file(name, default="Method")
    kind: type[Method] = found
    if not isinstance(found, type) or not is_dataclass(found):
        raise ConfigError(f"{name} is no method", got=found, do="name a frozen dataclass with the parts of `Method`")
    missing = [part for part in METHOD_PARTS if not hasattr(found, part) and part not in found.__dataclass_fields__]
    if missing:
        raise ConfigError(
            f"{name} is no method", got=f"it lacks {', '.join(missing)}", do="give it all parts of `Method`"
        )
    return kind


__all__ = [
    "GRPO",
    "METHODS",
    "SDPO",
    "Credit",
    "Method",
    "SDPOOutcome",
    "SDPORichFeedback",
    "find_method",
    "get_method",
]
