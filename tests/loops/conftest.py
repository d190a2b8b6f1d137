"""Short runs of a tiny model in a world of hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.config import RunConfig, from_settings
from selfdistill.loops.solve_config import SolveConfig, solve_config

WORLDS = Path(__file__).with_name("loop_worlds.py")
TINY: Mapping[str, Any] = {
    "device": "cpu",
    "steps": 3,
    "tasks_per_step": 2,
    "rollouts_per_task": 4,
    "checkpoint_every": 0,
    "sampling": {"max_new_tokens": 8},
    "evaluation": {"every": 0, "tasks": 2},
    "optimiser": {"lr": 1e-3, "warmup_steps": 0},
}

ConfigOf = Callable[..., RunConfig]
SearchOf = Callable[..., SolveConfig]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are made in the same order in every process, and two cores are enough for all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config_of(model_dir: Path, tmp_path: Path) -> ConfigOf:
    """A run's settings; `world` names a world of `loop_worlds`."""

    def build(world: str = "hashed", **changes: Any) -> RunConfig:
        own = {"model": str(model_dir), "world": f"{WORLDS}:{world}", "out": str(tmp_path / "run")}
        return from_settings({**TINY, **own, **changes})

    return build


@pytest.fixture
def search_of(model_dir: Path) -> SearchOf:
    """A search's settings; `world` names a world of `solve_worlds` or `loop_worlds`."""

    def build(strategy: str, world: str, budget: int = 24, **changes: Any) -> SolveConfig:
        file = "solve_worlds.py" if world in ("hints", "wordy", "mute", "rare", "Strict", "flaky") else "loop_worlds.py"
        options = {
            "model": str(model_dir), "world": f"{WORLDS.parent / file}:{world}", "device": "cpu", "checkpoint_every": 2,
            "sampling.max_new_tokens": 8, "optimiser.lr": 1e-3, **changes.pop("settings", {}),
        }  # fmt: skip
        limits = {"budget": budget, **changes.pop("limits", {})}
        return solve_config(strategy, list(options.items()), limits=limits, **{"tasks": ["q1"], **changes})

    return build


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.events.append((name, arguments[0]))

    @property
    def notes(self) -> list[str]:
        return [text for name, text in self.events if name == "note"]


@pytest.fixture
def heard() -> Heard:
    return Heard()
