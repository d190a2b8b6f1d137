"""What a scored program may use. Workers do not import this: they get numbers that were checked."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.envs.sandbox.wire import MAX_NODES
from selfdistill.options import check_ranges, option

MIN_SECONDS, MAX_SECONDS = 0.001, 3600.0  # far beyond, the clocks of the system overflow


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a program may use; `time_s` is for one input, the others for one process. Raises ConfigError."""

    time_s: float = option(
        6.0, "seconds of wall clock; loading the code counts with the first", least=MIN_SECONDS, most=MAX_SECONDS
    )
    memory_mb: int = option(512, "MiB beyond the empty interpreter", least=16, most=1 << 20)
    output_kb: int = option(4096, "KiB each for its files, for what is printed, for a value", least=64, most=1 << 20)
    value_parts: int = option(MAX_NODES, "numbers, texts and containers in one value", least=1, most=10**8)
    recursion_limit: int = option(1000, "nested calls, as sys.setrecursionlimit takes it", least=100, most=10**6)

    def __post_init__(self) -> None:
        check_ranges(self)
