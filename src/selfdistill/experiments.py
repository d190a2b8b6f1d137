"""The commands eval, solve and compare as Python functions, which take values as `sd.train` does.

sd.evaluate(run.model_dir, env=reward, data=rows).accuracy
sd.solve("Qwen/Qwen3-0.6B", env=reward, task={"prompt": "…"}, strategy="hybrid", attempts=500).solution
sd.compare(methods=["sdpo", "grpo"], env="verbs", steps=40)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeAlias

from selfdistill.analysis.context_gain import ANSWERS, ContextGainReport, measure_context_gain
from selfdistill.api import configured, refuse_settings_of, refuse_two_places, reporting, run_config, settings_of
from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError, nearest
from selfdistill.methods import Method
from selfdistill.models.load import LoraOptions
from selfdistill.plugins import short_name
from selfdistill.runs import Callback, Estimate, RolloutRecord, Run, fresh_path, read_run, saved_config
from selfdistill.runs.solving import SolveResult, read_result
from selfdistill.runs.store import SEARCH
from selfdistill.test_time.config import OWN, config_from, refuse_unread, solve_config
from selfdistill.test_time.solve import default_path
from selfdistill.test_time.solve import solve as search
from selfdistill.test_time.strategies import get_strategy
from selfdistill.test_time.strategies.bare import SelfDistill
from selfdistill.test_time.strategies.base import Strategy
from selfdistill.training.evaluation import STUDENT_SPLITS, measure
from selfdistill.training.side_by_side import compare as run_side_by_side
from selfdistill.types import Task

Split: TypeAlias = Literal["train", "held_out", "forgetting"]
OneTask: TypeAlias = str | PathLike[str] | Task | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracies by split, each with its 95 % interval; with `teacher`, the gain from each kind of context too."""

    splits: Mapping[str, Estimate]
    context_gain: ContextGainReport | None = None

    @property
    def accuracy(self) -> Estimate:
        """On the tasks of the run, or on the one split that was measured."""
        return next(iter(self.splits.values()))


@dataclass(frozen=True, slots=True)
class Solutions:
    """A finished search: its directory, and a result for each task, in order."""

    path: Path
    results: tuple[SolveResult, ...]

    @property
    def solved(self) -> bool:
        """Whether every task is solved."""
        return all(result.solved for result in self.results)

    @property
    def solution(self) -> str:
        """The first solved attempt at the first task; empty where there is none."""
        return self.results[0].solution

    def attempts(self, task: str | None = None) -> Iterator[RolloutRecord]:
        """The attempts at all tasks, or at one, in order. Raises `ConfigError` for an unknown id."""
        ids = [result.task for result in self.results]
        if task is not None and task not in ids:
            raise ConfigError("the search has no such task", got=task, do=nearest(task, ids))
        for folder in sorted(self.path.glob("[0-9]*")):
            result = read_result(folder)
            if result is not None and task in (None, result.task):
                yield from read_run(folder).rollouts()


