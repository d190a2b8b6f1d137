"""What tests that run programs in the sandbox share."""

import pytest

from selfdistill.envs.sandbox.lockdown import IsolationLevel, isolation_level

needs_isolation = pytest.mark.skipif(
    isolation_level() is not IsolationLevel.FULL, reason="this machine has no Landlock or no seccomp"
)
