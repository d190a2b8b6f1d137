"""The optimiser of a run: AdamW, with states in 8 bits or on the host where the settings say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.plugins import import_extra


class OnHost(torch.optim.Optimizer):
    """An optimiser whose states are kept in host memory and are on the device for one parameter at a time. The device
    computes every step, so results are bit-identical."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, parameter by parameter."""
        groups = self.param_groups
        try:
            for group in groups:
                for weight in group["params"]:
                    self.param_groups = [{**group, "params": [weight]}]
                    self._move(weight, weight.device)
                    super().step()
                    self._move(weight, torch.device("cpu"))
        finally:
            self.param_groups = groups

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the states, on the host. torch's own would have all of them on the device first, which may hold one
        parameter's at a time."""
        super().load_state_dict({**state_dict, "state": {}})
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for number, weight in zip(saved["params"], group["params"], strict=True):
                if number in state_dict["state"]:
                    self.state[weight] = dict(state_dict["state"][number])
                    self._move(weight, torch.device("cpu"))
                    if group.get("fused"):  # which counts steps on the device
                        self.state[weight]["step"] = self.state[weight]["step"].to(weight.device)

    def _move(self, weight: Tensor, device: torch.device) -> None:
        state = self.state[weight]
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():  # not the count of steps
                state[name] = value.to(device)


def new_optimizer(config: RunConfig, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of these weights. Raises `ConfigError` where its extra is not installed."""
    options = config.optimiser
    kind: Any = torch.optim.AdamW
    given: dict[str, Any] = {"lr": options.lr, "betas": (options.beta1, options.beta2)}
    if options.states == "8bit":
        kind = import_extra("torchao.optim", "8bit", "optimiser.states=8bit").AdamW8bit
    elif weights and weights[0].is_cuda:
        given["fused"] = True  # others hold a copy of all states for a moment
    if config.offload in ("optimiser", "both"):
        kind = type("Offloaded", (OnHost, kind), {})
    optimizer: torch.optim.Optimizer = kind(weights, weight_decay=options.weight_decay, **given)
    return optimizer
