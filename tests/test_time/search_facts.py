"""What a search left behind, for tests that compare two of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from selfdistill.runs import read_run
from selfdistill.runs.solving import read_result


def facts(out: Path) -> list[Any]:
    """Every attempt, every round and the results, but for the time they took."""
    found: list[Any] = []
    for path in sorted(out.glob("0*")):
        run, result = read_run(path), read_result(path)
        assert result is not None
        found += [replace(result, wall_s=0.0), *run.rollouts()]
        found += [replace(step, wall_s=0.0, seconds={}) for step in run.steps]
    return found
