"""Names of worlds, and worlds from a user's own file: `--world my_world.py:world`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import ConfigError, WorldError, nearest
from selfdistill.options import Where, build
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
    """A world by name, or `FILE.py:NAME` for a function or object of the user's. Raises `ConfigError`, `WorldError`."""
    if ".py" in name:
        return _from_file(name, options)
    return WORLDS[name].make(world_options(name, options), seed) if name in WORLDS else world_options(name, options)


def _from_file(name: str, options: Mapping[str, Any]) -> World:
    path, _, attribute = name.partition(":")
    attribute = attribute or "world"
    if options:
        raise ConfigError("a world from a file has no settings", got=dict(options), do=f"set them in {path}")
    module = _load(Path(path))
    found = getattr(module, attribute, None)
    if found is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{path} has no {attribute!r}", got=name, do=nearest(attribute, names))
    world = found() if isinstance(found, type) else found
    if hasattr(world, "judge"):
        return world  # type: ignore[no-any-return]
    if not callable(world):
        raise ConfigError(
            f"{name} is no world", got=type(world).__name__, do="a function (task, completion) -> Outcome"
        )
    return FunctionWorld(world, Path(path).stem, getattr(module, "tasks", None))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError("the world's file does not exist", got=path, do="check --world FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise WorldError(f"{path} cannot be imported", got=f"{type(error).__name__}: {error}") from error
    return module
