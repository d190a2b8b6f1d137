"""vLLM servers on the machines of a Ray cluster, in place of those that a run starts on its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from selfdistill.errors import ConfigError, SelfDistillError
from selfdistill.runs.scale import SamplerOptions
from selfdistill.scale.engine import ENVIRONMENT, SERVED_AS
from selfdistill.scale.placement import CALL_S, RAY, START_S, Seat
from selfdistill.scale.processes import Process, how_it_ended
from selfdistill.scale.workers import connected


class PlacedServer(Process):
    """One `vllm serve` on a machine that Ray chose. Where that machine is lost, the next one may be another."""

    def __init__(self, options: SamplerOptions, number: int, model: str, flags: Sequence[str], log: Path) -> None:
        self.ray, self.log = connected(os.environ[RAY]), log
        gpus = options.tensor_parallel if self.ray.cluster_resources().get("GPU") else 0
        self.seat = self.ray.remote(Seat).options(num_cpus=1, num_gpus=gpus, max_restarts=0).remote()
        try:
            head = str(self.ray.get_runtime_context().gcs_address)
            address = self.ray.get(self.seat.address.remote(head), timeout=START_S)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(self.seat)
            what, do = "the cluster has no room for a vLLM server", "set scale.sampler.servers to what the cluster has"
            got = f"server {number + 1}, which needs {gpus} GPUs: {type(error).__name__}"
            raise ConfigError(what, got=got, do=do) from error
        host, _, port = address.rpartition(":")
        self.url, self.port = f"http://{address}", int(port)
        command = [options.command, "serve", model, "--host", host, "--port", port, *SERVED_AS.split(), *flags]
        command += options.arguments
        try:
            started = self.seat.start.remote(command, "", dict(ENVIRONMENT), os.getcwd(), str(log))
            self.ray.get(started, timeout=START_S)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(self.seat)
            cause = getattr(error, "cause", None)
            if isinstance(cause, SelfDistillError):
                raise cause from error
            what, do = "a machine of the cluster cannot start a vLLM server", "see its state with `ray status`"
            raise ConfigError(what, got=f"{self.url}: {type(error).__name__} {cause or ''}".strip(), do=do) from error

    @property
    def ended(self) -> str:
        """How the process ended, with its last lines; "" while it runs."""
        try:
            code, _ = self.ray.get(self.seat.state.remote(), timeout=CALL_S)
            if code is None:
                return ""
            return how_it_ended(code, self.ray.get(self.seat.errors.remote(), timeout=CALL_S))
        except self.ray.exceptions.RayError as error:
            return f"the machine of the server is lost ({type(error).__name__})"

    def end(self) -> None:
        """Ends the server, and all that it started."""
        self.ray.kill(self.seat)
