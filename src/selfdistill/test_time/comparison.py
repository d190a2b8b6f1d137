"""Ways to solve tasks, side by side, under one budget: `selfdistill compare --arm`.

Every way, seed and handful of tasks is a search of its own, in a process of its own:

    <out>/contest.json    what is compared          <out>/searches/<way>-seed0-000/    as `selfdistill solve` leaves it

What is finished is not repeated and what was stopped goes on, so that ways and seeds can be added to a strategy
comparison later. A search that is done names tasks whose questions do not fit the model in `skipped.json`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfdistill.config import parse_override
from selfdistill.data.tasks import NoneFits, training_tasks
from selfdistill.envs.registry import make_environment
from selfdistill.errors import ConfigError, DataError, RunError, nearest
from selfdistill.models.precision import pick_device
from selfdistill.runs.events import Callback, Interrupted, Note, RunStart
from selfdistill.runs.solving import SolveResult, read_result
from selfdistill.runs.store import CONFIG, probe, write_atomic
from selfdistill.test_time.config import SolveConfig, is_file, solve_config
from selfdistill.test_time.solve import solve
from selfdistill.training.side_by_side import COMMAND, Job, places, side_by_side

CONTEST, SKIPPED = "strategy comparison.json", "skipped.json"
MOST_SEEDS = 1000
TASKS_A_JOB = 20  # loading a model takes about as long as a few attempts at one task

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ArmSearch:
    """The search of one arm and seed on some of the tasks, in a directory of its own."""

    label: str
    path: Path
    config: SolveConfig

    @property
    def finished(self) -> bool:
        """Whether every task has a result, or was skipped."""
        skipped = self.path / SKIPPED
        known = {result.task for result in _done(self.path)}
        if skipped.exists():
            try:
                known |= set(json.loads(skipped.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                do = f"remove it, then selfdistill solve --resume {self.path}"
                raise RunError("the list of skipped tasks cannot be read", got=f"{skipped} ({error})", do=do) from error
        return known >= set(self.config.tasks)

    def job(self, out: Path) -> Job:
        """The subprocess that makes it, of the comparison in `out`."""
        run = self.config.run
        start = RunStart(
            path=self.path,
            method=self.config.strategy.name,
            model=run.model,
            env=run.env.name,
            device=str(pick_device(run.device)),
            steps=self.config.rounds,
            completions_sampled=self.config.limits.budget,
        )
        return Job(self.path, (*COMMAND, "compare", "--resume", str(out), "--search", self.path.name), start)


@dataclass(frozen=True, slots=True)
class Arm:
    """A strategy with settings of its own, under a label."""

    label: str
    strategy: str
    settings: Settings = ()


@dataclass(frozen=True, slots=True)
class StrategyComparison:
    """Ways × seeds × tasks. `tasks` are ids; `settings` hold for all ways; `budget` counts attempts for each task and
    seed. Raises `ConfigError`."""

    arms: tuple[Arm, ...]
    tasks: tuple[str, ...]
    seeds: int = 3
    first_seed: int = 0
    budget: int = 640
    settings: Settings = ()

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ConfigError("two ways have one label", got=", ".join(twice), do='write "LABEL: STRATEGY KEY=VALUE"')
        if not 1 <= self.seeds <= MOST_SEEDS:
            what = f"a strategy comparison needs at least one seed, and {MOST_SEEDS} at most"
            raise ConfigError(what, got=self.seeds, do="give for example --seeds 3")

    def config(self, arm: Arm, seed: int = 0, tasks: Sequence[str] = ()) -> SolveConfig:
        """One search. Independent attempts go on to the end of the budget, which their estimate needs."""
        settings = [*self.settings, *arm.settings, ("seed", seed)]
        found = solve_config(arm.strategy, settings, tasks=tasks, limits={"budget": self.budget})
        return replace(found, limits=replace(found.limits, exhaust_budget=found.strategy.independent))


def parse_arm(text: str) -> Arm:
    """`[LABEL: ]STRATEGY [KEY=VALUE …]`; without a label the text is the label. Raises `ConfigError`."""
    label, colon, rest = text.partition(": ")
    try:
        words = shlex.split(rest if colon else text)
    except ValueError as error:
        raise ConfigError("this way cannot be read", got=text, why=str(error)) from error
    if not words or (colon and not label.strip()):
        raise ConfigError(
            "a way names a strategy",
            got=repr(text),
            do='write for example "hybrid strategy.batch=4", or "LABEL: hybrid"',
        )
    return Arm(label.strip(), words[0], pairs_of(words[1:]))


def pairs_of(settings: Sequence[str | tuple[str, Any]]) -> Settings:
    """Settings as dotted keys with values, from `KEY=VALUE` where they are text. Raises `ConfigError`, also for a
    seed: those are the strategy comparison's."""
    pairs = tuple(parse_override(item) if isinstance(item, str) else item for item in settings)
    for key, value in pairs:
        if key == "seed":
            raise ConfigError(
                "the seeds are those of the strategy comparison",
                got=f"seed={value}",
                why="all ways are compared on the same seeds",
                do="give the first one with --seed, and how many with --seeds",
            )
    return pairs


