"""Seconds and peak memory of a piece of work, in the process that does it. Used by the workers of both sides."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = "RESULT "
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def measure(work: Callable[[], Any], *, warm: int, repeats: int) -> dict[str, Any]:
    """Median and all seconds of `work`, the peak of its first measured call above the level before, and the last value.

    `warm` calls come first: they load libraries and make what stays (gradients, moments), which is then in the level.
    """
    value = None
    for _ in range(warm):
        value = work()
    seconds, peak = [], 0
    for index in range(repeats):
        before = level_before() if index == 0 else 0
        start = timer()
        value = work()
        wait()
        seconds.append(timer() - start)
        if index == 0:
            peak = peak_bytes() - before
    return {"seconds": statistics.median(seconds), "all_seconds": seconds, "peak": peak, "value": value}


def timer() -> float:
    """Seconds of the processor where one thread computes, so that other work on the machine does not count; else
    seconds of the wall."""
    import torch

    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def level_before() -> int:
    """Bytes in use now; the peak is counted from here on."""
    gc.collect()
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        return int(cuda.memory_allocated())
    if CLEAR.exists():
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # glibc keeps what was freed, and would hide its next use
        if trim is not None:
            trim(0)
        CLEAR.write_text("5", encoding="ascii")  # the peak of the resident set becomes its present size
        return _status("VmRSS")
    return peak_bytes()


def peak_bytes() -> int:
    """The most bytes in use since `level_before`; where the system keeps no such count, since the process began."""
    cuda = _cuda()
    if cuda is not None:
        return int(cuda.max_memory_allocated())
    if CLEAR.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def wait() -> None:
    """Until the device has done what it was given."""
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()


def give(result: dict[str, Any]) -> None:
    """Hands the result to the process that asked."""
    sys.stdout.write(f"\n{RESULT}{json.dumps(result)}\n")
    sys.stdout.flush()


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None
