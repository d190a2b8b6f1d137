"""Names of environments, and environments from a user's own file: `--env my_env.py:env`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from selfdistill.envs.base import Environment, FunctionEnvironment
from selfdistill.envs.code import CodeEnvironment, CodeOptions
from selfdistill.envs.verbs.env import VerbsEnvironment, VerbsOptions
from selfdistill.errors import ConfigError, nearest
from selfdistill.options import Where, build
from selfdistill.plugins import is_file_name, load_from_file, short_name


@dataclass(frozen=True, slots=True)
class Entry:
    """An environment's options, and how it is made from them and the run's seed."""

    options: type
    make: Callable[[Any, int], Environment]
    summary: str


def _summary(env: type) -> str:
    return (env.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()


ENVIRONMENTS: Mapping[str, Entry] = {
    "verbs": Entry(
        VerbsOptions, lambda options, seed: VerbsEnvironment(options, seed=seed), _summary(VerbsEnvironment)
    ),
    "code": Entry(CodeOptions, lambda options, seed: CodeEnvironment(options), _summary(CodeEnvironment)),
}


def environment_options(name: str, options: Mapping[str, Any]) -> Any:
    """The options of an environment, checked. Raises `ConfigError`: unknown environment or option, with the nearest
    name."""
    if name not in ENVIRONMENTS:
        do = f"{nearest(name, ENVIRONMENTS)}; or a file of your own: --env my_env.py:env"
        raise ConfigError("unknown environment", got=name, do=do)
    return build(ENVIRONMENTS[name].options, options, Where("env"))


def make_environment(name: str, options: Mapping[str, Any], *, seed: int) -> Environment:
    """An environment by name, or `FILE.py:NAME` for a function or object of the user's. Raises `ConfigError`."""
    if is_file_name(name):
        return _from_file(name, options)
    return (
        ENVIRONMENTS[name].make(environment_options(name, options), seed)
        if name in ENVIRONMENTS
        else environment_options(name, options)
    )


def _from_file(name: str, options: Mapping[str, Any]) -> Environment:
    if options:
        raise ConfigError("an environment from a file has no settings", got=dict(options), do="set them in the file")
    found, module = load_from_file(name, default="env")
    env = _made(found, name) if isinstance(found, type) else found
    if hasattr(env, "score"):
        return _named(env, name)
    if not callable(env):
        raise ConfigError(
            f"{name} is no environment", got=type(env).__name__, do="a function (task, completion) -> Outcome"
        )
    return FunctionEnvironment(env, short_name(name), getattr(module, "tasks", ()))


def _made(kind: type, name: str) -> Any:
    try:
        return kind()
    except (Exception, SystemExit) as error:
        do = "let it be made without arguments, or name an object"
        raise ConfigError(f"{name} cannot be made", got=f"{type(error).__name__}: {error}", do=do) from error


def _named(env: Any, name: str) -> Environment:
    """The environment, under its own name or that of its file."""
    if not isinstance(getattr(env, "name", None), str):
        try:
            env.name = short_name(name)
        except AttributeError as error:
            raise ConfigError("an environment needs a name", got=repr(env)[:80], do='give it name = "…"') from error
    return env  # type: ignore[no-any-return]
