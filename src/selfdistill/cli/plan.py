"""What `train --plan` prints: memory by part, and what a step costs. Nothing is loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from selfdistill.cli.output import print_table
from selfdistill.config import RunConfig
from selfdistill.models.planning import model_shape
from selfdistill.scale.costs import GPUS, Gpu, Layout, gpu_named, seconds, step_costs
from selfdistill.training.planner import check_memory, memory_plan, needs_of, remedy


def print_plan(config: RunConfig, gpu_name: str | None, answer_tokens: int) -> None:
    """The memory of one device, and tokens, operations, bytes moved and seconds of a step. Raises `OutOfMemoryError`
    where not even the weights fit."""
    gpu, shape = _gpu(config, gpu_name), model_shape(config.model, config.lora)
    here = replace(config, device="cpu") if gpu else config  # a device that this machine need not have
    needs = needs_of(here, config.context.max_prompt_tokens, config.make_env())
    if gpu:
        needs = replace(needs, device=torch.device("cuda"), available=gpu.memory)
    sampler = config.scale.sampler
    servers = (len(sampler.addresses) or sampler.servers) * sampler.tensor_parallel if sampler else 0
    layout = Layout(config.scale.learners, servers)
    plan = memory_plan(config, shape, needs)
    print_table((f"memory of a device ({gpu.name if gpu else plan.device})", "size", "when"), plan.rows())
    costs = step_costs(config, shape, layout, answer=answer_tokens)
    print_table(("a step", "amount", "of which"), [*costs.rows(), *(seconds(costs, gpu).rows() if gpu else ())])
    check_memory(config, needs)
    if not plan.fits:
        print(f"it may run out of memory; to be sure, {remedy(config, needs)}")


def _gpu(config: RunConfig, name: str | None) -> Gpu | None:
    """The device that is named, else that of this machine where its speed is known; an H100 for a run that wants CUDA
    where there is none."""
    if name:
        return gpu_named(name)
    if torch.cuda.is_available() and config.device in ("auto", "cuda"):
        known = torch.cuda.get_device_name()
        return gpu_named(known) if any(key in known for key in GPUS) else None
    return GPUS["H100"] if config.device.startswith("cuda") else None
