"""The settings of a test-time search: a strategy, a budget, and the settings of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from selfdistill.config import (
    COMMAND_LINE,
    RunConfig,
    Values,
    completed,
    from_settings,
    load_config,
    parse_override,
    resolved,
)
from selfdistill.errors import ConfigError, Ranged, check_range
from selfdistill.options import Where, build, option, plain, with_defaults
from selfdistill.runs.events import RunStart
from selfdistill.runs.store import SEARCH
from selfdistill.test_time.strategies import get_strategy, written_name
from selfdistill.test_time.strategies.bare import SelfDistill
from selfdistill.test_time.strategies.base import Strategy

OWN = "strategy."
BUDGET, TASKS = "give a budget: --budget, or attempts= in Python", "name the tasks: --task, or task= in Python"
# Settings of a run that a search does not read, and what to do in their place.
UNREAD: Mapping[str, str] = {
    "steps": BUDGET,
    "tasks_per_step": TASKS,
    "skip_solved": TASKS,
    "rollouts_per_task": "set strategy.batch",
    "tasks_per_update": "set strategy.batch",
    "evaluation": TASKS,
    "out": "give --out, or out= in Python",
}
# Settings of a run that are read only under a strategy that learns.
LEARNING = (
    "method",
    "optimiser",
    "teacher",
    "replay",
    "checkpoint_every",
    "micro_batch_tokens",
    "activation_checkpointing",
    "offload",
    "keep",
)


@dataclass(frozen=True, slots=True)
class Limits(Ranged):
    """When a search ends. Raises `ConfigError`."""

    budget: int = option(2750, "attempts, sampled tokens or seconds for each task", least=1)
    unit: Literal["attempts", "tokens", "seconds"] = option("attempts", "what the budget counts")
    exhaust_budget: bool = option(False, "use the whole budget, also after the task is solved")


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
        if self.strategy.unique and not self.run.sampling.temperature:
            why = "an attempt that is drawn again is the same"
            raise ConfigError("strategy.unique needs a temperature above 0", got=0, why=why, do="leave one of them out")

    @property
    def name(self) -> str:
        """The name of the strategy in settings and records."""
        return written_name(self.strategy)

    @property
    def attempts(self) -> int:
        """Attempts that the budget allows for each task; 0 where it does not count attempts."""
        return self.limits.budget if self.limits.unit == "attempts" else 0

    def run_start(self, path: Path, env: str, device: str, first_step: int = 0) -> RunStart:
        """The event with which the search for a solution of one task begins."""
        rounds = self.strategy.most_rounds(self.attempts)
        return RunStart(path, self.name, self.run.model, env, device, rounds, self.attempts, first_step)


def solve_config(
    strategy: str | Strategy = SelfDistill.name,
    overrides: Sequence[str | tuple[str, Any]] = (),
    *,
    file: Path | None = None,
    tasks: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    keep: bool = False,
    values: Values | None = None,
    place: str = COMMAND_LINE,
) -> SolveConfig:
    """The settings of a search. `overrides` are settings of the run, or of a named strategy with the prefix
    `strategy.`; a file among `tasks` is the default of `data`.

    The strategy's method is the run's default, and the learning rate does not warm up: a task may take few rounds.
    Raises `ConfigError`, also for a setting of a run that a search does not read.
    """
    pairs = [parse_override(text) if isinstance(text, str) else text for text in overrides]
    own = {key.removeprefix(OWN): value for key, value in pairs if key.startswith(OWN)}
    chosen = strategy if isinstance(strategy, Strategy) else get_strategy(strategy, own)
    rest = [pair for pair in pairs if not pair[0].startswith(OWN)]
    for key, value in rest:
        instead = UNREAD.get(key.partition(".")[0])
        if instead:
            raise ConfigError("solving a task does not read this setting", got=f"{key} = {value}", do=instead)
    data = next(filter(is_file, tasks), "")
    base: dict[str, Any] = {"optimiser": {"warmup_steps": 0}, "data": data}
    if chosen.learns:
        base["method"] = {"name": chosen.learns}
    run = load_config(file, rest, base, values or Values(), place)
    if run.method.name == chosen.learns:  # another method would not know them
        run = replace(run, method=replace(run.method, options={**chosen.method_settings, **run.method.options}))
    if run.optimiser.schedule != "constant":
        what, got = (
            "a search has no last step at which a rate could end",
            f"optimiser.schedule = {run.optimiser.schedule}",
        )
        raise ConfigError(what, got=got, do="leave it constant")
    return SolveConfig(run, chosen, build(Limits, limits or {}), tuple(tasks), keep)


def is_file(name: str) -> bool:
    """Whether this names a file of tasks rather than the id of one."""
    return name.endswith((".jsonl", ".json", ".parquet"))


def solve_settings(config: SolveConfig) -> dict[str, Any]:
    """All settings as JSON values; `config_from` reads them back to an equal value."""
    strategy = {"name": config.name, **plain(config.strategy)}
    return {
        **resolved(config.run),
        SEARCH: {"strategy": strategy, **plain(config.limits), "tasks": list(config.tasks), "keep": config.keep},
    }


def completed_settings(config: SolveConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a search with the defaults of those that they lack, also those of the method and the strategy of
    `config`."""
    own = {"keep": False, **with_defaults(Limits, settings[SEARCH])}
    own["strategy"] = with_defaults(type(config.strategy), own["strategy"])
    return {**completed(settings, type(config.run.make_method())), SEARCH: own}


def config_from(
    settings: Mapping[str, Any], *, run: RunConfig | None = None, strategy: Strategy | None = None
) -> SolveConfig:
    """The settings of a search from their JSON values, with another `run` or `strategy` in place of theirs. Raises
    `ConfigError`."""
    own = settings.get(SEARCH)
    if not own:
        raise ConfigError("these settings are not those of `selfdistill solve`", do="name a directory that it made")
    try:
        options, tasks, keep = dict(own["strategy"]), tuple(own["tasks"]), bool(own["keep"])
        name = options.pop("name")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("these settings of a search are not whole", got=f"{SEARCH} = {own}") from error
    limits = {item.name: own[item.name] for item in fields(Limits) if item.name in own}
    chosen = strategy or get_strategy(name, options)
    return SolveConfig(run or run_config(settings), chosen, build(Limits, limits, Where(SEARCH)), tasks, keep)


def refuse_unread(config: SolveConfig, given: Iterable[str]) -> None:
    """Raises `ConfigError` for settings of training, and for keeping the weights, where the strategy does not train."""
    unread = [key for key in given if key.removeprefix("--").partition(".")[0] in LEARNING]
    if unread and not config.strategy.learns:
        what = f"{config.name} does not train, and this setting would have no effect"
        do = "leave it out, or choose a strategy that trains, such as hybrid"
        raise ConfigError(what, got=", ".join(unread), do=do)


def run_config(settings: Mapping[str, Any]) -> RunConfig:
    """The settings of the run in those of a search, or of a run. Raises `ConfigError`."""
    return from_settings({key: value for key, value in settings.items() if key != SEARCH})
