"""What samplers count on, with vLLM itself: `make vllm` builds it (on a CPU, in .vllm) and runs this.

On an embedded model in float32 the log-probability of every sampled token is ours to 1e-3, at every temperature and
top_p, after every update of the weights, of all of them and of an adapter.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from selfdistill.config import from_settings
from selfdistill.models.load import LoraOptions, load_policy
from selfdistill.models.sampler import SamplingOptions, normalised, nucleus
from selfdistill.runs import read_run
from selfdistill.scale.sampler import open_samplers
from selfdistill.training.loop import train

COMMAND = os.environ.get("SELFDISTILL_VLLM") or str(Path(__file__).parents[2] / ".vllm" / "bin" / "vllm")
PROMPT = (5, 6, 7, 8, 9)
TABLE = {"command": COMMAND, "arguments": ["--enforce-eager"]}
pytestmark = pytest.mark.skipif(not os.access(COMMAND, os.X_OK), reason=f"vLLM could not be installed: no {COMMAND}")


@pytest.fixture(autouse=True)
def small_engine(monkeypatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)])
def test_log_probabilities_are_ours_after_every_update(tmp_path, lora) -> None:
    policy = load_policy("sapling-small", device="cpu", dtype="float32", lora=lora)
    config = from_settings({"model": "sapling-small", "dtype": "float32", "scale": {"sampler": TABLE}})
    notes: list[str] = []
    with open_samplers(config, tmp_path / "weights", PROMPT, 256, notes.append) as sampler:
        for version in range(3):
            if version:
                generator = torch.Generator().manual_seed(version)
                with torch.no_grad():
                    for value in policy.trainable().values():
                        value += 0.02 * torch.randn(value.shape, generator=generator)
            began = time.monotonic()
            numbers = sampler.load(policy, version)
            print(f"version {version}: {numbers}, {time.monotonic() - began:.2f} s")  # noqa: T201 (a measurement)
            for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (0.0, 1.0)):
                options = SamplingOptions(24, temperature, top_p)
                found = sampler.generate(policy, [PROMPT] * 4, options, seed=3, uids=list("abcd"))
                assert len({done.token_ids for done in found}) > 1 or temperature == 0
                for done in found:
                    hidden_TD = policy.answer_hidden([(PROMPT, done.token_ids)])
                    own_TV = normalised(policy.head().logits(hidden_TD).detach() / (temperature or 1.0))
                    own_TV = nucleus(own_TV, top_p) if top_p < 1 else own_TV
                    own_T = own_TV[range(len(done.token_ids)), done.token_ids]
                    torch.testing.assert_close(torch.tensor(done.logprobs), own_T, atol=1e-3, rtol=0)
                    assert done.policy_version == version
        os.kill(sampler._processes[0].child.pid, signal.SIGKILL)
        sampler._processes[0].child.wait()
        assert sampler.load(policy, 9)["samplers"] == 1, "started again"
    assert not list(tmp_path.iterdir()), "servers and their weights are gone"


@pytest.mark.parametrize(("changes", "learners"), [({"lora": {"rank": 4}}, 1), ({}, 1), ({}, 2)])
def test_a_run_learns_from_what_vllm_samples(tmp_path, changes, learners) -> None:
    settings = {
        "model": "sapling-small", "dtype": "float32", "steps": 3, "tasks_per_step": 4, "rollouts_per_task": 4,
        "out": str(tmp_path / "run"), "evaluation": {"every": 0, "tasks": 8}, "guards": {"action": "off"},
        "scale": {"learners": learners, "sampler": {**TABLE, "staleness": 1}}, **changes,
    }  # fmt: skip
    run = read_run(train(from_settings(settings)))
    assert [step.extra["staleness"] for step in run.steps] == [0, 1, 1]
    assert all(step.extra["sampler_gap"] < 1e-3 for step in run.steps)
    assert abs(run.steps[0].extra["sampler_ratio"] - 1) < 1e-3
