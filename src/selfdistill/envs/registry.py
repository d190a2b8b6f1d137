"""Names of environments, and environments from a user's own file: `--env my_env.py:env`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from selfdistill.envs.base import Environment, ScoringEnvironment
from selfdistill.envs.chats import ChatOptions, ChatsEnvironment
from selfdistill.envs.choice import ChoiceEnvironment, ChoiceOptions
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.judge import Judge, JudgeOptions
from selfdistill.envs.maths import MathsEnvironment, MathsOptions
from selfdistill.envs.rewards import as_environment
from selfdistill.envs.rows import ScorerOptions
from selfdistill.envs.scoring import CodeOptions
from selfdistill.envs.text import TextEnvironment, TextOptions
from selfdistill.envs.tools_text import ToolsTextEnvironment
from selfdistill.envs.turns import RepeatedAttempts
from selfdistill.envs.verbs.env import VerbsEnvironment, VerbsOptions
from selfdistill.errors import ConfigError, nearest
from selfdistill.options import Where, build, plain
from selfdistill.plugins import is_file_name, load_from_file, refuse_value, short_name


@dataclass(frozen=True, slots=True)
class Entry:
    """An environment: its class, the class of its options, and how one is made from options and the run's seed."""

    env: type
    options: type
    make: Callable[[Any, int], ScoringEnvironment]


ENVIRONMENTS: Mapping[str, Entry] = {
    "verbs": Entry(VerbsEnvironment, VerbsOptions, lambda options, seed: VerbsEnvironment(options, seed=seed)),
    "code": Entry(CodeEnvironment, CodeOptions, lambda options, seed: CodeEnvironment(options)),
    "choice": Entry(ChoiceEnvironment, ChoiceOptions, lambda options, seed: ChoiceEnvironment(options)),
    "maths": Entry(MathsEnvironment, MathsOptions, lambda options, seed: MathsEnvironment(options)),
    "tools-text": Entry(ToolsTextEnvironment, ScorerOptions, lambda options, seed: ToolsTextEnvironment(options)),
    "text": Entry(TextEnvironment, TextOptions, lambda options, seed: TextEnvironment(options)),
    "judge": Entry(Judge, JudgeOptions, lambda options, seed: Judge(**plain(options))),
    "chats": Entry(ChatsEnvironment, ChatOptions, lambda options, seed: ChatsEnvironment(options)),
}


def environment_options(name: str, options: Mapping[str, Any]) -> Any:
    """The options of an environment, checked. Raises `ConfigError`: unknown environment or option, with the nearest
    name."""
    if name not in ENVIRONMENTS:
        do = f"{nearest(name, ENVIRONMENTS)} (a file of your own: --env my_env.py:env)"
        raise ConfigError("unknown environment", got=name, do=do)
    return build(ENVIRONMENTS[name].options, options, Where("env"))


def make_environment(name: str, options: Mapping[str, Any], *, seed: int) -> Environment:
    """An environment by name, or `FILE.py:NAME` for what `as_environment` takes. Raises `ConfigError`."""
    refuse_value(name, "env")
    if not is_file_name(name):
        checked = environment_options(name, options)
        env, turns = ENVIRONMENTS[name].make(checked, seed), getattr(checked, "turns", 1)
        return RepeatedAttempts(env, turns) if turns > 1 else env
    if options:
        raise ConfigError("an environment from a file has no settings", got=dict(options), do="set them in the file")
    env, module = load_from_file(name, default="env")
    return as_environment(env, name=short_name(name), tasks=getattr(module, "tasks", ()))
