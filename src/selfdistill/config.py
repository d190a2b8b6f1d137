"""The settings of a run, composed from the components' own options. TOML in, dotted overrides, JSON out.

    load_config(Path("run.toml"), ["method=grpo", "teacher.kind=ema", "optimiser.lr=1e-5"])

Later sources win: defaults, what the method needs, what the model needs (`FOR_MODEL`), the files that the file names as
its `base`, the file, the overrides.
`method` and `env` name an entry of their registry, which checks the other keys of its table.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from selfdistill.data.load import RowOptions
from selfdistill.data.mixing import DataSet, as_tables, mixed_tasks, tasks_of_values
from selfdistill.data.tasks import data_tasks, training_tasks
from selfdistill.envs.base import Environment, tasks_of
from selfdistill.envs.registry import ENVIRONMENTS, make_environment
from selfdistill.errors import ConfigError, Ranged, RunError
from selfdistill.files import is_whole, read_settings
from selfdistill.methods import Method, find_method, get_method
from selfdistill.models.load import LoraOptions
from selfdistill.models.sampler import SamplingOptions
from selfdistill.models.teacher import TeacherRule
from selfdistill.options import SEED, Where, about, build, option, plain, with_defaults
from selfdistill.prompts.context import Templates
from selfdistill.prompts.render import Thinking
from selfdistill.runs import saved_config
from selfdistill.runs.guards import GuardOptions
from selfdistill.runs.old_names import SETTINGS
from selfdistill.runs.scale import ScaleOptions
from selfdistill.runs.store import CONFIG
from selfdistill.types import Task

T = TypeVar("T")

NAMED = ("method", "env")
COMMAND_LINE = "command line"
DEEPEST = 10  # tables within one another

# Learning rate, lengths and batch of the embedded models.
SAPLING: Mapping[str, Any] = {
    "optimiser": {"lr": 5e-4, "warmup_steps": 0},
    "sampling": {"max_new_tokens": 48},
    "tasks_per_step": 16,
}
FOR_MODEL: Mapping[str, Mapping[str, Any]] = {"sapling": SAPLING, "sapling-small": SAPLING}


@dataclass(frozen=True, slots=True)
class NamedComponent:
    """An entry of a registry, and options that differ from its defaults."""

    name: str = field(metadata=about("name of the entry; its settings stand in the same table"))
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OptimiserOptions(Ranged):
    """AdamW. The rate rises linearly over the first `warmup_steps` steps (generation batches, not updates), and then
    stays or falls; all updates of a step have one rate. It follows from the step and the run's `steps` alone."""

    lr: float = option(1e-5, "learning rate", above=0, most=1)
    warmup_steps: int = option(10, "steps (generation batches, not updates) over which the rate rises", least=0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "the rate after that: constant, or falling towards 0 at the end of the run"
    )
    states: Literal["float32", "8bit"] = option("float32", "format of its two means; 8bit needs selfdistill[8bit]")
    weight_decay: float = option(0.01, "decoupled weight decay", least=0, most=1)
    beta1: float = option(0.9, "decay of the mean of the gradients", least=0, below=1)
    beta2: float = option(0.999, "decay of the mean of their squares", least=0, below=1)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0: never", least=0)

    def rate(self, step: int, steps: int) -> float:
        """The rate of a step, counted from 0, in a run of so many steps. The last step still learns."""
        if step < self.warmup_steps:
            return self.lr * ((step + 1) / self.warmup_steps)
        left = max(0.0, (steps - step) / max(1, steps - self.warmup_steps))
        shares = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
        return self.lr * shares[self.schedule]


@dataclass(frozen=True, slots=True)
class EvaluationOptions(Ranged):
    """When and how accuracy is measured, on training tasks, held-out tasks and the forgetting set."""

    every: int = option(5, "steps between evaluations; 0: only before and after the run", least=0)
    tasks: int = option(200, "tasks of each split, at most", least=1)
    rollouts: int = option(1, "answers per training task; 1 if greedy, and for other splits", least=1, most=100_000)
    temperature: float = option(0.0, "sampling temperature; 0: greedy", least=0)

    @property
    def answers(self) -> int:
        """Answers per training task: 1 if greedy."""
        return self.rollouts if self.temperature > 0 else 1


