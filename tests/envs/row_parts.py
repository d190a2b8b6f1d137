"""What the tests of the environments for rows share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfdistill.envs.base import score_all
from selfdistill.envs.registry import make_environment
from selfdistill.envs.rows import RowsEnvironment
from selfdistill.types import Completion, Message, Outcome, StopReason, Task

DATA = Path(__file__).parents[3] / "shared" / "data"
CUT_OFF = "The answer was cut off at the length limit before it was complete. Answer more briefly."


def environment(name: str, **options: Any) -> RowsEnvironment[Any]:
    env = make_environment(name, options, seed=0)
    assert isinstance(env, RowsEnvironment)
    return env


def row(answer: Any, **columns: Any) -> Task:
    return Task("t", (Message("user", "Question?"),), {"answer": answer, **columns})


def scored(env: RowsEnvironment[Any], answer: Any, text: str, stop: StopReason = StopReason.END) -> Outcome:
    """The outcome of one answer, as a run would get it."""
    (outcome,) = score_all(env, [(row(answer), Completion("c", text, stop=stop))])
    assert isinstance(outcome, Outcome), outcome
    return outcome


def reward(env: RowsEnvironment[Any], answer: Any, text: str) -> float:
    return scored(env, answer, text).reward


def rewards(env: RowsEnvironment[Any], answers: Sequence[tuple[Task, str]]) -> list[float | None]:
    """The rewards of many answers."""
    found = score_all(env, [(task, Completion(f"{place}", text)) for place, (task, text) in enumerate(answers)])
    return [outcome.reward if isinstance(outcome, Outcome) else None for outcome in found]


def data_file(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the rows of {name} are not here")
    return path
