"""Tiny policies for every test of the training core: written once, loaded afresh for every test."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import selfdistill.test_time.comparison as comparison_module
from selfdistill.models.load import LoraOptions, Policy, load_policy
from selfdistill.runs.events import Callback, named
from selfdistill.training.side_by_side import Job
from tiny_models import tiny_policy_dir

PolicyOf = Callable[..., Policy]

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("core-models")


@pytest.fixture(scope="session")
def model_dir(model_shelf: Path) -> Path:
    """A tiny Qwen3 with a tied head."""
    return tiny_policy_dir(model_shelf)


@pytest.fixture
def tiny_policy(model_shelf: Path) -> PolicyOf:
    def build(
        family: str = "qwen3",
        *,
        tied: bool = True,
        pad: bool = True,
        lora: LoraOptions | None = None,
        dtype: str = "float32",
    ) -> Policy:
        shelf = model_shelf / ("pad" if pad else "no-pad")
        directory = shelf / f"tiny-{family}{'' if tied else '-untied'}-0"
        if not directory.exists():
            directory = tiny_policy_dir(shelf, family, tied=tied, pad=pad)
        return load_policy(str(directory), device="cpu", dtype=dtype, lora=lora)

    return build


@pytest.fixture
def unhurried() -> Iterator[None]:
    """Calls of an environment are made one at a time, on which what they draw depends, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QUICK_S", "QUICK_TOTAL_S"):
            patch.setattr(f"selfdistill.envs.base.{name}", 60.0)
        yield


@pytest.fixture
def searches_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The searches of a comparison run here, one after the other: a process of its own takes seconds to start."""

    def run(jobs: Sequence[Job], callback: Callback, *, at_once: int) -> None:
        for job in jobs:
            comparison_module.run_search(job.path.name, job.path.parent.parent, named(callback, job.path.name))

    monkeypatch.setattr(comparison_module, "side_by_side", run)
