"""Names of worlds, and worlds from a user's own file: `--world my_world.py:world`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from selfdistill.errors import ConfigError, nearest
from selfdistill.options import Where, build
from selfdistill.plugins import is_file_name, load_from_file, short_name
from selfdistill.worlds.base import FunctionWorld, World
from selfdistill.worlds.code import CodeOptions, CodeWorld
from selfdistill.worlds.verbs.world import VerbsOptions, VerbsWorld


@dataclass(frozen=True, slots=True)
class Entry:
    """A world's options, and how it is made from them and the run's seed."""

    options: type
    make: Callable[[Any, int], World]
    summary: str


def _summary(world: type) -> str:
    return (world.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()


WORLDS: Mapping[str, Entry] = {
    "verbs": Entry(VerbsOptions, lambda options, seed: VerbsWorld(options, seed=seed), _summary(VerbsWorld)),
    "code": Entry(CodeOptions, lambda options, seed: CodeWorld(options), _summary(CodeWorld)),
}


def world_options(name: str, options: Mapping[str, Any]) -> Any:
    """The options of a world, checked. Raises `ConfigError`: unknown world or option, with the nearest name."""
    if name not in WORLDS:
        do = f"{nearest(name, WORLDS)}; or a file of your own: --world my_world.py:world"
        raise ConfigError("unknown world", got=name, do=do)
    return build(WORLDS[name].options, options, Where("world"))


def make_world(name: str, options: Mapping[str, Any], *, seed: int) -> World:
    """A world by name, or `FILE.py:NAME` for a function or object of the user's. Raises `ConfigError`."""
    if is_file_name(name):
        return _from_file(name, options)
    return WORLDS[name].make(world_options(name, options), seed) if name in WORLDS else world_options(name, options)


def _from_file(name: str, options: Mapping[str, Any]) -> World:
    if options:
        raise ConfigError("a world from a file has no settings", got=dict(options), do="set them in the file")
    found, module = load_from_file(name, default="world")
    world = _made(found, name) if isinstance(found, type) else found
    if hasattr(world, "judge"):
        return _named(world, name)
    if not callable(world):
        raise ConfigError(
            f"{name} is no world", got=type(world).__name__, do="a function (task, completion) -> Outcome"
        )
    return FunctionWorld(world, short_name(name), getattr(module, "tasks", ()))


def _made(kind: type, name: str) -> Any:
    try:
        return kind()
    except (Exception, SystemExit) as error:
        do = "let it be made without arguments, or name an object"
        raise ConfigError(f"{name} cannot be made", got=f"{type(error).__name__}: {error}", do=do) from error


def _named(world: Any, name: str) -> World:
    """The world, under its own name or that of its file."""
    if not isinstance(getattr(world, "name", None), str):
        try:
            world.name = short_name(name)
        except AttributeError as error:
            raise ConfigError("a world needs a name", got=repr(world)[:80], do='give it name = "…"') from error
    return world  # type: ignore[no-any-return]
