"""Ways to go about one hard task: each a frozen value, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.errors import ConfigError, nearest
from selfdistill.loops.strategies.bare import BestOfK, Grpo, SelfDistill
from selfdistill.loops.strategies.base import Attempt, Prompt, Scene, Strategy
from selfdistill.loops.strategies.hybrid import Hybrid, UnderTheQuestion
from selfdistill.loops.strategies.multi_turn import MultiTurn
from selfdistill.options import Where, build

STRATEGIES: Mapping[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (SelfDistill, Hybrid, MultiTurn, BestOfK, Grpo)
}


def get_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """A strategy by name. Raises `ConfigError`: unknown strategy or setting, with the nearest name."""
    if name not in STRATEGIES:
        raise ConfigError("unknown strategy", got=name, do=nearest(name, STRATEGIES))
    return build(STRATEGIES[name], options, Where("strategy"))


__all__ = [
    "STRATEGIES",
    "Attempt",
    "BestOfK",
    "Grpo",
    "Hybrid",
    "MultiTurn",
    "Prompt",
    "Scene",
    "SelfDistill",
    "Strategy",
    "UnderTheQuestion",
    "get_strategy",
]
