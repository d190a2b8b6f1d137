"""Tiny policies, each built once and loaded afresh for every test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfdistill.models.load import LoraOptions, Policy, load_policy
from tiny_models import tiny_policy_dir

PolicyOf = Callable[..., Policy]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-models")


@pytest.fixture
def policy_of(shelf: Path) -> PolicyOf:
    def build(
        family: str = "qwen3", *, tied: bool = True, lora: LoraOptions | None = None, dtype: str = "float32"
    ) -> Policy:
        return load_policy(str(tiny_policy_dir(shelf, family, tied=tied)), device="cpu", dtype=dtype, lora=lora)

    return build


@pytest.fixture
def policy(policy_of: PolicyOf) -> Policy:
    return policy_of()


@pytest.fixture
def adapted(policy_of: PolicyOf) -> Policy:
    return policy_of(lora=LoraOptions(rank=2, alpha=4))
