"""Settings as values: any frozen dataclass from a mapping, and back.

A component keeps its own options, as a frozen dataclass with defaults; nothing here or in `config.py` repeats them.
Keys are checked against the fields, values against the annotations; a field whose metadata has `live` holds objects of
the program and is no setting. Where a field may be one of several dataclasses,
`kind` names which one: the class's `kind`, or its name in snake_case (`TrustRegion` → "trust_region").

    build(Adam, {"lr": 1e-5})                       override(Adam(lr=1e-5), {"betas": [0.9, 0.99]})
    build(Options, {"teacher": {"kind": "ema", "rate": 0.05}})      the same as {"teacher": Ema(rate=0.05)}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from selfdistill.errors import BEYOND as BEYOND
from selfdistill.errors import ConfigError, Range, check_range, nearest
from selfdistill.errors import about as about
from selfdistill.errors import option as option

T = TypeVar("T")

_adapter, _hints = cache(TypeAdapter), cache(get_type_hints)

SEED = 2**63 - 1  # the largest that every generator of random numbers takes

KIND = "the kind of this table, which decides its other settings"
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: '"none"'}


@dataclass(frozen=True, slots=True)
class Where:
    """The dotted key that is being read, and where each key was written ("run.toml, line 3")."""

    key: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    def at(self, name: str) -> Where:
        """The place of a key inside this one."""
        return Where(f"{self.key}.{name}" if self.key else name, self.sources)

    def shown(self, value: object) -> str:
        """`key = value (run.toml, line 3)`."""
        source = self.sources.get(self.key)
        text = f"{self.key} = {value!r}" if self.key else repr(value)
        return f"{text}  ({source})" if source else text


def changed(kind: type, name: str, default: Any) -> Any:
    """The field of a base class with another default, for a preset that derives from it."""
    cls: Any = kind
    return field(default=default, metadata=cls.__dataclass_fields__[name].metadata)


def build(kind: type[T], settings: Mapping[str, Any], where: Where = Where()) -> T:
    """A `kind` from its settings; what is left out keeps its default.

    Raises `ConfigError`: an unknown key (with the nearest known one), a missing one, or a value of the wrong type.
    """
    return _make(kind, settings, where, {})


def override(value: T, settings: Mapping[str, Any], where: Where = Where()) -> T:
    """A copy of a dataclass with some settings replaced, at any depth. Raises `ConfigError` as `build` does."""
    current = {item.name: getattr(value, item.name) for item in _fields(type(value))}
    return _make(type(value), settings, where, current)


def plain(value: Any, declared: Any = None) -> Any:
    """A value as JSON types; `build` on the same class reads it back."""
    if is_dataclass(value) and not isinstance(value, type):
        cls: Any = type(value)
        hints = _hints(cls)
        settings = {item.name: plain(getattr(value, item.name), hints[item.name]) for item in _fields(type(value))}
        ambiguous = declared is not None and _dataclasses(declared) != (type(value),)
        return {"kind": tag(type(value)), **settings} if ambiguous else settings
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else value


def tag(kind: type) -> str:
    """The name by which settings choose a class."""
    own = getattr(kind, "kind", None)
    return own if isinstance(own, str) else re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def with_defaults(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `kind`, as `plain` gives them, with the defaults of the fields that they lack, at any depth."""
    hints, full = _hints(cast(Any, kind)), dict(settings)
    for item in _fields(kind):
        default, value = _default(item), settings.get(item.name)
        if item.name not in settings and default is not MISSING:
            full[item.name] = plain(default, hints[item.name])
        elif isinstance(value, Mapping):
            own = (type(default),) if is_dataclass(default) else ()  # of a field annotated with a protocol
            choices = _dataclasses(hints[item.name]) or own
            chosen = next((each for each in choices if value.get("kind", tag(choices[0])) == tag(each)), None)
            full[item.name] = with_defaults(chosen, value) if chosen else value
    return full


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing a user can set: its dotted key, its value as JSON, what it expects, and what it means."""

    key: str
    value: Any
    expected: str
    text: str


def settings_of(value: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a dataclass, in order, at any depth. A table of free keys without a text is left out: the
    component that takes it lists them."""
    cls: Any = type(value)
    hints = _hints(cls)
    for item in _fields(cls):
        current, key = getattr(value, item.name), f"{prefix}{item.name}"
        if is_dataclass(current) and not isinstance(current, type):
            if len(kinds := [tag(kind) for kind in _dataclasses(hints[item.name])]) > 1:
                yield Setting(f"{key}.kind", tag(type(current)), f"one of {', '.join(kinds)}", KIND)
            yield from settings_of(current, f"{key}.")
        elif not isinstance(current, Mapping) or "text" in item.metadata:
            numeric = type(current) in (int, float)
            takes = expected(hints[item.name]) + (item.metadata.get("range", Range()).words if numeric else "")
            yield Setting(key, plain(current), takes, item.metadata.get("text", ""))