def evaluate(
    model: str | PathLike[str] | None = None,
    *,
    env: Any = None,
    data: Any = None,
    eval_data: Any = None,
    split: Split | None = None,
    teacher: bool = False,
    tasks: int | None = None,
    rollouts: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    out: str | PathLike[str] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Measures a model as it is, without training, on all splits that there are, or on one.

    model, env, data, eval_data, seed, callbacks, progress, settings: as in `sd.train`; a run's `model_dir` is a model.
    teacher: measure the gain of accuracy with each kind of context in place of the splits. tasks: most tasks of each
    split. rollouts, temperature: answers for each task, and how they are sampled (default: 1, greedy; with `teacher` 4
    at temperature 1).
    out: directory for records of the answers.
    """
    if split is not None and (split not in STUDENT_SPLITS or teacher):
        do = (
            "leave it out: contexts are those of the tasks of the run"
            if teacher
            else nearest(str(split), STUDENT_SPLITS)
        )
        raise ConfigError("this split cannot be measured", got=f"split = {split!r}", do=do)
    given: dict[str, Any] = {"model": model, "seed": seed, "out": out, "evaluation.tasks": tasks}
    given |= {"evaluation.rollouts": rollouts, "evaluation.temperature": temperature}
    chosen = settings_of(given, {"env": env, "data": data, "eval_data": eval_data}, settings)
    config = configured(*chosen, ANSWERS if teacher else {})
    with reporting("eval", callbacks, progress=progress) as callback:
        if teacher:
            report = measure_context_gain(config, callback)
            return Evaluation({"train": report.bare}, report)
        records = measure(config, callback, STUDENT_SPLITS if split is None else (split,))
    return Evaluation({record.split: record.accuracy for record in records})


def solve(
    model: str | PathLike[str] | None = None,
    *,
    task: OneTask | Sequence[OneTask] | None = None,
    strategy: str | Mapping[str, Any] | Strategy | None = None,
    attempts: int | None = None,
    tokens: int | None = None,
    seconds: int | None = None,
    exhaust_budget: bool | None = None,
    keep: bool = False,
    method: str | Mapping[str, Any] | Method | None = None,
    env: Any = None,
    data: Any = None,
    lora: int | LoraOptions | Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Solutions:
    """Searches for solutions of hard tasks at test time. None means the default of the command line, or what the
    resumed search has.

    task: a task, a row, the id of a task of the environment or of `data`, a file of tasks, or a list of one of these;
    by default all tasks. strategy: a name, `{"name": "hybrid", "batch": 4}`, or a value. attempts, tokens, seconds: the
    budget of each task, one of these. exhaust_budget: use all of it, also after a task is solved. keep: save the
    weights at the end of each task. All else is as in `sd.train`.

    Ctrl-C ends the search after its round, saved (`KeyboardInterrupt`); `resume=` its directory, with the same values,
    resumes it.
    """
    refuse_two_places(out, resume)
    names, rows = _tasks(task, data)
    chosen, rest = _strategy(strategy, settings)
    budgets = {"attempts": attempts, "tokens": tokens, "seconds": seconds}
    limits = _limits(budgets) | ({} if exhaust_budget is None else {"exhaust_budget": exhaust_budget})
    given = {"model": model, "seed": seed}
    pairs, values = settings_of(given, {"method": method, "env": env, "data": rows, "lora": lora}, rest)
    if resume is None:
        chosen = chosen or SelfDistill()
        config = solve_config(chosen, pairs, tasks=names, limits=limits, keep=keep, values=values, place="")
    else:
        saved = saved_config(Path(resume))["settings"]
        run = configured(pairs, values, {key: value for key, value in saved.items() if key != SEARCH})
        config = config_from(saved, run=run, strategy=chosen)
        kept = replace(config.limits, **limits)
        config = replace(config, limits=kept, tasks=tuple(names) or config.tasks, keep=keep or config.keep)
    refuse_unread(config, [*(key for key, _ in pairs), *["keep"] * keep])
    path = Path(resume or out or default_path(config))
    with reporting("solve", callbacks, progress=progress) as callback:
        return Solutions(path, tuple(search(config, callback, out=path, resume=resume is not None)))


def compare(
    model: str | PathLike[str] | None = None,
    *,
    runs: Mapping[str, Mapping[str, Any]] | None = None,
    methods: Iterable[str | Mapping[str, Any] | Method] = (),
    jobs: int | None = None,
    out: str | PathLike[str] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    progress: bool = True,
    **shared: Any,
) -> list[Run]:
    """Trains several runs side by side, each in a process of its own, and returns them in order.

    runs: for each run its name, and the arguments of `sd.train` that it has of its own: `{"slow": {"optimiser.lr":
    1e-6}}`. methods: methods, each a run of that name. shared: arguments of all runs. out: directory of the runs
    (default: runs/comparison); those that it holds are resumed. jobs: runs at a time (default: one on a GPU, else one
    for each core). callbacks: an event's `run` is the name of its run.

    Raises `ConfigError` for values that no file can hold, such as a function: the other processes could not read them.
    After Ctrl-C every run saves its step (`KeyboardInterrupt`).
    """
    named = [(_name(method), {"method": method}) for method in methods]
    every = {**dict(named), **(runs or {})}
    if len(dict(named)) < len(named):
        do = 'name them: runs={"small": {"method": sd.SDPO(alpha=0.1)}, …}'
        raise ConfigError("two methods have one name", got=", ".join(name for name, _ in named), do=do)
    if not every:
        raise ConfigError("there is no run", do='give methods=["sdpo", "grpo"], or runs={"name": {…}, …}')
    folder = Path(out) if out is not None else fresh_path(Path("runs"), "comparison")
    configs = [_own_config(name, {"model": model, **shared, **own}, folder) for name, own in every.items()]
    with reporting("compare", callbacks, progress=progress) as callback:
        return [read_run(path) for path in run_side_by_side(configs, callback, at_once=jobs)]


def _name(method: str | Mapping[str, Any] | Method) -> str:
    return short_name(method if isinstance(method, str) else run_config({}, method=method).method.name)


def _own_config(name: str, values: Mapping[str, Any], folder: Path) -> RunConfig:
    """The settings of one run of a comparison. Raises `ConfigError` for values that no file can hold."""
    if not re.fullmatch(r"[\w.=+-]+", name):
        raise ConfigError(
            "the name of a run is that of its directory", got=repr(name), do="use letters, digits and - _ ."
        )
    parts = {key: values[key] for key in ("method", "env", "data", "eval_data", "lora") if key in values}
    rest = {key: value for key, value in values.items() if key not in parts and value is not None}
    config = run_config({"out": folder / name}, **parts, settings=rest)
    held = {"method": "method", "env": "env", "tasks": "data", "eval_tasks": "eval_data"}  # by the name of the argument
    unwritten = [
        f"{name} = {getattr(values[name], '__name__', type(values[name]).__name__)}"
        for field, name in held.items()
        if getattr(config.values, field) is not None
    ]
    if unwritten:
        raise ConfigError(
            f"the run {name!r} has a value that no file can hold",
            got=", ".join(unwritten),
            why="each run is a process of its own, which reads its settings from a file",
            do="name them instead: env='my_env.py:reward', method='my_method.py:Mine', data='tasks.jsonl'; or train "
            "one run after the other with sd.train",
        )
    return config


def _strategy(
    strategy: str | Mapping[str, Any] | Strategy | None, settings: Mapping[str, Any]
) -> tuple[Strategy | None, Mapping[str, Any]]:
    """The strategy, where one is given, and the settings that are not its own. Raises `ConfigError`."""
    refuse_settings_of({"strategy": strategy}, settings)
    rest = {key: value for key, value in settings.items() if not key.startswith(OWN)}
    if isinstance(strategy, Strategy):
        return strategy, rest
    own = {key.removeprefix(OWN): value for key, value in settings.items() if key.startswith(OWN)}
    if isinstance(strategy, Mapping):
        own, strategy = {key: value for key, value in strategy.items() if key != "name"}, strategy.get("name")
    if strategy is None and not own:
        return None, rest
    name = SelfDistill.name if strategy is None else strategy
    if not isinstance(name, str):
        raise ConfigError("strategy should be a strategy, or its name", got=repr(name)[:200])
    return get_strategy(name, own), rest


def _tasks(task: OneTask | Sequence[OneTask] | None, data: Any) -> tuple[list[str], Any]:
    """The ids and files of tasks, and the data of the run: tasks that are values are data. Raises `ConfigError`."""
    every: list[Any] = list(task) if isinstance(task, list | tuple) else [task] * (task is not None)
    names = [fspath(one) for one in every if isinstance(one, str | PathLike)]
    values = [one for one in every if isinstance(one, Task | Mapping)]
    if len(names) + len(values) < len(every):
        raise ConfigError("task should be a task, a row, an id or a file", got=repr(task)[:200])
    if values and (names or data is not None):
        what = "tasks are given twice" if data is not None else "some tasks are values, and some are names"
        raise ConfigError(what, do="give all as values: task=[…]; or name those of data=…")
    return names, values or data


def _limits(budgets: Mapping[str, int | None]) -> dict[str, Any]:
    """The budget of a search in its one unit. Raises `ConfigError` for several."""
    given = {unit: budget for unit, budget in budgets.items() if budget is not None}
    if len(given) > 1:
        raise ConfigError("a search has one budget", got=", ".join(f"{unit} = {n}" for unit, n in given.items()))
    return {key: value for unit, budget in given.items() for key, value in (("unit", unit), ("budget", budget))}
