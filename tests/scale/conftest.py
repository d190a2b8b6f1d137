from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fake_vllm import PROMPT, FakeVllm

from run_fixtures import config_of, one_thread, recorder  # noqa: F401
from selfdistill.scale.sampler import Servers, open_samplers


@pytest.fixture
def opened(config_of, tmp_path) -> Iterator:  # noqa: F811
    """Opens samplers of these servers."""
    with ExitStack() as stack:

        def build(*fakes: FakeVllm, notes: list[str] | None = None, **options) -> Servers:
            table = {"addresses": [fake.url for fake in fakes], "timeout_s": 20.0, "start_s": 3.0, **options}
            config = config_of(sampling={"max_new_tokens": 3, "temperature": 0.7}, scale={"sampler": table})
            return stack.enter_context(
                open_samplers(config, tmp_path / "weights", PROMPT, 64, (notes if notes is not None else []).append)
            )

        yield build