def expected(kind: Any) -> str:
    """What a user may write for a value of this type."""
    if get_origin(kind) in (Union, UnionType):
        names = [expected(part) for part in get_args(kind) if not is_dataclass(part)]
        tables = [tag(part) for part in _dataclasses(kind)]
        table = [f"a table of kind {', '.join(tables)}" if len(tables) > 1 else "a table"] if tables else []
        return " or ".join([*table, *names])
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    if is_dataclass(kind) or get_origin(kind) is Mapping:
        return "a table"
    if get_origin(kind) is tuple:
        return "a list"
    return EXPECTED.get(kind, "a path" if isinstance(kind, type) and issubclass(kind, PurePath) else "another value")


def _make(kind: type[T], settings: Mapping[str, Any], where: Where, current: Mapping[str, Any]) -> T:
    known = {item.name: item for item in _fields(kind)}
    hints = _hints(cast(Any, kind))
    values = dict(current)
    for name, raw in settings.items():
        if name == "kind" and name not in known and raw == tag(kind):
            continue
        if name not in known:
            raise ConfigError("unknown setting", got=where.at(name).shown(raw), do=_suggestion(name, kind))
        before = values[name] if name in values else _default(known[name])
        values[name] = _convert(hints[name], raw, where.at(name), before)
        check_range(known[name], values[name], where.at(name).key, where.at(name).shown(values[name]))
    missing = [name for name, item in known.items() if name not in values and _default(item) is MISSING]
    if missing:
        raise ConfigError("a setting is missing", got=where.shown(dict(settings)), do=f"set {', '.join(missing)}")
    try:
        return kind(**values)
    except ConfigError as error:
        what = f"{where.key}: {error.what}" if where.key else error.what
        raise ConfigError(what, got=error.got, why=error.why, do=error.do) from error
    except ValueError as error:
        what, *rest = str(error).splitlines() or [type(error).__name__]
        why = "; ".join(" ".join(line.split()) for line in rest)
        raise ConfigError(what, got=where.shown(dict(settings)), why=why) from error


def _suggestion(name: str, kind: type) -> str:
    """Names the key of that name inside another table (`lr` → "optimiser.lr"), else the closest one of this table."""
    deeper = [key for key in _keys(kind) if key.endswith(f".{name}")]
    return f"did you mean {deeper[0]!r}?" if deeper else nearest(name, (item.name for item in _fields(kind)))


def _keys(kind: Any) -> Iterator[str]:
    for item in _fields(kind):
        yield item.name
        yield from (f"{item.name}.{key}" for part in _dataclasses(_hints(kind)[item.name]) for key in _keys(part))


def _convert(kind: Any, raw: Any, where: Where, current: Any) -> Any:
    choices = _dataclasses(kind)
    optional = NoneType in get_args(kind)
    if isinstance(raw, choices) or (raw is None and optional) or (optional and raw == "none"):
        return raw if isinstance(raw, choices) else None
    if isinstance(raw, Mapping) and not choices and is_dataclass(current) and not isinstance(current, type):
        return override(current, raw, where)  # the annotation is a protocol: the present value tells the class
    tuples = [get_args(part)[0] for part in (kind, *get_args(kind)) if get_origin(part) is tuple]
    if isinstance(raw, list | tuple) and (items := next(filter(is_dataclass, tuples), None)) is not None:
        return tuple(_convert(items, one, where.at(str(number)), None) for number, one in enumerate(raw, start=1))
    if len(choices) > 1 and isinstance(raw, str) and str not in get_args(kind):
        raw = {"kind": raw}
    if choices and isinstance(raw, Mapping):
        return _choose(choices, raw, where, current)
    return _leaf(kind, raw, where)


def _choose(choices: tuple[type, ...], raw: Mapping[str, Any], where: Where, current: Any) -> Any:
    by_tag = {tag(choice): choice for choice in choices}
    if "kind" in raw:
        name = raw["kind"]
        if name not in by_tag:
            raise ConfigError("unknown kind", got=where.at("kind").shown(name), do=nearest(str(name), by_tag))
        chosen = by_tag[name]
    elif isinstance(current, choices):
        chosen = type(current)
    elif len(choices) == 1:
        chosen = choices[0]
    else:
        do = f"set {where.key}.kind: {', '.join(by_tag)}"
        raise ConfigError("kind is missing", got=where.shown(dict(raw)), do=do)
    return override(current, raw, where) if type(current) is chosen else build(chosen, raw, where)


def _leaf(kind: Any, raw: Any, where: Where) -> Any:
    try:  # strict, from JSON: no "1" for 1, but lists for tuples and names for enums
        return _adapter(kind).validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        what = f"{where.key or 'the value'} should be {expected(kind)}"
        do = "" if expected(kind) != "another value" else error.errors()[0]["msg"]
        raise ConfigError(what, got=where.shown(raw), do=do) from error


def _dataclasses(kind: Any) -> tuple[type, ...]:
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(part for part in parts if is_dataclass(part) and isinstance(part, type))


def _fields(kind: type) -> tuple[Field[Any], ...]:
    return tuple(item for item in fields(cast(Any, kind)) if item.init and not item.metadata.get("live"))


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default
