"""Errors that a user can cause or fix, in four parts: what is wrong, the value, why it matters, what to do.

    SelfDistillError
    ├── ConfigError            a setting, an option or a key that cannot be used          (also a ValueError)
    ├── DataError              a file or a row that is not in the expected form           (also a ValueError)
    ├── ModelError             a model or a tokenizer that cannot be used                 (also a ValueError)
    ├── EnvError               an environment that cannot score, or drops too many rollouts (also a RuntimeError)
    ├── SandboxError           this machine cannot isolate programs, or cannot run them   (also a RuntimeError)
    │   └── ProgramLostError   … this one program, whose process it ended
    ├── OutOfMemoryError       a device or host with too little memory                    (also a RuntimeError)
    ├── TrainingError          a batch without anything to learn, and why                 (also a RuntimeError)
    │   └── CollapseError      … guards stopped the run; the last good checkpoint is back
    ├── RunError               a run directory that cannot be written, read or resumed    (also an OSError)
    │   └── RankError          … one of several learners failed, ended or did not answer
    ├── EndpointError          a server that does not answer, or refuses a request        (also an OSError)
    └── JournalError           a journal that cannot be opened, read or written           (also an OSError)
        ├── JournalFullError   … since its disk is full: nothing was recorded
        └── UnknownReceiptError … an exchange that it does not hold

To add one: derive from `SelfDistillError` and from the standard type it refines, and draw it above.

The range of a number is declared with the field of the dataclass that holds it, by `option`; a dataclass that derives
from `Ranged` raises `ConfigError` for a value outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

BEYOND = 1e9  # a number of this size, where no other range was chosen, is a slip

USER_ERROR, COLLAPSED, INTERRUPTED = 2, 3, 130  # exit codes of a command


class SelfDistillError(Exception):
    """Base of every error that a user of this package can cause or fix.

    `got`, `why` and `do` may be empty; each non-empty one becomes a line of the message.
    """

    everywhere = False  # raised on all ranks of a run, at one place

    def __init__(self, what: str, *, got: object = None, why: str = "", do: str = "") -> None:
        self.what, self.got, self.why, self.do = what, got, why, do
        lines = [what]
        lines += [f"  got  {got}"] if got is not None else []
        lines += [f"  why  {why}"] if why else []
        lines += [f"  do   {do}"] if do else []
        super().__init__("\n".join(lines))


class ConfigError(SelfDistillError, ValueError):
    """A setting that cannot be used."""


class DataError(SelfDistillError, ValueError):
    """A data file or row that is not what it should be."""


class ModelError(SelfDistillError, ValueError):
    """A model or tokenizer that cannot be used."""


class EnvError(SelfDistillError, RuntimeError):
    """An environment that cannot score answers."""


class SandboxError(SelfDistillError, RuntimeError):
    """This machine cannot isolate untrusted programs as required, or cannot run them."""


class ProgramLostError(SandboxError):
    """The machine ended a program's process each time it was run: nothing is known of that program."""


class OutOfMemoryError(SelfDistillError, RuntimeError):
    """A device or host with too little memory."""


class TrainingError(SelfDistillError, RuntimeError):
    """A batch from which nothing can be learned."""


class CollapseError(TrainingError):
    """Guards stopped a run whose model gets worse, and brought its last good checkpoint back."""


class RunError(SelfDistillError, OSError):
    """A run directory that cannot be written, read or resumed."""


class RankError(RunError):
    """One of several learners failed, ended or did not answer, and with it the others."""


class EndpointError(SelfDistillError, OSError):
    """A server that does not answer, or refuses a request with an HTTP `status` and the `code` of its error."""

    def __init__(
        self, what: str, *, got: object = None, why: str = "", do: str = "", status: int = 0, code: str = ""
    ) -> None:
        super().__init__(what, got=got, why=why, do=do)
        self.status, self.code = status, code


class JournalError(SelfDistillError, OSError):
    """A journal of exchanges that cannot be opened, read or written."""


class JournalFullError(JournalError):
    """The disk of a journal is full: nothing of the transaction was recorded."""