@dataclass(frozen=True, slots=True)
class ReplayOptions(Ranged):
    """Reduces forgetting: a KL(student‖reference) on the student's own answers to these prompts; the reference are the
    weights at the start.

    The prompts of a step are divided among its updates, each used once, with the weight it would have in one update.
    A step without updates samples none.
    """

    prompts: str = option("env", 'JSONL file of prompts, or "env": the environment\'s own replay tasks')
    per_step: int = option(64, "prompts answered per step, divided among its updates", least=1, most=100_000)
    weight: float = option(0.5, "weight of an answer relative to a trained one, in an update of mean size", above=0)


@dataclass(frozen=True, slots=True)
class ContextOptions(Ranged):
    """Lengths of prompts, and the wording of the teacher's."""

    max_teacher_tokens: int = option(10240, "longest teacher prompt; the context in it is cut to fit", least=1)
    max_prompt_tokens: int = option(2048, "longest prompt; tasks with longer ones are skipped", least=1)
    templates: Templates = field(default_factory=Templates)


@dataclass(frozen=True, slots=True)
class Values:
    """What a Python program passed to a run and no file can hold; None: the settings name it. The tasks may be rows
    until `from_settings` knows the environment that reads them."""

    method: Method | None = None
    env: Environment | None = None
    tasks: Any = None
    eval_tasks: Any = None


