"""The settings of a run that many processes make together (`scale/`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from selfdistill.errors import ConfigError, Ranged, option


@dataclass(frozen=True, slots=True)
class Colocate(Ranged):
    """Servers on the learner's own GPU, which sleep while it learns. Raises `ConfigError`."""

    memory: float = option(0.3, "share of the GPU's memory for a server's weights and cache", above=0, below=1)
    sleep: int = option(
        1,
        "what a server gives back while the learner works: 1 moves its weights to the host, 2 drops them",
        least=1,
        most=2,
    )


@dataclass(frozen=True, slots=True)
class SamplerOptions(Ranged):
    """vLLM servers that sample in place of the learner. Raises `ConfigError`."""

    servers: int = option(1, "servers that the run starts on this machine and ends", least=1, most=1024)
    addresses: tuple[str, ...] = option((), "servers that run already, as http://HOST:PORT; none is started then")
    command: str = option("vllm", "program that starts a server, of an environment of its own")
    arguments: tuple[str, ...] = option((), "further arguments of `vllm serve`")
    devices: tuple[str, ...] = option((), 'CUDA_VISIBLE_DEVICES of each server, such as ["1", "2"]; empty: this one\'s')
    port: int = option(0, "port of the first server, the next ones follow; 0: any that are free", least=0, most=65_000)
    folder: str = option(
        "", "where weights are written for servers, which must see it; empty: beside the run directory"
    )
    transfer: Literal["directory", "nccl"] = option(
        "directory", "how all weights reach a server; nccl, between GPUs, is not measured"
    )
    tensor_parallel: int = option(1, "GPUs of each server", least=1, most=64)
    colocate: Colocate | None = option(None, "servers on the learner's GPU, asleep while it learns; none: on others")
    staleness: int = option(
        0,
        "most steps by which the weights that sample are older; from 1 on sampling and learning overlap",
        least=0,
        most=64,
    )
    requests: int = option(64, "requests in progress at each server", least=1, most=4096)
    logprob_bound: float = option(
        0.05,
        "nats between a server's log-probabilities and the model's, on average, beyond which it is refused",
        above=0,
    )
    timeout_s: float = option(600.0, "seconds after which a server that has not answered is lost", above=0, most=86_400)
    start_s: float = option(600.0, "seconds that a server may take to start", above=0, most=86_400)

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        if self.addresses and (self.devices or self.arguments or self.command != "vllm" or self.port):
            what, do = "servers that run already cannot be configured", "leave out addresses, or the options of a start"
            raise ConfigError(what, got=", ".join(self.addresses), why="no server is started", do=do)
        wrong = [one for one in self.addresses if not _is_address(one)]
        if wrong:
            raise ConfigError("an address of a server is none", got=wrong[0], do="write it as http://HOST:PORT")
        bare = [one.rstrip("/") for one in self.addresses]
        if twice := [one for one in bare if bare.count(one) > 1]:
            why = "each is loaded, and given requests, once"
            raise ConfigError("a server is named twice", got=twice[0], why=why, do="name it once")
        if self.devices and len(self.devices) != self.servers:
            got = f"{len(self.devices)} devices, {self.servers} servers"
            raise ConfigError("each server needs its devices", got=got, do='name one for each: devices=["1", "2,3"]')
        if self.colocate and self.staleness:
            why = "servers on the learner's GPU sleep while it learns: nothing can overlap"
            raise ConfigError(
                "staleness needs servers on GPUs of their own", got=self.staleness, why=why, do="set it to 0"
            )


def _is_address(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"https?://[^/\s]+/?", text)) and urlsplit(text).port != 0
    except ValueError:  # brackets of no IPv6 address, or a port that is none
        return False


@dataclass(frozen=True, slots=True)
class ScaleOptions(Ranged):
    """Who learns and who samples. None of these changes a result beyond rounding. Raises `ConfigError`."""

    learners: int = option(
        1, "processes that learn together, each with a share of the weights; torchrun sets it", least=1, most=4096
    )
    timeout_s: float = option(
        1800.0, "seconds after which a learner that the others wait for counts as lost", above=0, most=604_800
    )
    env_workers: int = option(0, "processes of a Ray cluster that score answers; 0: learners do", least=0, most=4096)
    sampler: SamplerOptions | None = option(None, "vLLM servers that sample; none: the learner samples itself")
