"""Servers that answer wrongly, half or not at all, and what of it ends a run."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from fake_vllm import PROMPT, ROUTES, FakeVllm, edited

from selfdistill.errors import ConfigError, EndpointError
from selfdistill.models.load import LoraOptions
from selfdistill.models.sampler import SamplingOptions
from selfdistill.scale.sampler import Servers

OPTIONS = SamplingOptions(max_new_tokens=3, temperature=0.7)


def numbers(*values: float) -> dict[str, list[float]]:
    return {"token_logprobs": list(values)}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edited(token_ids=[9] * 3, logprobs=numbers(-1, math.nan, -1)), "not numbers\n  got  .*: nan for token 1 of 3"),
        (edited(token_ids=[9] * 3, logprobs=numbers(-1, -1, -math.inf)), "not numbers\n  got  .*: -inf for token 2"),
        (edited(token_ids=[9] * 3, logprobs={"token_logprobs": [None] * 3}), "answers in another form: TypeError"),
        (edited(token_ids=[9, -1, 9], logprobs=numbers(-1, -1, -1)), "the token -1 of a vocabulary"),
        (edited(token_ids=["a"] * 3, logprobs=numbers(-1, -1, -1)), "answers in another form: TypeError"),
        (edited(token_ids=[9.5] * 3, logprobs=numbers(-1, -1, -1)), "answers in another form: TypeError"),
        (edited(token_ids=[9], logprobs=numbers(-1)), "it ended after 1 tokens of 3, without an end token"),
        (edited(token_ids=[], logprobs=numbers()), "0 tokens and 0 log-probabilities"),
    ],
)
def test_an_answer_that_cannot_be_learned_from_is_refused(model_dir, tiny_policy, opened, edit, words) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake)
    sampler.load(policy, 0)
    fake.edit = edit
    with pytest.raises(EndpointError, match=words):
        sampler.generate(policy, [PROMPT], OPTIONS, seed=1, uids=["a"])


def test_an_answer_that_a_server_gives_up_is_sampled_by_another(model_dir, tiny_policy, opened) -> None:
    policy, notes, fakes = tiny_policy(), list[str](), [FakeVllm(model_dir) for _ in range(2)]
    sampler = opened(*fakes, notes=notes, requests=1)
    sampler.load(policy, 0)
    fakes[0].edit = edited(finish_reason="abort", token_ids=[], logprobs=numbers())
    fakes[1].edit = lambda found: time.sleep(0.2) or found
    found = sampler.generate(policy, [PROMPT] * 3, OPTIONS, seed=1, uids=list("abc"))
    assert [done.uid for done in found] == list("abc")
    assert all(done.token_ids for done in found)
    assert [note for note in notes if fakes[0].url in note and "/v1/completions ended with abort; 1 left" in note]


def test_a_server_that_goes_on_and_on_is_lost_in_time(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake, timeout_s=1.0)
    sampler.load(policy, 0)
    fake.trickles_s = 0.3
    began = time.monotonic()
    with pytest.raises(EndpointError, match="no answer to /v1/completions in 1 s"):
        sampler.generate(policy, [PROMPT], OPTIONS, seed=1, uids=["a"])
    assert time.monotonic() - began < 5


def test_an_adapter_that_a_restart_took_along_is_loaded_again(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(lora=LoraOptions(rank=2)), FakeVllm(model_dir)
    sampler = opened(fake)
    sampler.load(policy, 0)
    fake.policies = {"policy": fake.policies["policy"]}
    assert sampler.load(policy, 1)["samplers"] == 1


def test_a_server_that_comes_back_half_ends_nothing_while_another_samples(model_dir, tiny_policy, opened) -> None:
    policy, fakes = tiny_policy(), [FakeVllm(model_dir) for _ in range(2)]
    sampler = opened(*fakes)
    sampler.load(policy, 0)
    sampler.engines[1].lost = "no answer"
    fakes[1].fails = "/version"
    assert sampler.load(policy, 1)["samplers"] == 1
    fakes[1].fails = ""
    assert sampler.load(policy, 2)["samplers"] == 2


class Launched:
    """A server that a run starts, of which two find room: the place of one is free once `end` was called."""

    room, log = 2, "its log"

    def __init__(self, model: Path) -> None:
        if not Launched.room:
            raise ConfigError("the cluster has no room for a vLLM server", got="server 2")
        Launched.room -= 1
        self.fake, self.ended = FakeVllm(model), ""
        self.url = self.fake.url

    def end(self) -> None:
        Launched.room += 1


def test_a_server_is_started_again_in_its_own_place_and_stays_lost_without_one(
    model_dir, tiny_policy, config_of, tmp_path
) -> None:
    policy, notes, options = tiny_policy(), list[str](), {"servers": 2, "timeout_s": 20.0, "start_s": 3.0}
    config = config_of(sampling={"max_new_tokens": 3, "temperature": 0.7}, scale={"sampler": options})
    servers = Servers(config, tmp_path / "w", PROMPT, 64, notes.append, lambda *_: Launched(model_dir))
    assert servers.load(policy, 0)["samplers"] == 2
    for version, left in ((1, 2), (2, 1)):
        servers._processes[1].fake.dead, servers._processes[1].ended = True, "it ended with code 1"
        assert servers.load(policy, version)["samplers"] == left
        Launched.room -= 1  # the machine is gone that it would take next
    assert notes[-1] == "the sampler 2 is not started again: the cluster has no room for a vLLM server; 1 left"
    assert servers.load(policy, 3)["samplers"] == 1
    servers.close()


def test_a_proxy_of_the_environment_is_not_asked(model_dir, tiny_policy, opened, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    fake = FakeVllm(model_dir)
    opened(fake).load(tiny_policy(), 0)
    assert fake.count(ROUTES[0]) == 1