def task_ids(names: Sequence[str], settings: Settings, seed: int = 0) -> tuple[Settings, tuple[str, ...]]:
    """The settings with the file of tasks among `names`, if there is one, and the ids of the tasks that were asked for:
    those named, all of the file, or all of the environment.

    Raises `ConfigError` for more than one file, and where the tasks depend on the seed; `DataError` for an unknown id.
    """
    given = [str(value) for key, value in settings if key == "data" and value]
    files = list(dict.fromkeys([*given, *(name for name in names if is_file(name))]))
    if len(files) > 1:
        raise ConfigError(
            "a strategy comparison takes its tasks from one file", got=", ".join(files), do="put them into one"
        )
    own: Settings = (*settings, ("data", files[0])) if files and not given else settings
    every = [_ids(own, number) for number in (seed, seed + 1)]
    if every[0] != every[1]:
        raise ConfigError(
            "every seed would search other tasks",
            got=f"{every[0][0]} … for seed {seed}, {every[1][0]} … for seed {seed + 1}",
            why="ways and seeds are compared on the same tasks",
            do="fix them by a setting of the environment, such as env.draw=0 for the coined verbs",
        )
    named = tuple(name for name in names if not is_file(name))
    for name in named:
        if name not in every[0]:
            raise DataError("there is no such task", got=name, do=nearest(name, every[0]))
    return own, tuple(dict.fromkeys(named)) or tuple(every[0])


def _ids(settings: Settings, seed: int) -> list[str]:
    run = solve_config(overrides=[*settings, ("seed", seed)]).run
    env = make_environment(run.env.name, run.env.options, seed=seed)
    return [task.id for task in training_tasks(env, run.data)]


def run_comparison(
    strategy_comparison: StrategyComparison,
    out: Path,
    callback: Callback,
    *,
    at_once: int | None = None,
) -> tuple[StrategyComparison, dict[str, list[SolveResult]]]:
    """Makes all searches that are missing in `out`, as many at a time as `places` says; returns the strategy comparison
    with the ways and seeds that `out` had before, and by label the results on the tasks that all could search.

    Raises `DataError` where no task's question fits the model, `RunError` where `out` holds a strategy comparison on
    other tasks, budget or settings; `Interrupted` after Ctrl-C.
    """
    whole = _joined(strategy_comparison, out)
    at_once = places([whole.config(arm).run.device for arm in whole.arms], at_once)
    every, fresh = list(searches(whole, out)), not (out / CONTEST).exists()
    probe(out, 0)
    write_atomic(out / CONTEST, json.dumps(asdict(whole), indent=1) + "\n")
    try:
        side_by_side([search.job(out) for search in every if not search.finished], callback, at_once=at_once)
    except KeyboardInterrupt as stop:
        raise Interrupted(out, None, "compare") from stop
    except RunError:
        if fresh and not any(out.glob(f"searches/*/{CONFIG}")):  # refused before any began: a corrected one may follow
            (out / CONTEST).unlink()
            with suppress(OSError):
                out.rmdir()
        raise
    for search in every:
        if not search.finished:
            raise RunError("a search did not finish", got=search.path, do=f"selfdistill compare --resume {out}")
    return whole, _comparable(whole, results(whole, out))


def results(strategy_comparison: StrategyComparison, out: Path) -> dict[str, list[SolveResult]]:
    """What is finished, by the label of the way."""
    found: dict[str, list[SolveResult]] = {arm.label: [] for arm in strategy_comparison.arms}
    for search in searches(strategy_comparison, out):
        found[search.label] += _done(search.path)
    return found


