"""Fixtures of short runs and searches of a tiny model, for the tests of training, test-time search and analysis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.config import RunConfig, from_settings
from selfdistill.runs import Event, Note
from selfdistill.test_time.config import SolveConfig, solve_config

ENVIRONMENTS = Path(__file__).parent / "training" / "loop_envs.py"
SOLVE_ENVIRONMENTS = Path(__file__).parent / "test_time" / "solve_envs.py"
TINY: Mapping[str, Any] = {
    "device": "cpu",
    "steps": 3,
    "tasks_per_step": 2,
    "rollouts_per_task": 4,
    "checkpoint_every": 0,
    "sampling": {"max_new_tokens": 8},
    "evaluation": {"every": 0, "tasks": 2},
    "optimiser": {"lr": 1e-3, "warmup_steps": 0},
    "guards": {"action": "off"},  # eight random tokens are cut off, and mean nothing
}

ConfigOf = Callable[..., RunConfig]
SearchOf = Callable[..., SolveConfig]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are made in the same order in every process and in a module's own fixtures; two cores are enough for all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config_of(model_dir: Path, tmp_path: Path) -> ConfigOf:
    """A run's settings; `env` names an environment of `loop_envs`."""

    def build(env: str = "hashed", **changes: Any) -> RunConfig:
        own = {"model": str(model_dir), "env": f"{ENVIRONMENTS}:{env}", "out": str(tmp_path / "run")}
        return from_settings({**TINY, **own, **changes})

    return build


@pytest.fixture
def search_of(model_dir: Path) -> SearchOf:
    """A search's settings; `env` names an environment of `solve_envs` or `loop_envs`."""

    def build(strategy: str, env: str, budget: int = 24, **changes: Any) -> SolveConfig:
        own = env in ("hints", "wordy", "mute", "rare", "Strict", "flaky")
        file = SOLVE_ENVIRONMENTS if own else ENVIRONMENTS
        options = {
            "model": str(model_dir), "env": f"{file}:{env}", "device": "cpu",
            "checkpoint_every": 2, "sampling.max_new_tokens": 8, "optimiser.lr": 1e-3, **changes.pop("settings", {}),
        }  # fmt: skip
        limits = {"budget": budget, **changes.pop("limits", {})}
        return solve_config(strategy, list(options.items()), limits=limits, **{"tasks": ["q1"], **changes})

    return build


class Recorder:
    """A callback that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
