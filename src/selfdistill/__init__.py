"""Reinforcement learning via self-distillation: a language model that learns from more than a score.

What can be imported from here is a promise; anything deeper may move. Names are loaded when they are first used, since
torch takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from selfdistill.errors import SelfDistillError
from selfdistill.types import (
    Completion,
    Context,
    Drop,
    Message,
    Outcome,
    Rollout,
    RolloutGroup,
    StopReason,
    Task,
)

if TYPE_CHECKING:
    from selfdistill.config import RunConfig, load_config
    from selfdistill.context import Demonstration, Document, SolutionOrFeedback
    from selfdistill.loops.compare import compare
    from selfdistill.loops.measure import measure
    from selfdistill.loops.solve import solve
    from selfdistill.loops.solve_config import solve_config
    from selfdistill.loops.strategies import Prompt, Scene, Strategy
    from selfdistill.loops.train import train
    from selfdistill.methods import GRPO, SDPO, Credit, Method
    from selfdistill.models.hf import LoraOptions, load_policy
    from selfdistill.models.policy import Policy
    from selfdistill.models.sampler import SamplingOptions, sample
    from selfdistill.models.teacher import Ema, Frozen
    from selfdistill.runs import Quiet, Reporter, Run, read_run
    from selfdistill.signal import Additive, SampledToken, Signal, Tanh, divergence, fused_signal
    from selfdistill.worlds.rows import load_tasks

__all__ = [
    "GRPO",
    "SDPO",
    "Additive",
    "Completion",
    "Context",
    "Credit",
    "Demonstration",
    "Document",
    "Drop",
    "Ema",
    "Frozen",
    "LoraOptions",
    "Message",
    "Method",
    "Outcome",
    "Policy",
    "Prompt",
    "Quiet",
    "Reporter",
    "Rollout",
    "RolloutGroup",
    "Run",
    "RunConfig",
    "SampledToken",
    "SamplingOptions",
    "Scene",
    "SelfDistillError",
    "Signal",
    "SolutionOrFeedback",
    "StopReason",
    "Strategy",
    "Tanh",
    "Task",
    "compare",
    "divergence",
    "fused_signal",
    "load_config",
    "load_policy",
    "load_tasks",
    "measure",
    "read_run",
    "sample",
    "solve",
    "solve_config",
    "train",
]

# Where the names above live that are loaded on first use; the imports for the type checker say the same.
_HOMES = {
    "config": "RunConfig load_config",
    "context": "Demonstration Document SolutionOrFeedback",
    "loops.compare": "compare",
    "loops.measure": "measure",
    "loops.solve": "solve",
    "loops.solve_config": "solve_config",
    "loops.strategies": "Prompt Scene Strategy",
    "loops.train": "train",
    "methods": "GRPO SDPO Credit Method",
    "models.hf": "LoraOptions load_policy",
    "models.policy": "Policy",
    "models.sampler": "SamplingOptions sample",
    "models.teacher": "Ema Frozen",
    "runs": "Quiet Reporter Run read_run",
    "signal": "Additive SampledToken Signal Tanh divergence fused_signal",
    "worlds.rows": "load_tasks",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