@dataclass(frozen=True, slots=True)
class RunConfig(Ranged):
    """A run. Frozen; `resolved` gives it as JSON, and `from_settings` reads that back, but for `values`.

    A step samples one generation batch and makes one or more updates (optimiser steps) from it; whatever is counted in
    steps counts generation batches.
    """

    model: str = option("sapling", 'directory or hub name of a causal LM; "sapling" is embedded')
    method: NamedComponent = option(NamedComponent("sdpo"), "training method; see `selfdistill methods`")
    env: NamedComponent = option(NamedComponent("verbs"), "environment that scores answers; see `selfdistill envs`")
    data: str | tuple[DataSet, ...] = option("", "tasks: a file, a hub data set, or a list [[file, weight], …]")
    data_name: str = option("", "configuration of a data set of the hub")
    data_split: str = option("train", "split of a data set of the hub")
    columns: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about('columns of the data by their use, such as columns.prompt="question"; see docs/data.md'),
    )
    eval_data: str = option("", "held-out tasks, as in data; empty: the environment's own")
    eval_split: str = option("test", "split of a data set of the hub that is eval_data")
    out: str = option("", "run directory; empty: runs/<method>-<environment>-seed<seed>")
    seed: int = option(0, "seed of every random choice", least=0, most=SEED)
    device: str = option("auto", "cuda, mps, cpu, or auto")
    dtype: str = option("auto", "bfloat16, float32, or auto")
    chat_template: str = option("", "Jinja file, for a model that comes without a chat template")
    thinking: Thinking = option("off", "whether a model that can think does; template: its chat template's default")
    steps: int = option(40, "steps to train for, each a generation batch and the updates made from it", least=1)
    tasks_per_step: int = option(32, "tasks drawn for the generation batch of each step", least=1, most=100_000)
    rollouts_per_task: int = option(8, "answers sampled for each task", least=1, most=100_000)
    skip_solved: int = option(
        0, "steps for which a task is not drawn again once all its answers were solved; 0: it is", least=0
    )
    tasks_per_update: int = option(0, "tasks of one update (optimiser step); 0: all of the step's (on-policy)", least=0)
    micro_batch_tokens: int = option(16384, "tokens per forward pass; bounds memory without changing results", least=1)
    activation_checkpointing: bool = option(
        False, "compute activations again in the backward pass: less memory, a third more time"
    )
    offload: Literal["none", "teacher", "optimiser", "both"] = option(
        "none", "what waits in the memory of the host while the device does not need it"
    )
    checkpoint_every: int = option(10, "steps between checkpoints; 0: only at the end", least=0)
    lora: LoraOptions | None = option(None, "adapters to train instead of all weights; none: all weights")
    teacher: TeacherRule | None = option(None, "weights of the teacher; none: the method's default")
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(max_new_tokens=2048))
    context: ContextOptions = field(default_factory=ContextOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    replay: ReplayOptions | None = option(None, "replay of prompts against forgetting; none: no replay")
    guards: GuardOptions = field(default_factory=GuardOptions)
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    values: Values = field(default=Values(), metadata={"live": True})

    @property
    def completions_sampled(self) -> int:
        """Answers to tasks over the whole run, for a method that samples `rollouts_per_task` of them."""
        return self.steps * self.tasks_per_step * self.rollouts_per_task

    def make_method(self) -> Method:
        """The method of the run. Raises `ConfigError`."""
        return self.values.method or get_method(self.method.name, self.method.options)

    def make_env(self) -> Environment:
        """The environment of the run. Raises `ConfigError`."""
        return self.values.env or make_environment(self.env.name, self.env.options, seed=self.seed)

    def tasks_of(self, env: Environment, split: str = "train") -> Sequence[Task]:
        """The tasks of a split: the values, those of `data` or `eval_data`, or the environment's own. Raises
        `DataError`."""
        if split == "train" and isinstance(self.data, tuple):
            return mixed_tasks(env, self.data, self.values.tasks, self.row_options(self.data_split))
        if split == "train":
            return training_tasks(env, self.values.tasks or self.data, self.row_options(self.data_split))
        if split == "held_out" and self.eval_data:
            return data_tasks(env, self.values.eval_tasks or self.eval_data, self.row_options(self.eval_split))
        return tasks_of(env, split)

    def row_options(self, split: str = "train") -> RowOptions:
        """How the rows of the run's data sets are read."""
        return RowOptions(self.data_name, split, columns=self.columns)


def load_config(
    file: Path | None = None,
    overrides: Sequence[str | tuple[str, Any]] = (),
    base: Mapping[str, Any] | None = None,
    values: Values = Values(),
    place: str = COMMAND_LINE,
) -> RunConfig:
    """The settings of a run: those of `base` (a resolved run), then of a TOML file, then overrides, as
    `key.path=value` or as pairs. Errors name the `place` of these.

    Raises `ConfigError`: a file that is missing or no TOML (with its line), an unknown key (with its file, line and the
    nearest known one), a value of the wrong type or outside its range.
    """
    tree, sources = _read(file) if file else ({}, {})
    pairs = [parse_override(text) if isinstance(text, str) else text for text in overrides]
    for key, value in sorted(pairs, key=lambda pair: pair[0].count(".")):  # a table before what is in it
        _put(tree, key, value)
        sources[key] = place
    _refuse_depth(tree)
    return from_settings(_merged(base or {}, tree), sources, values)


def from_settings(
    settings: Mapping[str, Any], sources: Mapping[str, str] | None = None, values: Values = Values()
) -> RunConfig:
    """A run from nested settings; `sources` gives the place of each dotted key for error messages."""
    _refuse_old_names(settings, sources or {})
    name = _named("method", settings.get("method", {}))["name"]
    method = type(values.method) if values.method else find_method(name)
    needs = _merged(method.settings, FOR_MODEL.get(str(settings.get("model", _default("model"))), {}))
    tree = _merged(needs, settings)
    env = tree.get("env", {})
    tree["data"] = as_tables(tree.get("data", ""))
    if tree.get("data") and isinstance(env, Mapping) and "name" not in env:
        tree["env"] = {**env, "name": method.data_env}
    for name in NAMED:
        if name in tree:
            tree[name] = _named(name, tree[name])
    rule = tree.get("teacher")
    if isinstance(rule, dict) and "kind" not in rule and method.teacher is not None:
        tree["teacher"] = {**plain(method.teacher, TeacherRule), **rule}  # the method's kind of teacher is the default
    config = replace(build(RunConfig, tree, Where(sources=sources or {})), values=values)
    config.make_method()  # refuses what it cannot use, before anything is loaded
    return _with_tasks(config)


def _with_tasks(config: RunConfig) -> RunConfig:
    """The run with the tasks of the rows that a program passed, and descriptions of them that tell others apart."""
    for held, key in (("tasks", "data"), ("eval_tasks", "eval_data")):
        if (rows := getattr(config.values, held)) is not None:
            options = RowOptions(label=key, columns=config.columns)
            tasks, described = tasks_of_values(config.make_env(), rows, getattr(config, key), options)
            made: dict[str, Any] = {held: tasks}
            changes: dict[str, Any] = {key: described}
            config = replace(config, values=replace(config.values, **made), **changes)
    return config


def read_saved(path: Path, read: Callable[[Mapping[str, Any]], T]) -> T:
    """What `read`, such as `from_settings`, makes of the settings in the config.json of a run.

    Raises `RunError`, naming the file, where it was edited into something that no run writes.
    """
    settings = saved_config(path)["settings"]
    try:
        return read(settings)
    except ConfigError as error:
        what = f"the settings of this run cannot be used: {error.what}"
        got = path / CONFIG if error.got is None else f"{error.got} in {path / CONFIG}"
        raise RunError(what, got=got, why=error.why, do=error.do or "restore the file, or start a new run") from error


def _refuse_old_names(settings: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    for old in SETTINGS.keys() & settings.keys():
        where = next((source for key, source in sources.items() if key.split(".")[0] == old), "")
        got, do = f"{old}  ({where})" if where else old, f"write {SETTINGS[old]} in place of {old}"
        raise ConfigError(f"the setting {old!r} has another name", got=got, do=do)


def resolved(config: RunConfig) -> dict[str, Any]:
    """All settings as JSON values; `from_settings` reads them back to an equal `RunConfig`."""
    settings: dict[str, Any] = plain(config)
    for name in NAMED:
        named = settings[name]
        settings[name] = {"name": named["name"], **named["options"]}
    return settings


def completed(settings: Mapping[str, Any], method: type[Method]) -> dict[str, Any]:
    """Settings as JSON values with the defaults of those that they lack, also those of this `method` and of the
    environment."""
    full, named = with_defaults(RunConfig, settings), {key: _named(key, settings.get(key, {})) for key in NAMED}
    entry = ENVIRONMENTS.get(named["env"]["name"])
    for key, kind in (("method", method), ("env", entry.options if entry else None)):
        options = named[key]["options"]
        full[key] = {"name": named[key]["name"], **(with_defaults(kind, options) if kind else options)}
    return full


def parse_override(text: str) -> tuple[str, Any]:
    """`teacher.rate=0.05` as a dotted key and a value, written as in TOML; quotes around text may be left out."""
    if not is_whole(text):
        raise ConfigError("an override is no UTF-8", got=ascii(text)[:200], do="give it in UTF-8")
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key.strip()):
        do = "write for example optimiser.lr=1e-5, without spaces"
        raise ConfigError("an override has the form key=value", got=text, do=do)
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # such as words without quotes
        return key.strip(), value.strip()


def _read(file: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a file over those of the files that its `base` names, and the place of each key."""
    tree, sources = read_settings(file)
    _refuse_depth(tree)
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise ConfigError("base names other files of settings", got=f"base = {bases!r}", do='write base = "other.toml"')
    below, places = dict[str, Any](), dict[str, str]()
    for path in [file.parent / name for name in bases]:
        if path.resolve() in (*above, file.resolve()):
            raise ConfigError("files of settings are the base of one another", got=f"{file}: {path}", do="remove one")
        found, where = _read(path, (*above, file.resolve()))
        below, places = _merged(below, found), places | where
    return _merged(below, tree), places | sources


def _refuse_depth(tree: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for tables nested deeper than any setting, before anything recurses into them."""
    tables: list[Any] = [tree]
    for _ in range(DEEPEST):
        tables = [value for table in tables for value in table.values() if isinstance(value, Mapping)]
    if tables:
        do = "move the keys up: no setting lies that deep"
        raise ConfigError("unknown setting", got=f"tables more than {DEEPEST} deep", do=do)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        below = tree.get(name, {})
        if isinstance(below, str):  # `teacher = "ema"` is short for `teacher.kind = "ema"`
            below = {"name" if depth == 0 and name in NAMED else "kind": below}
        tree[name] = below if isinstance(below, dict) else {}
        tree = tree[name]
    tree[last] = value


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, table by table. A table that names another kind or entry replaces the one below it."""
    merged = deepcopy(dict(low))
    for key, value in high.items():
        below: Any = merged.get(key)
        tables = isinstance(value, Mapping) and isinstance(below, Mapping)
        same = tables and all(value[name] == below.get(name) for name in ("name", "kind") if name in value)
        merged[key] = _merged(below, value) if same else deepcopy(value)
    return merged


def _named(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} should be a name or a table", got=value, do=f'write {key} = "…", or a table [{key}]')
    name = value.get("name", _default(key).name)
    if not isinstance(name, str):
        raise ConfigError(f"{key}.name should be text", got=f"{key}.name = {name!r}", do=f"see `selfdistill {key}s`")
    return {"name": name, "options": {k: v for k, v in value.items() if k != "name"}}


def _default(key: str) -> Any:
    return next(item.default for item in fields(RunConfig) if item.name == key)
