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
    DropReason,
    Message,
    Observation,
    Outcome,
    Rollout,
    RolloutGroup,
    StopReason,
    Task,
)

if TYPE_CHECKING:
    import selfdistill.testing as testing  # noqa: F401 (`sd.testing`, a module)
    from selfdistill.api import train
    from selfdistill.config import RunConfig, load_config
    from selfdistill.data.chats import load_chats
    from selfdistill.data.load import load_data
    from selfdistill.envs.gymnasium import from_gymnasium
    from selfdistill.envs.judge import Judge
    from selfdistill.envs.rewards import RewardFunctions
    from selfdistill.envs.tools import Tools
    from selfdistill.envs.turns import RepeatedAttempts
    from selfdistill.experiments import compare, evaluate, solve
    from selfdistill.losses import Additive, LossSpec, SampledToken, Tanh, divergence, fused_loss
    from selfdistill.methods import GRPO, SDPO, Credit, Method
    from selfdistill.models.load import LoraOptions, load_policy
    from selfdistill.models.policy import Policy
    from selfdistill.models.sampler import SamplingOptions, sample
    from selfdistill.models.teacher import Ema, Frozen
    from selfdistill.prompts.context import Demonstration, Document, SolutionOrFeedback
    from selfdistill.runs import Callback, EvalEnd, Event, Note, Phase, Run, RunEnd, RunStart, StepEnd, read_run
    from selfdistill.test_time.strategies.base import Prompt, SolveState, Strategy
    from selfdistill.training.callbacks import TensorBoardCallback, TrackioCallback, WandbCallback

__all__ = [
    "GRPO",
    "SDPO",
    "Additive",
    "Callback",
    "Completion",
    "Context",
    "Credit",
    "Demonstration",
    "Document",
    "DropReason",
    "Ema",
    "EvalEnd",
    "Event",
    "Frozen",
    "Judge",
    "LoraOptions",
    "LossSpec",
    "Message",
    "Method",
    "Note",
    "Observation",
    "Outcome",
    "Phase",
    "Policy",
    "Prompt",
    "RepeatedAttempts",
    "RewardFunctions",
    "Rollout",
    "RolloutGroup",
    "Run",
    "RunConfig",
    "RunEnd",
    "RunStart",
    "SampledToken",
    "SamplingOptions",
    "SelfDistillError",
    "SolutionOrFeedback",
    "SolveState",
    "StepEnd",
    "StopReason",
    "Strategy",
    "Tanh",
    "Task",
    "TensorBoardCallback",
    "Tools",
    "TrackioCallback",
    "WandbCallback",
    "compare",
    "divergence",
    "evaluate",
    "from_gymnasium",
    "fused_loss",
    "load_chats",
    "load_config",
    "load_data",
    "load_policy",
    "read_run",
    "sample",
    "solve",
    "train",
]

# Where the names above live that are loaded on first use; the imports for the type checker say the same.
_HOMES = {
    "api": "train",
    "config": "RunConfig load_config",
    "prompts.context": "Demonstration Document SolutionOrFeedback",
    "experiments": "compare evaluate solve",
    "training.callbacks": "TensorBoardCallback TrackioCallback WandbCallback",
    "test_time.strategies.base": "Prompt SolveState Strategy",
    "methods": "GRPO SDPO Credit Method",
    "models.load": "LoraOptions load_policy",
    "models.policy": "Policy",
    "models.sampler": "SamplingOptions sample",
    "models.teacher": "Ema Frozen",
    "runs": "Callback EvalEnd Event Note Phase Run RunEnd RunStart StepEnd read_run",
    "losses": "Additive SampledToken LossSpec Tanh divergence fused_loss",
    "data.chats": "load_chats",
    "data.load": "load_data",
    "envs.gymnasium": "from_gymnasium",
    "envs.judge": "Judge",
    "envs.rewards": "RewardFunctions",
    "envs.tools": "Tools",
    "envs.turns": "RepeatedAttempts",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name == "testing":
        return import_module(f"{__name__}.testing")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