def read_strategy_comparison(out: Path) -> StrategyComparison:
    """The strategy comparison that a folder holds. Raises `RunError`."""
    try:
        saved = json.loads((out / CONTEST).read_text(encoding="utf-8"))
        arms = tuple(Arm(w["label"], w["strategy"], _pairs(w["settings"])) for w in saved.pop("arms"))
        return StrategyComparison(arms, tuple(saved.pop("tasks")), settings=_pairs(saved.pop("settings")), **saved)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "there is no strategy comparison here", got=f"{out / CONTEST} ({error})", do="name its folder"
        ) from error


def searches(strategy_comparison: StrategyComparison, out: Path) -> Iterator[ArmSearch]:
    """Those of every arm, seed and handful of tasks; all arms of a seed before the next seed."""
    for seed in range(strategy_comparison.first_seed, strategy_comparison.first_seed + strategy_comparison.seeds):
        for number, arm in enumerate(strategy_comparison.arms):
            folder = f"{number:02d}-{re.sub(r'[^A-Za-z0-9._=-]+', '-', arm.label)[:80]}"
            for start in range(0, len(strategy_comparison.tasks), TASKS_A_JOB):
                config = strategy_comparison.config(arm, seed, strategy_comparison.tasks[start : start + TASKS_A_JOB])
                path = out / "searches" / f"{folder}-seed{seed}-{start:03d}"
                yield ArmSearch(arm.label, path, config)


def run_search(name: str, out: Path, callback: Callback) -> None:
    """Makes, or resumes, one search of the comparison in `out`, by the name of its directory. Tasks whose questions do
    not fit the model are skipped."""
    every = {search.path.name: search for search in searches(read_strategy_comparison(out), out)}
    if name not in every:
        raise ConfigError("the comparison has no such search", got=name, do=nearest(name, every))
    search = every[name]
    try:
        solve(search.config, callback, out=search.path, resume=(search.path / CONFIG).exists())
    except NoneFits as error:
        callback(Note(f"skipped: {error}"))
        probe(search.path, 0)
    done = {result.task for result in _done(search.path)}
    skipped = [task for task in search.config.tasks if task not in done]
    if skipped:
        write_atomic(search.path / SKIPPED, json.dumps(skipped) + "\n")


def _joined(strategy_comparison: StrategyComparison, out: Path) -> StrategyComparison:
    """This strategy comparison, with the ways and seeds that the folder already had."""
    if not (out / CONTEST).exists():
        return strategy_comparison
    before = read_strategy_comparison(out)
    same = ("tasks", "budget", "settings", "first_seed")
    different = [name for name in same if getattr(before, name) != getattr(strategy_comparison, name)]
    if different:
        raise RunError(
            "the folder holds a strategy comparison with other " + ", ".join(different),
            got=out,
            why="ways are compared on the same tasks under the same budget",
            do="choose another --out; ways and seeds alone can be added",
        )
    own = {arm.label: arm for arm in (*before.arms, *strategy_comparison.arms)}
    if any(own[arm.label] != arm for arm in before.arms):
        raise RunError("a way of the same label had other settings", got=out, do="give it another label")
    return replace(strategy_comparison, arms=tuple(own.values()), seeds=max(before.seeds, strategy_comparison.seeds))


def _done(path: Path) -> list[SolveResult]:
    found = [read_result(folder) for folder in sorted(path.glob("[0-9]*"))]
    return [result for result in found if result is not None]


def _comparable(
    strategy_comparison: StrategyComparison, found: Mapping[str, Sequence[SolveResult]]
) -> dict[str, list[SolveResult]]:
    """The results on tasks that no search skipped: ways may differ in what they can read."""
    times = Counter(result.task for own in found.values() for result in own)
    shared = {
        task for task, count in times.items() if count == len(strategy_comparison.arms) * strategy_comparison.seeds
    }
    if not shared:
        raise DataError(
            "no question fits the model of every way",
            got=", ".join(strategy_comparison.tasks),
            do="shorten the questions, or take a model that reads more",
        )
    return {label: [result for result in own if result.task in shared] for label, own in found.items()}


def _pairs(saved: Sequence[Sequence[Any]]) -> Settings:
    return tuple((str(key), value) for key, value in saved)