class VersionError(JournalError):
    """A change of the served version that is not possible; nothing was changed."""


class UnknownReceiptError(JournalError):
    """An exchange that a journal does not hold, or holds no longer."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host has no memory left, of whatever library it is."""
    text = str(error)
    signs = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known spelling, or lists all of them."""
    choices = sorted(known)
    close = get_close_matches(name, choices, cutoff=0.5)
    close.sort(key=lambda found: sorted(found) != sorted(name))  # two letters that changed places
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"


def missing_column(column: str, columns: Iterable[str], name: str, place: str) -> DataError:
    """The error of a row that lacks the column which is to be its `name`."""
    known = list(columns)
    close = next((f"did you mean {other!r}? " for other in get_close_matches(column, known, n=1)), "")
    got, do = f"columns {', '.join(known) or '(none)'}"[:300], f'{name}="…", or columns.{name}=… on the command line'
    return DataError(f"{place}: there is no column {column!r}", got=got, do=f"{close}Name the column: {do}")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field takes, between two bounds. They are finite unless a bound is infinite."""

    least: float = -BEYOND
    most: float = BEYOND
    without_least: bool = False
    without_most: bool = False

    def holds(self, number: float) -> bool:
        """Whether the number is within; NaN never is."""
        excluded = [self.least] * self.without_least + [self.most] * self.without_most
        return self.least <= number <= self.most and number not in excluded

    @property
    def words(self) -> str:
        """What follows "a number" in a sentence; empty where no bound was chosen."""
        least, most = (
            "" if abs(bound) == BEYOND else str(bound) if isinstance(bound, int) else f"{bound:g}"
            for bound in (self.least, self.most)
        )
        if least and most and math.isfinite(self.most):
            if not self.without_least and not self.without_most:
                return f" from {least} to {most}"
            low, high = "above" if self.without_least else "from", "below" if self.without_most else "up to"
            return f" {low} {least}, {high} {most}"
        endless = ", or inf" if self.most == math.inf else ""
        if least and math.isfinite(self.least):
            return (f" above {least}" if self.without_least else f", {least} or more") + endless
        return (f" below {most}" if self.without_most else f", {most} or less") if most else ""


def about(
    text: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Mapping[str, Any]:
    """Metadata for a dataclass field: a sentence that explains the setting, shown where settings are listed, and for a
    number its range: from `least` or above `above`, to `most` (inf: it may be inf) or below `below`."""
    low = next((bound for bound in (above, least) if bound is not None), -BEYOND)
    high = next((bound for bound in (below, most) if bound is not None), BEYOND)
    return {"text": text, "range": Range(low, high, above is not None, below is not None)}


def option(default: Any, text: str, **bounds: float | None) -> Any:
    """A dataclass field with a default (MISSING: none), and text and range as in `about`."""
    return field(default=default, metadata=about(text, **bounds))


def check_range(item: Field[Any], value: Any, key: str = "", shown: str = "") -> None:
    """The check of one field, by its dotted `key` and the value as `shown`; of a tuple each number is checked."""
    bounds, default = item.metadata.get("range", Range()), item.default
    numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if type(number) in (int, float)]
    if all(bounds.holds(number) or number == default for number in numbers):
        return
    key = key or item.name
    raise ConfigError(
        f"{key} must be a {'whole ' if isinstance(default, int) else ''}number{bounds.words}",
        got=shown or f"{key} = {value!r}",
        why="it should be finite" if not bounds.words else f"it means: {item.metadata['text']}",
        do="" if default is MISSING else f"try {default}",
    )


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raises `ConfigError` for a value that is none of the choices."""
    known = tuple(choices)
    if value not in known:
        raise ConfigError(f"unknown {what}", got=repr(value), do=f"one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Ranged:
    """Base of a dataclass whose numbers are checked when it is made: `ConfigError` for one outside its range, for NaN,
    and for one that is not finite, or beyond any sense, where no range allows it."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.init:
                check_range(item, getattr(self, item.name))
