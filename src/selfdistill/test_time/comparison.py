"""Strategy comparison: strategies on the same tasks under one budget, `selfdistill compare --arm`.

Every arm, seed and slice of the tasks is a search in a process of its own:

    <out>/comparison.json    its settings          <out>/searches/<arm>-seed0-000/    as `selfdistill solve` leaves it

Searches that are done are not repeated and stopped ones resume, so that arms and seeds can be added later. A search
lists the tasks whose questions do not fit the model in `skipped.json`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from selfdistill.config import parse_override
from selfdistill.data.tasks import NoneFits
from selfdistill.errors import ConfigError, DataError, Ranged, RunError, nearest
from selfdistill.models.precision import pick_device
from selfdistill.options import option
from selfdistill.runs.events import Callback, Interrupted, Note
from selfdistill.runs.solving import SolveResult, read_result
from selfdistill.runs.store import CONFIG, probe, read_json_file, write_atomic
from selfdistill.scale.launch import COMMAND
from selfdistill.test_time.config import SolveConfig, is_file, solve_config
from selfdistill.test_time.solve import solve
from selfdistill.training.side_by_side import Job, places, side_by_side

COMPARISON, SKIPPED = "comparison.json", "skipped.json"
TASKS_A_JOB = 20  # loading a model takes about as long as a few attempts at one task

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ArmSearch:
    """The search of one arm and seed on some of the tasks, in a directory of its own."""

    label: str
    path: Path
    config: SolveConfig

    @property
    def results(self) -> list[SolveResult]:
        """Those of the tasks that are done."""
        return list(filter(None, map(read_result, sorted(self.path.glob("[0-9]*")))))

    @property
    def finished(self) -> bool:
        """Whether every task has a result, or was skipped."""
        do = f"remove it, then selfdistill solve --resume {self.path}"
        skipped = read_json_file(list[str], self.path / SKIPPED, "the list of skipped tasks", do) or []
        return {*skipped, *(result.task for result in self.results)} >= set(self.config.tasks)

    def job(self, out: Path) -> Job:
        """The subprocess that makes it, of the comparison in `out`."""
        run = self.config.run
        start = self.config.run_start(self.path, run.env.name, str(pick_device(run.device)))
        return Job(self.path, (*COMMAND, "compare", "--resume", str(out), "--search", self.path.name), start)


@dataclass(frozen=True, slots=True)
class Arm:
    """A strategy with settings of its own, under a label."""

    label: str
    strategy: str
    settings: Settings = ()


@dataclass(frozen=True, slots=True)
class StrategyComparison(Ranged):
    """Arms × seeds × tasks. `tasks` are ids; `settings` are those of all arms. Raises `ConfigError`."""

    arms: tuple[Arm, ...]
    tasks: tuple[str, ...]
    seeds: int = option(3, "seeds of each arm", least=1, most=1000)
    first_seed: int = 0
    budget: int = option(640, "attempts for each task and seed", least=1)
    settings: Settings = ()

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        twice = sorted(label for label, count in Counter(arm.label for arm in self.arms).items() if count > 1)
        if twice:
            raise ConfigError("two arms have one label", got=", ".join(twice), do='write "LABEL: STRATEGY KEY=VALUE"')

    def config(self, arm: Arm, seed: int = 0, tasks: Sequence[str] = ()) -> SolveConfig:
        """The settings of one search. Independent attempts use the whole budget, which their estimate needs."""
        settings = [*self.settings, *arm.settings, ("seed", seed)]
        found = solve_config(arm.strategy, settings, tasks=tasks, limits={"budget": self.budget})
        return replace(found, limits=replace(found.limits, exhaust_budget=found.strategy.pooled))


def parse_arm(text: str) -> Arm:
    """`[LABEL: ]STRATEGY [KEY=VALUE …]`; without a label the text is the label. Raises `ConfigError`."""
    label, colon, rest = text.partition(": ")
    try:
        words = shlex.split(rest if colon else text)
    except ValueError as error:
        raise ConfigError("this arm cannot be read", got=text, why=str(error)) from error
    if not words or (colon and not label.strip()):
        do = 'write for example "hybrid strategy.batch=4", or "LABEL: hybrid"'
        raise ConfigError("an arm names a strategy", got=repr(text), do=do)
    return Arm(label.strip(), words[0], pairs_of(words[1:]))


def pairs_of(settings: Sequence[str | tuple[str, Any]]) -> Settings:
    """Settings as dotted keys with values, from `KEY=VALUE` where they are text. Raises `ConfigError`, also for a seed,
    which belongs to the whole comparison."""
    pairs = tuple(parse_override(item) if isinstance(item, str) else item for item in settings)
    for key, value in pairs:
        if key == "seed":
            what = "the seeds are those of the strategy comparison"
            raise ConfigError(what, got=f"seed={value}", do="give the first one with --seed, how many with --seeds")
    return pairs


def task_ids(names: Sequence[str], settings: Settings, seed: int = 0) -> tuple[Settings, tuple[str, ...]]:
    """The settings, with the file of tasks among `names` as their data, and the ids of the tasks: those named, or all
    of the file or the environment.

    Raises `ConfigError` for more than one file, and where the tasks depend on the seed; `DataError` for an unknown id.
    """
    given = [str(value) for key, value in settings if key == "data" and value]
    files = list(dict.fromkeys([*given, *(name for name in names if is_file(name))]))
    if len(files) > 1:
        what = "a strategy comparison takes its tasks from one file"
        raise ConfigError(what, got=", ".join(files), do="put them into one")
    own: Settings = (*settings, ("data", files[0])) if files and not given else settings

    def ids(seed: int) -> list[str]:
        run = solve_config(overrides=[*own, ("seed", seed)]).run
        return [task.id for task in run.tasks_of(run.make_env())]

    every, next_seed = ids(seed), ids(seed + 1)
    if every != next_seed:
        raise ConfigError(
            "every seed would search other tasks",
            got=f"{every[0]} … for seed {seed}, {next_seed[0]} … for seed {seed + 1}",
            why="arms and seeds are compared on the same tasks",
            do="fix them by a setting of the environment, such as env.draw=0 for the coined verbs",
        )
    named = tuple(name for name in names if not is_file(name))
    for name in named:
        if name not in every:
            raise DataError("there is no such task", got=name, do=nearest(name, every))
    return own, tuple(dict.fromkeys(named)) or tuple(every)


def run_comparison(
    comparison: StrategyComparison, out: Path, callback: Callback, *, at_once: int | None = None
) -> tuple[StrategyComparison, dict[str, list[SolveResult]]]:
    """Runs all searches that `out` lacks, as many at a time as `places` allows. Returns the comparison with the arms
    and seeds that `out` had before, and by label the results on the tasks that no search skipped.

    Raises `DataError` where no task's question fits the model, `RunError` where `out` holds a comparison on other
    tasks, budget or settings; `Interrupted` after Ctrl-C.
    """
    whole = _joined(comparison, out)
    at_once = places([whole.config(arm).run.device for arm in whole.arms], at_once)
    probe(out, 0)
    write_atomic(out / COMPARISON, json.dumps(asdict(whole), indent=1) + "\n")
    try:
        side_by_side(
            [search.job(out) for search in searches(whole, out) if not search.finished], callback, at_once=at_once
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(out, None, "compare") from stop
    except RunError:
        if not any(out.glob(f"searches/*/{CONFIG}")):  # refused before any began: a corrected one may follow
            (out / COMPARISON).unlink()
            with suppress(OSError):
                out.rmdir()
        raise
    found = results(whole, out)
    counts = Counter(result.task for own in found.values() for result in own)
    shared = {task for task, count in counts.items() if count == len(whole.arms) * whole.seeds}
    if not shared:
        do = "shorten the questions, or take a model that reads more"
        raise DataError("no question fits the model of every arm", got=", ".join(whole.tasks), do=do)
    return whole, {label: [result for result in own if result.task in shared] for label, own in found.items()}


def results(comparison: StrategyComparison, out: Path) -> dict[str, list[SolveResult]]:
    """The results of the tasks that are done, by the label of the arm."""
    found: dict[str, list[SolveResult]] = {arm.label: [] for arm in comparison.arms}
    for search in searches(comparison, out):
        found[search.label] += search.results
    return found


def read_strategy_comparison(out: Path) -> StrategyComparison:
    """The strategy comparison of a folder. Raises `RunError`."""
    file = out / COMPARISON
    try:
        return TypeAdapter(StrategyComparison).validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError("there is no strategy comparison here", got=f"{file} ({error})", do="name its folder") from error


def searches(comparison: StrategyComparison, out: Path) -> Iterator[ArmSearch]:
    """Those of every arm, seed and slice of the tasks; all arms of a seed before the next seed."""
    for seed in range(comparison.first_seed, comparison.first_seed + comparison.seeds):
        for number, arm in enumerate(comparison.arms):
            folder = f"{number:02d}-{re.sub(r'[^A-Za-z0-9._=-]+', '-', arm.label)[:80]}"
            for start in range(0, len(comparison.tasks), TASKS_A_JOB):
                config = comparison.config(arm, seed, comparison.tasks[start : start + TASKS_A_JOB])
                path = out / "searches" / f"{folder}-seed{seed}-{start:03d}"
                yield ArmSearch(arm.label, path, config)


def run_search(name: str, out: Path, callback: Callback) -> None:
    """Runs or resumes one search of the comparison in `out`, by the name of its directory. Tasks whose questions do not
    fit the model are skipped."""
    every = {search.path.name: search for search in searches(read_strategy_comparison(out), out)}
    if name not in every:
        raise ConfigError("the comparison has no such search", got=name, do=nearest(name, every))
    search = every[name]
    try:
        solve(search.config, callback, out=search.path, resume=(search.path / CONFIG).exists())
    except NoneFits as error:
        callback(Note(f"skipped: {error}"))
        probe(search.path, 0)
    done = {result.task for result in search.results}
    skipped = [task for task in search.config.tasks if task not in done]
    if skipped:
        write_atomic(search.path / SKIPPED, json.dumps(skipped) + "\n")


def _joined(comparison: StrategyComparison, out: Path) -> StrategyComparison:
    """The comparison with the arms and seeds that the folder already has."""
    if not (out / COMPARISON).exists():
        return comparison
    before = read_strategy_comparison(out)
    same = ("tasks", "budget", "settings", "first_seed")
    different = [name for name in same if getattr(before, name) != getattr(comparison, name)]
    if different:
        what = "the folder holds a strategy comparison with other " + ", ".join(different)
        raise RunError(what, got=out, do="choose another --out; only arms and seeds can be added")
    own = {arm.label: arm for arm in (*before.arms, *comparison.arms)}
    if any(own[arm.label] != arm for arm in before.arms):
        raise RunError("an arm of the same label had other settings", got=out, do="give it another label")
    return replace(comparison, arms=tuple(own.values()), seeds=max(before.seeds, comparison.seeds))
