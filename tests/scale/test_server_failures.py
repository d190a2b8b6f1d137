"""Servers that answer wrongly, half or not at all, and what of it ends a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import PROMPT, ROUTES, FakeVllm, edited
from test_samplers import moved, own_logprobs

from selfdistill.errors import ConfigError, EndpointError, RunError
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.models.load import LoraOptions
from selfdistill.models.policy import Ranks
from selfdistill.models.sampler import SamplingOptions
from selfdistill.runs.events import Phase
from selfdistill.scale.sampler import Servers, open_samplers
from selfdistill.training.loop import train
from selfdistill.types import StopReason

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


def test_an_answer_is_cut_where_the_server_reads_no_further(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake)
    sampler.load(policy, 0)
    fake.edit = edited(token_ids=[9], logprobs=numbers(-1), finish_reason="length")
    [done] = sampler.generate(policy, [PROMPT], OPTIONS, seed=1, uids=["a"])
    assert (done.token_ids, done.stop) == ((9,), StopReason.LENGTH)


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
    sampler = opened(fake)
    sampler.load(policy, 0)
    sampler.options = replace(sampler.options, timeout_s=1.0)
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


def test_a_server_that_dropped_its_weights_to_sleep_loads_them_again(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    sampler = opened(fake, colocate={"sleep": 2})
    sampler.load(policy, 0)
    before = sampler.generate(policy, [PROMPT], OPTIONS, seed=1, uids=["a"])
    sampler.rest()
    assert sampler.load(policy, 0) == {}
    assert sampler.generate(policy, [PROMPT], OPTIONS, seed=1, uids=["a"]) == before
    with pytest.raises(ConfigError, match=r"base of an adapter[\s\S]*colocate.sleep=1"):
        sampler.load(tiny_policy(lora=LoraOptions(rank=2)), 1)


def test_a_server_that_is_started_anew_between_two_batches_loads_the_weights_again(
    model_dir, tiny_policy, opened, monkeypatch
) -> None:
    policy, fakes, notes = tiny_policy(), [FakeVllm(model_dir) for _ in range(2)], list[str]()
    sampler = opened(*fakes, notes=notes, requests=1)
    moved(policy)
    sampler.load(policy, 1)
    fakes[1].policies = FakeVllm(model_dir).policies
    monkeypatch.setattr("selfdistill.scale.sampler.RESTART_S", 0.0)
    for _ in range(2):
        for done in sampler.generate(policy, [PROMPT] * 4, OPTIONS, seed=1, uids=list("abcd")):
            torch.testing.assert_close(torch.tensor(done.logprobs), own_logprobs(policy, done), atol=1e-4, rtol=0)
    assert [note for note in notes if "other weights" in note] == [
        f"the sampler {fakes[1].url} has other weights than it was sent: it loads them again"
    ]
    assert [fake.count("/collective_rpc") for fake in fakes] == [1, 2]


def test_the_last_adapter_is_given_back(model_dir, tiny_policy, config_of, tmp_path) -> None:
    fakes = [FakeVllm(model_dir) for _ in range(2)]
    config = config_of(scale={"sampler": {"addresses": [fake.url for fake in fakes]}})
    with open_samplers(config, tmp_path / "w", PROMPT, 64, lambda _: None) as sampler:
        sampler.load(tiny_policy(lora=LoraOptions(rank=2)), 0)
        assert [len(fake.policies) for fake in fakes] == [2, 2]
        fakes[0].dead = True
    assert list(fakes[1].policies) == ["policy"]


def test_weights_that_cannot_be_written_end_a_run_saved(model_dir, config_of) -> None:
    small = {"tasks_per_step": 1, "evaluation": {"every": 0, "tasks": 1}}
    table = {"addresses": [FakeVllm(model_dir).url]}
    config = config_of(**small, scale={"sampler": table})

    def in_the_way(event) -> None:
        if type(event).__name__ == "StepEnd":
            (Path(config.out).parent / "run.samplers" / ".partial-v000001").write_text(
                "a file in the place of a folder"
            )

    with pytest.raises(EndpointError, match=r"weights for the servers could not be written[\s\S]*the run is saved"):
        train(config, in_the_way)
    assert latest_checkpoint(Path(config.out) / "checkpoints").name == "step-000001"
    with pytest.raises(RunError, match=r"cannot be made\n  got  /dev/null.*Not a directory"):
        train(config_of(**small, out="", scale={"sampler": {**table, "folder": "/dev/null"}}))


def test_a_run_that_is_not_saved_does_not_say_so(model_dir, config_of) -> None:
    fake = FakeVllm(model_dir)

    def die(event) -> None:
        fake.dead |= isinstance(event, Phase) and event.name.startswith("sampling")

    config = config_of(
        scale={"sampler": {"addresses": [fake.url], "start_s": 0.5}}, evaluation={"every": 0, "tasks": 1}
    )
    with pytest.raises(EndpointError, match="the run resumes from its newest checkpoint with selfdistill"):
        train(config, die)


class Passed(Ranks):
    """As of several: the error of the first one is raised on all."""

    size = 2

    def same(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except EndpointError as error:
            error.everywhere = True
            raise


def test_log_probabilities_that_disagree_end_all_learners_at_one_place(model_dir, tiny_policy, opened) -> None:
    policy, fake = tiny_policy(), FakeVllm(model_dir)
    policy.ranks = Passed()
    fake.edit = edited(token_ids=[9] * 16, logprobs=numbers(*[-9.0] * 16))
    with pytest.raises(EndpointError, match="not those of the model") as caught:
        opened(fake).load(policy, 0)
    assert caught.value.everywhere, "they save together"


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
