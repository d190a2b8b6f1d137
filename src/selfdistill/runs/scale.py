"""The settings of a run that many processes make together (`scale/`)."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.errors import Ranged, option


@dataclass(frozen=True, slots=True)
class ScaleOptions(Ranged):
    """Who learns and who samples. None of these changes a result beyond rounding. Raises `ConfigError`."""

    learners: int = option(
        1, "processes that learn together, each with a share of the weights; torchrun sets it", least=1, most=4096
    )
    timeout_s: float = option(
        1800.0, "seconds after which a learner that the others wait for counts as lost", above=0, most=604_800
    )
    env_workers: int = option(0, "processes of a Ray cluster that score answers; 0: learners do", least=0, most=4096)
