"""Reinforcement learning via self-distillation: a language model that learns from more than a score.

What can be imported from here is a promise; anything deeper may move. Names are loaded when they are first used, since
torch takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import selfdistill.testing as testing  # noqa: F401 (`sd.testing`, a module)
    from selfdistill.api import train as train
    from selfdistill.config import RunConfig as RunConfig
    from selfdistill.config import load_config as load_config
    from selfdistill.data.chats import load_chats as load_chats
    from selfdistill.data.load import load_data as load_data
    from selfdistill.envs.gymnasium import from_gymnasium as from_gymnasium
    from selfdistill.envs.judge import Judge as Judge
    from selfdistill.envs.rewards import RewardFunctions as RewardFunctions
    from selfdistill.envs.tools import Tools as Tools
    from selfdistill.envs.turns import RepeatedAttempts as RepeatedAttempts
    from selfdistill.envs.verifiers import from_verifiers as from_verifiers
    from selfdistill.errors import SelfDistillError as SelfDistillError
    from selfdistill.experiments import compare as compare
    from selfdistill.experiments import evaluate as evaluate
    from selfdistill.experiments import solve as solve
    from selfdistill.losses import Additive as Additive
    from selfdistill.losses import LossSpec as LossSpec
    from selfdistill.losses import SampledToken as SampledToken
    from selfdistill.losses import Tanh as Tanh
    from selfdistill.losses import divergence as divergence
    from selfdistill.losses import fused_loss as fused_loss
    from selfdistill.methods import GRPO as GRPO
    from selfdistill.methods import SDPO as SDPO
    from selfdistill.methods import Credit as Credit
    from selfdistill.methods import Method as Method
    from selfdistill.models.load import LoraOptions as LoraOptions
    from selfdistill.models.load import load_policy as load_policy
    from selfdistill.models.policy import Policy as Policy
    from selfdistill.models.sampler import SamplingOptions as SamplingOptions
    from selfdistill.models.sampler import sample as sample
    from selfdistill.models.teacher import Ema as Ema
    from selfdistill.models.teacher import Frozen as Frozen
    from selfdistill.prompts.context import Demonstration as Demonstration
    from selfdistill.prompts.context import Document as Document
    from selfdistill.prompts.context import SolutionOrFeedback as SolutionOrFeedback
    from selfdistill.runs import Callback as Callback
    from selfdistill.runs import EvalEnd as EvalEnd
    from selfdistill.runs import Event as Event
    from selfdistill.runs import Guard as Guard
    from selfdistill.runs import Note as Note
    from selfdistill.runs import Phase as Phase
    from selfdistill.runs import Run as Run
    from selfdistill.runs import RunEnd as RunEnd
    from selfdistill.runs import RunStart as RunStart
    from selfdistill.runs import StepEnd as StepEnd
    from selfdistill.runs import read_run as read_run
    from selfdistill.test_time.strategies.base import Prompt as Prompt
    from selfdistill.test_time.strategies.base import SolveState as SolveState
    from selfdistill.test_time.strategies.base import Strategy as Strategy
    from selfdistill.training.callbacks import TensorBoardCallback as TensorBoardCallback
    from selfdistill.training.callbacks import TrackioCallback as TrackioCallback
    from selfdistill.training.callbacks import WandbCallback as WandbCallback
    from selfdistill.training.planner import plan_memory as plan_memory
    from selfdistill.types import Completion as Completion
    from selfdistill.types import Context as Context
    from selfdistill.types import DropReason as DropReason
    from selfdistill.types import Message as Message
    from selfdistill.types import Observation as Observation
    from selfdistill.types import Outcome as Outcome
    from selfdistill.types import Rollout as Rollout
    from selfdistill.types import RolloutGroup as RolloutGroup
    from selfdistill.types import StopReason as StopReason
    from selfdistill.types import Task as Task
    from selfdistill.types import WholePrompt as WholePrompt

# Where the names live; the imports for the type checker say the same.
_HOMES = {
    "errors": "SelfDistillError",
    "types": "Completion Context DropReason Message Observation Outcome Rollout RolloutGroup StopReason Task "
    "WholePrompt",
    "api": "train",
    "config": "RunConfig load_config",
    "prompts.context": "Demonstration Document SolutionOrFeedback",
    "experiments": "compare evaluate solve",
    "training.callbacks": "TensorBoardCallback TrackioCallback WandbCallback",
    "training.planner": "plan_memory",
    "test_time.strategies.base": "Prompt SolveState Strategy",
    "methods": "GRPO SDPO Credit Method",
    "models.load": "LoraOptions load_policy",
    "models.policy": "Policy",
    "models.sampler": "SamplingOptions sample",
    "models.teacher": "Ema Frozen",
    "runs": "Callback EvalEnd Event Guard Note Phase Run RunEnd RunStart StepEnd read_run",
    "losses": "Additive SampledToken LossSpec Tanh divergence fused_loss",
    "data.chats": "load_chats",
    "data.load": "load_data",
    "envs.rewards": "RewardFunctions",
    "envs.gymnasium": "from_gymnasium",
    "envs.judge": "Judge",
    "envs.tools": "Tools",
    "envs.turns": "RepeatedAttempts",
    "envs.verifiers": "from_verifiers",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # constants, classes, functions
    __all__ = sorted(_HOME_OF, key=lambda name: (not name.isupper(), name[0].islower(), name))


def __getattr__(name: str) -> object:
    if name == "testing":
        return import_module(f"{__name__}.testing")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(_HOME_OF)
