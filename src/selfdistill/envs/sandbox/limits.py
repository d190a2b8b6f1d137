"""What a scored program may use. Workers do not import this: they get numbers that were checked."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.envs.sandbox.wire import MAX_NODES
from selfdistill.errors import Ranged, option

MIN_SECONDS, MAX_SECONDS = 0.001, 3600.0  # far beyond, the clocks of the system overflow


@dataclass(frozen=True, slots=True)
class SandboxLimits(Ranged):
    """What a program may use; the time is wall clock for one input, the rest for one process. Raises `ConfigError`."""

    time_limit_s: float = option(
        6.0, "seconds for one test, where a task does not set its own", least=MIN_SECONDS, most=MAX_SECONDS
    )
    memory_mb: int = option(512, "MiB for one program, beyond the empty interpreter", least=16, most=1 << 20)
    output_kb: int = option(
        4096, "KiB each for a program's files, for what it prints, for a value", least=64, most=1 << 20
    )
    value_parts: int = option(
        MAX_NODES, "numbers, texts and containers in one value that it returns", least=1, most=10**8
    )
    recursion_limit: int = option(1000, "nested calls, where the program or its row sets none", least=100, most=10**6)
