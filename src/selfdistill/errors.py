"""What a user sees when something is wrong: what, the value we got, why it matters, what to do.

    SelfDistillError
    ├── ConfigError      a setting, an option or a key that cannot be used        (also a ValueError)
    ├── DataError        a file or a row that cannot be read as what it should be (also a ValueError)
    ├── ModelError       a model or a tokenizer that cannot do what is asked      (also a ValueError)
    ├── EnvError       an environment that cannot judge, or that drops too many rollouts (also a RuntimeError)
    ├── SandboxError     this machine cannot isolate programs, or cannot run them (also a RuntimeError)
    │   └── ProgramLostError   … this one program, whose process it ended
    ├── TrainingError      there is nothing to learn from, and why                  (also a RuntimeError)
    └── RunError         a run directory that cannot be written, read or resumed  (also an OSError)

To add one: derive from `SelfDistillError` and from the standard type it refines, and draw it above.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SelfDistillError(Exception):
    """Base of every error that a user of this package can cause or cure.

    `got`, `why` and `do` may be empty; each non-empty one becomes a line of the message.
    """

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
    """A model or tokenizer that cannot do what is asked of it."""


class EnvError(SelfDistillError, RuntimeError):
    """An environment that cannot judge."""


class SandboxError(SelfDistillError, RuntimeError):
    """This machine cannot isolate untrusted programs as far as asked, or cannot run them now."""


class ProgramLostError(SandboxError):
    """The machine ended a program's process each time it was run: nothing is known of that program."""


class TrainingError(SelfDistillError, RuntimeError):
    """A batch from which nothing can be learned."""


class RunError(SelfDistillError, OSError):
    """A run directory that cannot be written, read or resumed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known spelling, or lists all of them."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"
