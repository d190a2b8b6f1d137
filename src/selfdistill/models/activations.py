"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from selfdistill.errors import ConfigError
from selfdistill.models.policy import Policy


def recompute_activations(policy: Policy) -> None:
    """Keeps of every layer its input alone, and computes the layer again in the backward pass: the same gradients.

    transformers' own switch acts in training mode only, in which dropout would act as well. Raises `ConfigError` for a
    model whose layers transformers does not mark.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in policy.base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        what, do = "this architecture cannot compute its activations again", "leave activation_checkpointing off"
        raise ConfigError(what, got=type(policy.base).__name__, do=f"{do}, and lower micro_batch_tokens")
    policy.recomputes = True
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
