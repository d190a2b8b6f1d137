"""Tensors of which each rank holds a part (`DTensor`), beside whole ones: all functions take both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def local(value: Tensor) -> Tensor:
    """What this process holds."""
    own: Any = value
    return own.to_local() if hasattr(value, "device_mesh") else value


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, placed as `like` is."""
    if not hasattr(like, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    given: Any = like
    return distribute_tensor(whole.to(like.device), given.device_mesh, given.placements, src_data_rank=None)


def placed(own: Tensor, like: Tensor) -> Tensor:
    """What this process holds as a part of a tensor that is placed as `like` is."""
    if not hasattr(like, "device_mesh"):
        return own
    from torch.distributed.tensor import DTensor

    given: Any = like
    return DTensor.from_local(
        own, given.device_mesh, given.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives an optimiser that has made no step the states of one that has; the weights stay as they are."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
