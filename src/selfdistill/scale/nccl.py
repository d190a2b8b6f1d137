"""All weights to vLLM servers over NCCL, by vLLM's own engine. Not measured: it needs a GPU for each side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import httpx
import torch
from torch import Tensor

from selfdistill.errors import ConfigError
from selfdistill.models.policy import Policy
from selfdistill.scale.engine import Engine


class _Clients:
    """What vLLM's trainer engine calls, for several servers at once: rank 0 is the learner, GPUs follow in order."""

    def __init__(self, engines: Sequence[Engine], timeout_s: float) -> None:
        self.engines, self.timeout_s = engines, timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first, bodies = 1, []
        for engine in self.engines:
            bodies.append({"init_info": {**init_info, "rank_offset": first}})
            first += engine.group
        self._post("/init_weight_transfer_engine", bodies)

    def shutdown_weight_transfer_engine(self) -> None:
        self._post("/shutdown_weight_transfer_engine", [{}] * len(self.engines))

    def start_weight_update(self) -> None:
        self._post("/start_weight_update", [{}] * len(self.engines))

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", [{"update_info": update_info}] * len(self.engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", [{}] * len(self.engines))

    def _post(self, route: str, bodies: Sequence[Any]) -> None:
        async def all_() -> None:
            async with httpx.AsyncClient(trust_env=False) as client:
                pairs = zip(self.engines, bodies, strict=True)
                await asyncio.gather(*(e.call(client, route, body, timeout_s=self.timeout_s) for e, body in pairs))

        asyncio.run(all_())


def sender(policy: Policy, engines: Sequence[Engine], timeout_s: float) -> Callable[[], None]:
    """Joins the learner's GPU with those of the servers; what it returns sends the weights as they are then.

    Raises `ConfigError` where vLLM is not installed beside this package.
    """
    try:
        nccl, base = (import_module(f"vllm.distributed.weight_transfer.{name}") for name in ("nccl_engine", "base"))
    except ImportError as error:
        do = "install vllm into the learner's environment too, or set scale.sampler.transfer=directory"
        raise ConfigError("weights over NCCL need vLLM beside the learner", got=error, do=do) from error

    class Weights(base.WeightSource):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            for name, value in policy.base.named_parameters():
                yield name, value.detach().to(policy.dtype)

        def metadata(self) -> list[Any]:
            named = policy.base.named_parameters()
            return [base.ParamMeta(name, policy.dtype, tuple(value.shape)) for name, value in named]

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    info = nccl.NCCLTrainerInitInfo(
        rank=0,
        master_address=socket.gethostbyname(socket.gethostname()),
        master_port=port,
        world_size=1 + sum(engine.group for engine in engines),
    )
    with torch.cuda.device(policy.device):
        engine = nccl.NCCLTrainerWeightTransferEngine.trainer_init(
            info, client=_Clients(engines, timeout_s), source=Weights()
        )
    send: Callable[[], None] = engine.send_weights
    return send
