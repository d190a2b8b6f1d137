"""Sampling and judging: groups of rollouts to learn from, and accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.render import Renderer
from selfdistill.runs.stats import Estimate, share
from selfdistill.types import Rollout, RolloutGroup, Task, TokenIds
from selfdistill.worlds.base import Fault, World, judge_all

SOLVED = 0.5  # reward from which an answer counts as right

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups of siblings, and what is said of rollouts that a world could not judge, by uid."""

    groups: list[RolloutGroup]
    faults: dict[str, str]

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, in the order of the groups."""
        return [rollout for group in self.groups for rollout in group.rollouts]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of right answers with its 95 % interval, and how many tasks were right more often than not."""

    estimate: Estimate
    tasks: int
    solved: int


def roll_out(
    policy: Policy,
    world: World,
    renderer: Renderer,
    tasks: Sequence[Task],
    options: SamplingOptions,
    *,
    rollouts: int,
    seed: int,
    label: str,
    version: int = 0,
    prompts: Sequence[TokenIds] | None = None,
) -> Batch:
    """`rollouts` answers to each task, judged. `label` makes uids unique; `prompts` replace the student's own ones."""
    each = list(prompts) if prompts is not None else [renderer.prompt(task.messages) for task in tasks]
    repeated = [prompt for prompt in each for _ in range(rollouts)]
    uids = [f"{label}-{task}-{number}" for task in range(len(tasks)) for number in range(rollouts)]
    completions = sample(policy, repeated, options, seed=seed, uids=uids, version=version)
    pairs = [(tasks[index // rollouts], done) for index, done in enumerate(completions)]
    judged = judge_all(world, pairs)
    finished = [
        Rollout(task, prompt, done, drop=entry.drop)
        if isinstance(entry, Fault)
        else Rollout(task, prompt, done, outcome=entry)
        for (task, done), prompt, entry in zip(pairs, repeated, judged, strict=True)
    ]
    faults = {done.uid: entry.text for (_, done), entry in zip(pairs, judged, strict=True) if isinstance(entry, Fault)}
    groups = [
        RolloutGroup(task, tuple(finished[index * rollouts : (index + 1) * rollouts]))
        for index, task in enumerate(tasks)
    ]
    return Batch(groups, faults)


def accuracy(groups: Sequence[RolloutGroup]) -> Accuracy:
    """Over all answers; one that a world could not judge counts as wrong."""
    rights = [[solved(rollout) for rollout in group.rollouts] for group in groups]
    flat = [right for group in rights for right in group]
    return Accuracy(
        share(sum(flat), len(flat)), tasks=len(rights), solved=sum(2 * sum(group) > len(group) for group in rights)
    )


def mean_reward(rollouts: Sequence[Rollout]) -> float:
    """Over judged rollouts; 0 when there are none."""
    rewards = [rollout.outcome.reward for rollout in rollouts if rollout.outcome is not None]
    return sum(rewards) / len(rewards) if rewards else 0.0


def solved(rollout: Rollout) -> bool:
    """Whether an answer counts as right; one that a world could not judge does not."""
    return rollout.outcome is not None and rollout.outcome.reward >= SOLVED
