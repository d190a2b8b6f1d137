"""Every published method as a small value over one core. To add one: a file here, and a line in `METHODS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.errors import ConfigError, nearest
from selfdistill.methods.base import Credit, Method
from selfdistill.methods.grpo import GRPO
from selfdistill.methods.sdpo import SDPO, SDPOOutcome, SDPORichFeedback
from selfdistill.options import Where, build

METHODS: Mapping[str, type[Method]] = {
    "sdpo": SDPO,
    "sdpo_rich_feedback": SDPORichFeedback,
    "sdpo_outcome": SDPOOutcome,
    "grpo": GRPO,
}


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises `ConfigError` that names the nearest."""
    if name not in METHODS:
        raise ConfigError("unknown method", got=name, do=nearest(name, METHODS))
    return METHODS[name]


def get_method(name: str, options: Mapping[str, Any]) -> Method:
    """A method with some of its settings replaced. Raises `ConfigError`."""
    return build(find_method(name), options, Where("method"))


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
