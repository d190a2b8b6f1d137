"""Running untrusted programs: see `Sandbox`."""

from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.lockdown import IsolationLevel, isolation_level, isolation_warning
from selfdistill.envs.sandbox.pool import Sandbox, shared_sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program, Result

__all__ = [
    "Ending",
    "IsolationLevel",
    "Mode",
    "Program",
    "Result",
    "Sandbox",
    "SandboxLimits",
    "isolation_level",
    "isolation_warning",
    "shared_sandbox",
]
