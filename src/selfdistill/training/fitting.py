"""Whether a method and the settings of a run belong together."""

from __future__ import annotations

from selfdistill.config import RunConfig
from selfdistill.envs.base import ConversationEnvironment, Environment
from selfdistill.errors import ConfigError
from selfdistill.methods import METHODS, Method
from selfdistill.prompts.stages import Attempts


def check_sampling(config: RunConfig, method: Method) -> None:
    """Raises `ConfigError` where a method corrects for a distribution that the sampler does not report."""
    if method.needs_sampler_logprobs and not config.sampling.whole:
        raise ConfigError(
            f"the method {config.method.name!r} weighs answers by the ratio of two probabilities",
            got=f"top_p {config.sampling.top_p:g}, temperature {config.sampling.temperature:g}",
            why="those of a truncated or greedy choice are not the model's, and the ratio would be left out",
            do="sample with top_p=1 and a temperature above 0",
        )


def check_turns(config: RunConfig, method: Method, env: Environment) -> None:
    """Raises `ConfigError` where a method does not learn from the conversations of an environment."""
    if isinstance(env, ConversationEnvironment) and not _learns_turns(method):
        learning = ", ".join(sorted(name for name, kind in METHODS.items() if _learns_turns(kind())))
        raise ConfigError(
            f"the method {config.method.name!r} does not learn from conversations of several turns",
            got=f"the environment {env.name!r}",
            why="it does not say what every turn reads, or samples more than attempts",
            do=f"choose one of {learning}, or an environment of one turn",
        )


def _learns_turns(method: Method) -> bool:
    return method.takes_turns and method.stages == (Attempts(),)
