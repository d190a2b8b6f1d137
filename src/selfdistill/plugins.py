"""What a user wrote in a file of their own, by its place: `my_world.py:world`, `my_method.py:MyMethod`.

The file is run as Python, with the rights of the user who named it.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from selfdistill.errors import ConfigError, nearest


def is_file_name(name: str) -> bool:
    """Whether a name means something in a file rather than an entry of a registry."""
    return name.partition(":")[0].endswith(".py")


def short_name(name: str) -> str:
    """A name that can be part of a file's name: `worlds/my_world.py:world` → "my_world", "sdpo" → "sdpo"."""
    return Path(name.partition(":")[0]).stem if is_file_name(name) else name


def load_from_file(name: str, default: str) -> tuple[Any, ModuleType]:
    """The object that `FILE.py:NAME` names, and its module; `FILE.py` alone means the object called `default`.

    Raises `ConfigError`: no such file, a file that cannot be imported, or nothing of that name in it.
    """
    place, _, attribute = name.partition(":")
    attribute = attribute or default
    module = _run(Path(place))
    found = getattr(module, attribute, None)
    if found is None:
        names = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        do = nearest(attribute, names) if names else f"define {attribute} in it"
        raise ConfigError(f"{place} has no {attribute!r}", got=name, do=do)
    return found, module


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file", got=path, do="name it as FILE.py:NAME, seen from this directory")
    spec = importlib.util.spec_from_file_location(str(path.resolve()), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        raise ConfigError(
            f"{path} cannot be imported", got=f"{type(error).__name__}: {error}{line_in(path, error)}"
        ) from error
    return module


def line_in(path: Path, error: Exception) -> str:
    """Where in a user's file an error arose, as it stands behind its text; empty where it was elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""
