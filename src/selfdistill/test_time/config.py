"""The settings of a test-time search: a strategy, a budget, and the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from selfdistill.config import RunConfig, from_settings, load_config, parse_override, resolved
from selfdistill.errors import ConfigError, check_range
from selfdistill.options import Where, build, check_ranges, option, plain
from selfdistill.runs.store import SEARCH
from selfdistill.test_time.strategies import Strategy, get_strategy
from selfdistill.test_time.strategies.bare import SelfDistill

OWN = "strategy."
# Settings of a run that a search does not read, and what to set in their place.
UNREAD: Mapping[str, str] = {
    "steps": "--budget",
    "tasks_per_step": "--task",
    "rollouts_per_task": "strategy.batch",
    "tasks_per_update": "strategy.batch",
    "evaluation": "--task",
    "out": "--out",
}
# Settings of a run that are read only under a strategy that learns.
LEARNING = ("method", "optimiser", "teacher", "replay", "checkpoint_every", "micro_batch_tokens")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a search ends. Raises `ConfigError`."""

    budget: int = option(2750, "attempts, sampled tokens or seconds for each task", least=1)
    unit: Literal["attempts", "tokens", "seconds"] = option("attempts", "what the budget counts")
    exhaust_budget: bool = option(False, "use the whole budget, also after the task is solved")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class SolveConfig:
    """One strategy on some tasks: ids, or files of tasks; none: all tasks of the run. `keep` the final weights."""

    run: RunConfig
    strategy: Strategy = field(default_factory=SelfDistill)
    limits: Limits = field(default_factory=Limits)
    tasks: tuple[str, ...] = ()
    keep: bool = False

    def __post_init__(self) -> None:
        # A strategy of the user's may declare the field anew, without a range.
        check_range(Strategy.__dataclass_fields__["batch"], self.strategy.batch, "strategy.batch")

    @property
    def rounds(self) -> int:
        """Rounds that the budget allows; 0 where it does not count attempts."""
        return -(-self.limits.budget // self.strategy.batch) if self.limits.unit == "attempts" else 0


def solve_config(
    strategy: str = SelfDistill.name,
    overrides: Sequence[str | tuple[str, Any]] = (),
    *,
    file: Path | None = None,
    tasks: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    keep: bool = False,
) -> SolveConfig:
    """The settings of a search. `overrides` are settings of the run, or of the strategy with the prefix `strategy.`; a
    file among `tasks` is the default of `data`.

    The strategy's method is the run's default, and the learning rate does not warm up: a task may take few rounds.
    Raises `ConfigError`, also for a setting of a run that a search does not read.
    """
    pairs = [parse_override(text) if isinstance(text, str) else text for text in overrides]
    own = {key.removeprefix(OWN): value for key, value in pairs if key.startswith(OWN)}
    chosen = get_strategy(strategy, own)
    rest = [pair for pair in pairs if not pair[0].startswith(OWN)]
    for key, value in rest:
        if key.partition(".")[0] in UNREAD:
            instead = UNREAD[key.partition(".")[0]]
            raise ConfigError("solving a task does not read this setting", got=f"{key} = {value}", do=f"see {instead}")
    files = [name for name in tasks if is_file(name)]
    base: dict[str, Any] = {"optimiser": {"warmup_steps": 0}, "data": files[0] if files else ""}
    if chosen.learns:
        base["method"] = {"name": chosen.learns}
    run = load_config(file, rest, base)
    if run.method.name == chosen.learns:  # another method would not know them
        run = replace(run, method=replace(run.method, options={**chosen.method_settings, **run.method.options}))
    return SolveConfig(run, chosen, build(Limits, limits or {}), tuple(tasks), keep)


def is_file(name: str) -> bool:
    """Whether this names a file of tasks rather than the id of one."""
    return name.endswith((".jsonl", ".json"))


def solve_settings(config: SolveConfig) -> dict[str, Any]:
    """All settings as JSON values; `config_from` reads them back to an equal value."""
    strategy = {"name": config.strategy.name, **plain(config.strategy)}
    return {
        **resolved(config.run),
        SEARCH: {"strategy": strategy, **plain(config.limits), "tasks": list(config.tasks), "keep": config.keep},
    }


def config_from(settings: Mapping[str, Any]) -> SolveConfig:
    """The settings of a search from their JSON values. Raises `ConfigError`."""
    own = dict(settings.get(SEARCH, {}))
    if not own:
        raise ConfigError("these settings are not those of `selfdistill solve`", do="name a directory that it made")
    lacking = sorted({"strategy", "tasks", "keep"} - own.keys())
    if lacking or not isinstance(own["strategy"], Mapping) or not isinstance(own["tasks"], list):
        raise ConfigError("these settings of a search are not whole", got=f"{SEARCH} = {own}")
    strategy, tasks, keep = dict(own.pop("strategy")), tuple(own.pop("tasks")), bool(own.pop("keep"))
    run = from_settings({key: value for key, value in settings.items() if key != SEARCH})
    chosen = get_strategy(strategy.pop("name"), strategy)
    known = {item.name for item in fields(Limits)}
    limits = build(Limits, {key: value for key, value in own.items() if key in known}, Where(SEARCH))
    return SolveConfig(run, chosen, limits, tasks, keep)
