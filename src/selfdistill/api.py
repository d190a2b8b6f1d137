"""The commands as Python functions, which take values where the command line takes names.

    run = sd.train("Qwen/Qwen3-0.6B", method=sd.SDPO(), env=reward, data=rows, lora=16, steps=100)

What a file can hold is written to the config of the run, as the command line writes it: a shipped method with its
settings, paths, names. Functions, objects and tasks in memory are passed again on a resume.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from selfdistill.config import RunConfig, Values, load_config
from selfdistill.envs.rewards import as_environment
from selfdistill.errors import ConfigError
from selfdistill.methods import METHODS, Method, get_method
from selfdistill.models.load import LoraOptions
from selfdistill.options import plain
from selfdistill.plugins import FROM_PYTHON
from selfdistill.runs import Callback, Note, Run, read_run, saved_config
from selfdistill.training import loop
from selfdistill.training.callbacks import all_of
from selfdistill.view.progress import RunDisplay

Settings: TypeAlias = list[tuple[str, Any]]


def train(
    model: str | PathLike[str] | None = None,
    *,
    method: str | Mapping[str, Any] | Method | None = None,
    env: Any = None,
    data: Any = None,
    eval_data: Any = None,
    lora: int | LoraOptions | Mapping[str, Any] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Trains a model and returns its run. None means the default of the command line, or that of the resumed run.

    model: directory or hub name. method: a method (`sd.SDPO()`), its name, or {"name": …} with its settings. env: a
    reward function, an environment or a name. data: a path, a data set of the hub, rows, or tasks (`sd.load_data`); or
    a list of such with weights, `[("a.jsonl", 2), (rows, 1)]`, which are mixed. eval_data: held-out tasks, likewise.
    lora: rank of the adapters, or their options. callbacks: called with every event. progress: show the run on standard
    error. settings: any other setting by its name, tables as mappings: `optimiser={"lr": 1e-5}`,
    `columns={"prompt": "question"}`.

    Ctrl-C ends the run after its step, saved (`KeyboardInterrupt`); `resume=` its directory, with the same values, goes
    on. Raises what `selfdistill.errors` lists, before anything is sampled where it can.
    """
    refuse_two_places(out, resume)
    given = {"model": model, "steps": steps, "seed": seed, "out": out if resume is None else resume}
    parts = {"method": method, "env": env, "data": data, "eval_data": eval_data, "lora": lora}
    config = run_config(given, **parts, resume=resume, settings=settings)
    with reporting(config.method.name, callbacks, progress=progress) as callback:
        return read_run(loop.train(config, callback, resume=resume is not None))


def run_config(
    given: Mapping[str, Any], *, resume: Any = None, settings: Mapping[str, Any] = {}, **parts: Any
) -> RunConfig:
    """The settings of a run from values, its `parts` as in `train`. Raises `ConfigError`."""
    chosen, values = settings_of(given, parts, settings)
    return configured(chosen, values, saved_config(Path(resume))["settings"] if resume is not None else {})


def settings_of(
    given: Mapping[str, Any], parts: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Settings, Values]:
    """Values as settings, and those that no file can hold. Raises `ConfigError`."""
    model = given.get("model")
    _expect(model is None or isinstance(model, str | PathLike), "model", "a directory or a hub name", model)
    chosen: Settings = [(key, fspath(v) if isinstance(v, PathLike) else v) for key, v in given.items() if v is not None]
    values: dict[str, Any] = {}
    _refuse_functions(settings.get("columns", {}))
    method, env, lora = (parts.get(part) for part in ("method", "env", "lora"))
    refuse_settings_of({"method": method, "env": env}, settings)
    if isinstance(method, Method):
        chosen.append(("method", _method_table(method)))
        if chosen[-1][1]["name"].startswith(FROM_PYTHON):
            values["method"] = method
    elif method is not None:
        expected = 'a method such as sd.SDPO(), its name, or {"name": …} with its settings'
        _expect(isinstance(method, str | Mapping), "method", expected, method)
        chosen.append(("method", method))
    if isinstance(env, str | Mapping):
        chosen.append(("env", env))
    elif env is not None:
        values["env"] = as_environment(env)
        chosen.append(("env", FROM_PYTHON + values["env"].name))
    for key, held in (("data", "tasks"), ("eval_data", "eval_tasks")):
        source = parts.get(key)
        if isinstance(source, str | PathLike):
            chosen.append((key, fspath(source)))
        elif key == "data" and (pairs := _mixture(source)):
            paths = [fspath(one) if isinstance(one, str | PathLike) else "" for one, _ in pairs]
            weights = [weight for _, weight in pairs]
            chosen.append((key, [*zip((path or FROM_PYTHON for path in paths), weights, strict=True)]))
            if not all(paths):
                values[held] = [None if path else one for path, (one, _) in zip(paths, pairs, strict=True)]
        elif source is not None:
            values[held] = source
            chosen.append((key, FROM_PYTHON + key))
    if lora is not None:
        chosen.append(("lora", {"rank": lora} if isinstance(lora, int) else lora))
    return [*chosen, *settings.items()], Values(**values)


