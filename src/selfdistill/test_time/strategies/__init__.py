"""Test-time strategies, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.errors import ConfigError, nearest
from selfdistill.options import Where, build
from selfdistill.plugins import FROM_PYTHON, class_from_file, is_file_name, refuse_value, their_code
from selfdistill.test_time.strategies.bare import BestOfK, Grpo, SelfDistill
from selfdistill.test_time.strategies.base import Strategy
from selfdistill.test_time.strategies.hybrid import Hybrid
from selfdistill.test_time.strategies.multi_turn import MultiTurn
from selfdistill.test_time.strategies.read_first import ReadFirst

STRATEGIES: Mapping[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (SelfDistill, Hybrid, ReadFirst, MultiTurn, BestOfK, Grpo)
}


def get_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """A strategy by name, or `FILE.py:NAME`. Raises `ConfigError` for an unknown strategy or setting."""
    if is_file_name(name):
        found = class_from_file(name, Strategy)
        # Under the name by which a resumed search finds it again.
        kind = type(found.__name__, (found,), {"__slots__": (), "__doc__": found.__doc__, "name": name})
        with their_code(kind, "its settings"):
            return build(kind, options, Where("strategy"))
    refuse_value(name, "strategy")
    if name not in STRATEGIES:
        do = f"{nearest(name, STRATEGIES)} (a file of your own: --strategy my_strategy.py:MyStrategy)"
        raise ConfigError("unknown strategy", got=name, do=do)
    return build(STRATEGIES[name], options, Where("strategy"))


def written_name(strategy: Strategy) -> str:
    """The name under which `get_strategy` finds the class of a strategy, else one that stands for a value of a Python
    program."""
    known = is_file_name(strategy.name) or STRATEGIES.get(strategy.name) is type(strategy)
    return strategy.name if known else FROM_PYTHON + type(strategy).__name__
