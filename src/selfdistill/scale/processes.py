"""vLLM servers that a run starts on its own machine, and ends."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError, EndpointError, RunError
from selfdistill.models.checkpoint import save_weights
from selfdistill.models.load import places_of
from selfdistill.models.policy import Policy
from selfdistill.runs.scale import SamplerOptions
from selfdistill.scale.engine import ENVIRONMENT, SERVED_AS

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
END_S = 20.0
SHOWN = 12  # last lines


class Process:
    """One `vllm serve` in a process group of its own, so that Ctrl-C does not reach it; it ends with its parent."""

    def __init__(self, options: SamplerOptions, number: int, model: str, flags: Sequence[str], log: Path) -> None:
        program = shutil.which(options.command)
        if program is None:
            raise ConfigError(
                "the program that starts vLLM servers is not there",
                got=f"scale.sampler.command = {options.command}",
                why="vLLM pins its own torch and wants an environment of its own",
                do="name it, such as scale.sampler.command=/opt/vllm/bin/vllm (on a CPU `make vllm` builds .vllm), "
                "or name servers that run already with scale.sampler.addresses",
            )
        self.port, self.log = _free_port(options.port + number if options.port else 0), log
        self.url = f"http://127.0.0.1:{self.port}"
        command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(self.port), *SERVED_AS.split(), *flags]
        devices = {"CUDA_VISIBLE_DEVICES": options.devices[number]} if options.devices else {}
        with log.open("wb") as file:
            self.child = subprocess.Popen(
                [*command, *options.arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **ENVIRONMENT, **devices},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def ended(self) -> str:
        """How the process ended, with the last lines of its log; "" while it runs."""
        code = self.child.poll()
        if code is None:
            return ""
        return how_it_ended(code, self.log.read_text(errors="replace") if self.log.is_file() else "")

    def end(self) -> None:
        """Ends the server and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.child.pid, number)
            except ProcessLookupError:
                break
            try:
                self.child.wait(END_S)
            except subprocess.TimeoutExpired:
                continue


def served(config: RunConfig, policy: Policy, path: Path, tokens: int) -> tuple[str, list[str]]:
    """The model directory of a server, and its flags, for weights that lie in `path`."""
    options, dtype = config.scale.sampler, str(policy.dtype).removeprefix("torch.")
    assert options is not None
    flags = ["--served-model-name", "policy", "--dtype", dtype, "--max-model-len", str(tokens)]
    flags += ["--tensor-parallel-size", str(options.tensor_parallel)] if options.tensor_parallel > 1 else []
    model = path
    if policy.has_adapter:
        model, peft = places_of(config.model)[1], json.loads((path / "adapter_config.json").read_text())
        rank = next((size for size in LORA_RANKS if size >= peft.get("r", 1)), LORA_RANKS[-1])
        flags += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2"]
    elif unties(policy):
        flags += ["--hf-overrides", '{"tie_word_embeddings": false}']
    elif options.transfer == "nccl":
        flags += ["--weight-transfer-config", '{"backend": "nccl"}']
    if options.colocate:
        flags += ["--enable-sleep-mode", "--gpu-memory-utilization", str(options.colocate.memory)]
    return str(model), flags


def write_weights(path: Path, policy: Policy, weights: Mapping[str, Tensor] | None) -> None:
    """The directory that servers load. Raises `EndpointError`."""
    head = None
    if unties(policy):
        [name] = [name for name, value in policy.base.named_parameters() if value is policy.output.weight]
        head = policy.output.weight.detach() if weights is None else weights[name]
    try:
        save_weights(path, policy, weights, head=head)
    except RunError as error:
        what, do = "the weights for the servers could not be written", "make room, or set scale.sampler.folder"
        raise EndpointError(what, got=path, why=error.why.partition(";")[0], do=do) from error


def unties(policy: Policy) -> bool:
    """Whether servers get the head of a tied model as a weight of its own. On a CPU vLLM 0.32 packs a copy of the
    head when it starts, and a reload leaves that as it was."""
    embeddings: Any = policy.base.get_input_embeddings()
    return policy.output.weight is embeddings.weight and policy.device.type == "cpu" and not policy.has_adapter


def how_it_ended(code: int, log: str) -> str:
    """The exit code of a process, with the last lines that it printed."""
    how = f"signal {-code} ended it" if code < 0 else f"it ended with code {code}"
    return "\n".join([f"{how}; its last lines:", *log.strip().splitlines()[-SHOWN:]])


def _end_with_parent() -> None:
    """SIGTERM rather than SIGKILL: the server ends the processes of its engine."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def _free_port(port: int) -> int:
    """The port, or any free one for 0. Raises `ConfigError` where it is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            do = "choose another with scale.sampler.port, or 0 for any that is free"
            raise ConfigError("a port for a vLLM server is in use", got=f"{port}: {error.strerror}", do=do) from None
        found: int = probe.getsockname()[1]
        return found
