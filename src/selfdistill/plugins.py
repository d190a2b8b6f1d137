"""Objects of a user's Python file (`my_env.py:env`, `my_method.py:MyMethod`), and the random numbers that they draw.

The file runs with the user's rights and may import modules beside it.
"""

from __future__ import annotations

import importlib.util
import random
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from selfdistill.errors import ConfigError, SelfDistillError, nearest

FROM_PYTHON = "python:"  # begins the name of a value that a program passed, and that no file holds


def refuse_value(name: str, part: str) -> None:
    """Raises `ConfigError` where a name stands for a value that a Python program passed."""
    if name.startswith(FROM_PYTHON):
        what, why = f"the {part} of this run was a value of a Python program", "the command line cannot make it again"
        do = f"resume it in Python with the same value: sd.train or sd.solve(resume=…, {part}=…)"
        raise ConfigError(what, got=name, why=why, do=do)


def is_file_name(name: str) -> bool:
    """Whether a name is `FILE.py[:NAME]` rather than an entry of a registry."""
    return name.partition(":")[0].endswith(".py")


def short_name(name: str) -> str:
    """A name that can be part of a file's name: `envs/my_env.py:env` → "my_env", "sdpo" → "sdpo"."""
    if name.startswith(FROM_PYTHON):
        return re.sub(r"\W+", "_", name.removeprefix(FROM_PYTHON))
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


def class_from_file(name: str, base: type[Any]) -> type[Any]:
    """The frozen dataclass derived from `base` that `FILE.py:NAME` names. Raises `ConfigError`."""
    found, _ = load_from_file(name, default=base.__name__)
    if not isinstance(found, type) or not issubclass(found, base) or not is_dataclass(found):
        what = f"{name} is no {base.__name__.lower()}"
        do = f"name a frozen dataclass that derives from `selfdistill.{base.__name__}`"
        raise ConfigError(what, got=found, do=do)
    return found


def import_extra(module: str, extra: str, use: str) -> Any:
    """A module that an extra of this package installs. Raises `ConfigError`, which names the extra and its `use`."""
    try:
        return import_module(module)
    except ImportError as error:
        what = f"{use} needs the package {(error.name or module).partition('.')[0]}, which is not installed"
        raise ConfigError(what, got=error, do=f"pip install 'selfdistill[{extra}]'") from error


@contextmanager
def their_code(value: object, part: str) -> Iterator[None]:
    """Turns an exception from the code of a user's class (or instance) into a `ConfigError` with its file and line."""
    kinds = value.__mro__ if isinstance(value, type) else type(value).__mro__
    file = next((kind.__module__ for kind in kinds if is_file_name(kind.__module__)), "")
    try:
        yield
    except SelfDistillError:
        raise
    except (Exception, SystemExit) as error:
        if not file:
            raise
        what = f"{kinds[0].__name__} in {file} fails in {part}"
        do = "correct it; --resume resumes a run that had begun"
        raise ConfigError(what, got=in_short(error, Path(file)), do=do) from error


def in_short(error: BaseException, path: Path) -> str:
    """An error of a user's file as one line: type, text and line number."""
    if isinstance(error, SystemExit):
        return f"the file ends the program: exit({error.code!r}){line_in(path, error)}"
    return f"{type(error).__name__}: {error}{line_in(path, error)}"


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file", got=path, do="name it as FILE.py:NAME, seen from this directory")
    spec = importlib.util.spec_from_file_location(str(path.resolve()), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their annotations up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for its imports, later ones in functions too
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ConfigError(f"{path} cannot be imported", got=in_short(error, path)) from error
    return module


def line_in(path: Path, error: BaseException) -> str:
    """ " (line N)" of a user's file for an error raised there, else empty."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""


def seed_global(*names: object) -> None:
    """Seeds Python's `random`, and the global generators of numpy and torch where these are loaded, by these names: a
    run's seed, and whatever else the draws should depend on."""
    digest = sha256(" ".join(map(str, names)).encode("utf-8", "backslashreplace")).digest()
    random.seed(digest)
    short = int.from_bytes(digest[:4], "big")  # numpy takes 32 bits
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(short)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(short)