def configured(chosen: Settings, values: Values, base: Mapping[str, Any]) -> RunConfig:
    """The settings over those of `base`, such as a saved run."""
    whole = [key for key, value in chosen if isinstance(value, Mapping) and "name" in value]  # takes no saved options
    base = {key: value for key, value in base.items() if key not in whole}
    return load_config(None, chosen, base, values, place="")


@contextmanager
def reporting(label: str, callbacks: Callback | Iterable[Callback], *, progress: bool) -> Iterator[Callback]:
    """One callback that passes events on to all, and with `progress` shows them on standard error."""
    every = [callbacks] if callable(callbacks) else list(callbacks)
    for callback in every:
        _expect(callable(callback), "callbacks", "callables that take an event", callback)
    with ExitStack() as stack:
        warn: Callable[[str], None] = warnings.warn
        if progress and os.environ.get("RANK", "0") == "0":  # of ranks that torchrun started
            display = stack.enter_context(RunDisplay(label, Console(stderr=True)))
            every, warn = [display, *every], lambda text: display(Note(text))
        yield stack.enter_context(all_of(every, warn))


def _mixture(source: Any) -> list[tuple[Any, Any]]:
    """The pairs of a source and its weight, where data is a list of such."""
    pairs = list(source) if isinstance(source, list | tuple) else []
    return pairs if all(isinstance(one, tuple) and len(one) == 2 for one in pairs) else []


def _refuse_functions(columns: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a function in the column map: no file could hold it."""
    for name, column in columns.items():
        if not isinstance(column, str):
            do = f"pass the tasks: data=sd.load_data(…, {name}=…) takes functions"
            raise ConfigError("columns should be names of columns", got=f"columns[{name!r}] = {column!r}"[:200], do=do)


def _method_table(method: Method) -> dict[str, Any]:
    """The table of a method in a config: its name and the settings that are not its defaults, where these make an equal
    method again; else a name that stands for the value."""
    name = next((name for name, kind in METHODS.items() if kind is type(method)), "")
    settings = plain(method)
    if name:
        defaults = plain(METHODS[name]())
        changed = {key: value for key, value in settings.items() if value != defaults[key]}
        if get_method(name, changed) == method:
            return {"name": name, **changed}
    return {"name": FROM_PYTHON + type(method).__name__, **settings}


def refuse_two_places(out: str | PathLike[str] | None, resume: str | PathLike[str] | None) -> None:
    """Raises `ConfigError` for an `out` that is not the directory to resume."""
    if out is not None and resume is not None and Path(out).resolve() != Path(resume).resolve():
        got = f"out = {fspath(out)!r}, resume = {fspath(resume)!r}"
        raise ConfigError("what is resumed stays in its directory", got=got, do="leave out= away")


def refuse_settings_of(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for settings of a part that is a value and has its settings itself."""
    for part, value in parts.items():
        extra = [key for key in settings if key == part or key.startswith(f"{part}.")]
        if extra and value is not None and not isinstance(value, str):
            what = f"{part} is a value, and has its settings itself"
            do = f"set them where it is made: {type(value).__name__}({extra[0].partition('.')[2]}=…)"
            raise ConfigError(what, got=f"{part} = {value!r}"[:200] + f" beside {', '.join(extra)}", do=do)


def _expect(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds:
        do = f"write {name}={value.__name__}()" if isinstance(value, type) else ""
        raise ConfigError(f"{name} should be {expected}", got=f"{value!r}"[:200], do=do)
