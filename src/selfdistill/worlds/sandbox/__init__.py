"""Running programs nobody has read: see `Sandbox`."""

from selfdistill.worlds.sandbox.limits import Limits
from selfdistill.worlds.sandbox.lockdown import IsolationLevel, isolation_level, isolation_warning
from selfdistill.worlds.sandbox.pool import Sandbox, shared_sandbox
from selfdistill.worlds.sandbox.program import Ending, Mode, Program, Result

__all__ = [
    "Ending",
    "IsolationLevel",
    "Limits",
    "Mode",
    "Program",
    "Result",
    "Sandbox",
    "isolation_level",
    "isolation_warning",
    "shared_sandbox",
]
