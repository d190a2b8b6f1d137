"""Samplers as servers, against a server with vLLM's routes; `make vllm` runs the contract with vLLM itself."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_vllm import PROMPT, ROUTES, FakeVllm, edited

from core_parts import gone
from selfdistill.analysis.context_gain import measure_context_gain
from selfdistill.config import Values
from selfdistill.envs.rewards import as_environment
from selfdistill.errors import ConfigError, EndpointError
from selfdistill.models.load import LoraOptions
from selfdistill.models.sampler import SamplingOptions
from selfdistill.runs import read_run
from selfdistill.runs.events import Interrupted, no_callback
from selfdistill.runs.scale import SamplerOptions
from selfdistill.scale.processes import Process
from selfdistill.training.loop import train
from selfdistill.types import Completion, Task

OPTIONS = SamplingOptions(max_new_tokens=3, temperature=0.7)
FAKE = Path(__file__).with_name("fake_vllm.py")


def moved(policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in policy.trainable().values():
            value += 0.05 * torch.randn(value.shape, generator=generator)


def own_logprobs(policy, done) -> torch.Tensor:
    logits_TV = policy.head().logits(policy.answer_hidden([(PROMPT, done.token_ids)])) / OPTIONS.temperature
    return logits_TV.log_softmax(-1)[range(len(done.token_ids)), done.token_ids]


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=2)])
def test_answers_come_from_the_weights_that_were_loaded_last(model_dir, tiny_policy, opened, lora) -> None:
    policy, fake = tiny_policy(lora=lora), FakeVllm(model_dir)
    sampler = opened(fake)
    for version in (3, 4):
        moved(policy, version)
        numbers = sampler.load(policy, version)
        assert numbers["sampler_gap"] < 1e-4
        assert numbers["samplers"] == 1
        found = sampler.generate(policy, [PROMPT] * 3, OPTIONS, seed=1, uids=["a", "b", "a"])
        assert [(done.uid, done.policy_version, done.prompt_tokens) for done in found] == [
            (uid, version, 4) for uid in ("a", "b", "a")
        ]
        assert found[0].token_ids == found[2].token_ids != found[1].token_ids, "draws follow from the name"
        for done in found:
            torch.testing.assert_close(torch.tensor(done.logprobs), own_logprobs(policy, done), atol=1e-4, rtol=0)
    assert sampler.load(policy, 4) == {}
    assert sorted(path.name for path in sampler.folder.glob("v*")) == ["v000003", "v000004"]
    names = [body["lora_name"] for route, body in fake.calls if route == "/v1/load_lora_adapter"]
    assert len(set(names)) == (2 if lora else 0)
    assert fake.count("/v1/unload_lora_adapter") == (1 if lora else 0)
    assert fake.count("/collective_rpc") == fake.count("/reset_prefix_cache") == (0 if lora else 2)
    assert set(fake.policies) == ({"policy", names[-1]} if lora else {"policy"})


def test_a_faster_server_takes_more_and_a_lost_one_loses_nothing(model_dir, tiny_policy, opened) -> None:
    policy, notes = tiny_policy(), list[str]()
    slow, fast, dies = FakeVllm(model_dir), FakeVllm(model_dir), FakeVllm(model_dir, dies_after=2)
    sampler = opened(slow, fast, dies, requests=2, notes=notes)
    sampler.load(policy, 0)
    slow.gate.clear()
    fast.edit = lambda found: (slow.gate.set() if fast.count(ROUTES[0]) > 7 else None) or found
    found = sampler.generate(policy, [PROMPT] * 10, OPTIONS, seed=1, uids=[f"u{n}" for n in range(10)])
    assert [done.uid for done in found] == [f"u{n}" for n in range(10)]
    assert slow.count(ROUTES[0]) <= 5 < 7 <= fast.count(ROUTES[0])
    assert [engine.url for engine in sampler.live] == [slow.url, fast.url]
    assert any(dies.url in note and "lost" in note and "2 left" in note for note in notes)
    dies.dead, dies.dies_after = False, 10**9
    assert sampler.load(policy, 1)["samplers"] == 3, "tried again with the next weights"


def test_without_a_server_left_there_is_one_error(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake, timeout_s=3.0)
    sampler.load(policy, 0)
    fake.gate.clear()
    with pytest.raises(EndpointError, match=r"no vLLM server is left[\s\S]*no answer to /v1/completions in 3 s"):
        sampler.generate(policy, [PROMPT] * 4, OPTIONS, seed=1, uids=["a", "b", "c", "d"])


FAULTS = (
    ("version", "0.11.2", "its version is 0.11.2, and 0.32 is the oldest"),
    ("version", "", "/version names no version"),
    ("routes", ROUTES[:3], r"vLLM 0.32.0 has no route /collective_rpc[\s\S]*VLLM_SERVER_DEV_MODE=1"),
    ("length", 32, r"32, the run needs 64[\s\S]*--max-model-len 64"),
    ("edit", lambda found: "<html>", "completions answers in another form: TypeError"),
    ("edit", lambda found: {"choices": []}, "completions answers in another form"),
    ("edit", edited(prompt_token_ids=[5, 6, 9, 8]), "it read 4 tokens, not the 4 .* differ from number 2 on"),
    ("edit", edited(token_ids=[9] * 99), "99 tokens and .* log-probabilities"),
    (
        "edit",
        edited(token_ids=[9] * 16, logprobs={"token_logprobs": [-9.0] * 16}),
        r"not those of the model[\s\S]*weights of step 0: [\d.]+ nats apart on average, .* the bound is 0.05",
    ),
)


def test_a_server_that_cannot_be_trusted_is_refused(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake)
    for name, value, words in FAULTS:
        before = getattr(fake, name)
        setattr(fake, name, value)
        sampler.version, sampler.engines[0].lost = -1, "not started"
        with pytest.raises(EndpointError, match=words):
            sampler.load(policy, 0)
        setattr(fake, name, before)


def test_a_server_that_keeps_old_weights_is_refused(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake)
    sampler.load(policy, 0)
    moved(policy)
    fake.answer = lambda route, body, real=fake.answer: {} if route == "/collective_rpc" else real(route, body)
    with pytest.raises(EndpointError, match=r"weights of step 1: [\d.]+ nats apart"):
        sampler.load(policy, 1)


def test_servers_on_the_learners_device_sleep_while_it_learns(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake, colocate={"memory": 0.4})
    sampler.load(policy, 0)
    sampler.rest()
    sampler.generate(policy, [PROMPT], OPTIONS, seed=1, uids=["a"])
    sampler.rest()
    sampler.load(policy, 1)
    order = [route for route, _ in fake.calls if route in ("/sleep", "/wake_up", "/collective_rpc", ROUTES[0])]
    loaded, sampled, sleep, wake = "/collective_rpc", ROUTES[0], "/sleep", "/wake_up"
    assert order == [loaded, sampled, sleep, wake, sampled, sleep, wake, loaded, sampled]


@pytest.mark.parametrize(("staleness", "versions"), [(0, [0, 1, 2, 3]), (2, [0, 0, 0, 2])])
def test_a_run_records_the_weights_that_sampled(model_dir, config_of, staleness, versions) -> None:
    table = {"addresses": [FakeVllm(model_dir).url], "staleness": staleness}
    config = config_of(steps=4, tasks_per_step=1, scale={"sampler": table}, evaluation={"every": 2, "tasks": 1})
    run = read_run(train(config))
    assert [step.extra["staleness"] for step in run.steps] == [n - at for n, at in enumerate(versions)]
    found = {(r.step, r.policy_version) for r in run.rollouts() if r.logprobs}
    assert found == {(n + 1, at) for n, at in enumerate(versions)}
    for step, at in zip(run.steps, versions, strict=True):
        if step.samples and step.step - 1 == at:
            assert step.extra["sampler_ratio"] == pytest.approx(1, abs=1e-4)
    assert run.steps[0].extra["sampler_gap"] < 1e-4
    assert not list(Path(config.out).parent.glob("*.samplers*")), "removed with the servers"


def test_a_run_whose_servers_die_is_saved_and_resumes(model_dir, config_of) -> None:
    dies = FakeVllm(model_dir)
    small = {"lora": {"rank": 2}, "tasks_per_step": 1, "evaluation": {"every": 0, "tasks": 1}}
    config = config_of(**small, scale={"sampler": {"addresses": [dies.url], "start_s": 0.5}})

    def after_the_first_step(event) -> None:
        if type(event).__name__ == "StepEnd":
            dies.dead = True

    with pytest.raises(EndpointError, match=r"no vLLM server is left[\s\S]*resumes with selfdistill train --resume"):
        train(config, after_the_first_step)
    assert [step.step for step in read_run(Path(config.out)).steps] == [1]
    table = {"addresses": [FakeVllm(model_dir).url], "staleness": 1}
    resumed = config_of(**small, scale={"sampler": table})
    run = read_run(train(resumed, resume=True))
    assert [(step.step, step.extra["staleness"]) for step in run.steps] == [(1, 0), (2, 0), (3, 1)]
    assert len({(r.step, r.uid) for r in run.rollouts()}) == len(list(run.rollouts()))


def test_a_run_that_ends_does_not_wait_for_what_is_scored_ahead(model_dir, config_of) -> None:
    table = {"addresses": [FakeVllm(model_dir).url], "staleness": 2}
    scoring, gate = threading.Event(), threading.Event()

    def press(event) -> None:
        if type(event).__name__ == "StepEnd":
            assert scoring.wait(25)
            os.kill(os.getpid(), signal.SIGINT)

    def waits(task: Task, completion: Completion) -> float:
        if completion.uid.startswith("2-"):
            scoring.set()
            gate.wait(25)
        return 0.0

    config = config_of(steps=9, tasks_per_step=1, evaluation={"every": 0, "tasks": 1}, scale={"sampler": table})
    env = as_environment(waits, tasks=config.make_env().tasks("train"))
    before = {*threading.enumerate()}
    with pytest.raises(Interrupted):
        train(replace(config, values=Values(env=env)), press)
    until = time.monotonic() + 5.0
    while left := [one for one in {*threading.enumerate()} - before if not one.daemon]:
        assert time.monotonic() < until, left  # this process would wait for them at its end
        time.sleep(0.05)
    gate.set()


def test_ctrl_c_ends_a_run_that_samples_ahead(model_dir, config_of) -> None:
    table = {"addresses": [FakeVllm(model_dir, waits_s=0.02).url], "staleness": 2}

    def press(event) -> None:
        if type(event).__name__ == "StepEnd":
            os.kill(os.getpid(), signal.SIGINT)

    config = config_of(steps=9, tasks_per_step=1, evaluation={"every": 0, "tasks": 1}, scale={"sampler": table})
    with pytest.raises(Interrupted):
        train(config, press)
    assert len(read_run(Path(config.out)).steps) == 1


def test_a_process_that_cannot_start_says_why(model_dir, config_of, tmp_path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho the engine needs a GPU\nexit 3\n")
    program.chmod(0o755)
    config = config_of(scale={"sampler": {"command": str(program), "start_s": 20.0}})
    with pytest.raises(EndpointError, match=r"no vLLM server is left[\s\S]*ended with code 3[\s\S]*needs a GPU"):
        train(config)
    assert not Path(config.out).exists(), "nothing was written"
    with pytest.raises(ConfigError, match=r"scale.sampler.command = no-such-vllm[\s\S]*make vllm"):
        train(config_of(scale={"sampler": {"command": "no-such-vllm"}}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port for a vLLM server is in use\n  got  {port}"):
            train(config_of(scale={"sampler": {"command": str(program), "port": port}}))


def test_an_own_server_runs_on_and_ends_with_what_it_started(tmp_path, opened) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\nsleep 60 &\necho $! > $PIDS\nenv | grep -c VLLM_ > $PIDS.env\nwait\n")
    program.chmod(0o755)
    os.environ["PIDS"] = str(tmp_path / "pids")
    options = SamplerOptions(command=str(program), devices=("2,3",))

    async def started() -> Process:
        return Process(options, 0, "model", ["--dtype", "float32"], tmp_path / "log")

    process = opened()._run(started())
    while not (tmp_path / "pids.env").is_file() or not (tmp_path / "pids.env").read_text():
        time.sleep(0.02)
    child = int((tmp_path / "pids").read_text())
    assert not process.ended
    process.end()
    assert "signal 15 ended it" in process.ended
    assert gone([child])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"addresses": ["localhost:8000"]}, "http://HOST:PORT"),
        ({"addresses": ["http://localhost:80000"]}, "http://HOST:PORT"),
        ({"addresses": ["http://[::1"]}, "http://HOST:PORT"),
        ({"addresses": ["http://a:1", "http://b:1", "http://a:1/"]}, r"named twice\n  got  http://a:1"),
        ({"addresses": ["http://a:1"], "port": 8000}, "servers that run already cannot be configured"),
        ({"servers": 2, "devices": ["1"]}, "1 devices, 2 servers"),
        ({"colocate": {"memory": 0.3}, "staleness": 1}, "sleep while it learns"),
        ({"stalenes": 1}, "staleness"),
    ],
)
def test_settings_that_exclude_one_another(config_of, table, words) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(scale={"sampler": table})


def test_what_servers_cannot_do_is_refused_before_anything_is_written(config_of) -> None:
    table = {"addresses": ["http://127.0.0.1:9"], "staleness": 1}
    with pytest.raises(ConfigError, match="staleness needs top_p=1"):
        train(config_of(scale={"sampler": table}, sampling={"max_new_tokens": 8, "top_p": 0.9}))
    config = config_of(scale={"sampler": {"addresses": table["addresses"]}})
    with pytest.raises(ConfigError, match="eval --teacher samples in its own process"):
        measure_context_gain(config, no_callback)
    assert not Path(config.out).exists()
