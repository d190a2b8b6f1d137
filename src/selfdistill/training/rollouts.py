"""Sampling and scoring: groups of rollouts to learn from, and accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from selfdistill.envs.base import Environment, Fault, score_all, why_unusable
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts, FixedCompletion, Request, Stage
from selfdistill.runs.stats import Estimate, clustered_share
from selfdistill.types import Completion, DropReason, Rollout, RolloutGroup, Task, TokenIds

SOLVED = 0.5  # reward from which an answer counts as right

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """Groups of group members, and what is said of rollouts that an environment could not judge, by uid."""

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
    env: Environment,
    renderer: Renderer,
    tasks: Sequence[Task],
    options: SamplingOptions,
    *,
    rollouts: int,
    seed: int,
    label: str | Sequence[str],
    version: int = 0,
    stages: Sequence[Stage] = (Attempts(),),
    prompts: Sequence[TokenIds] | None = None,
) -> UpdateBatch:
    """What the stages want of each task, in their order, sampled together and scored: by default `rollouts` answers.

    `label` makes uids unique, one for all or one per task; `prompts`, one per task, replace those of an answer's
    messages.
    """
    groups, faults = [RolloutGroup(task, ()) for task in tasks], dict[str, str]()
    labels = [f"{label}-{place}" for place in range(len(tasks))] if isinstance(label, str) else label
    asking = _Asking(policy, env, renderer, options, seed, labels, version)
    for stage in stages:
        with their_code(stage, "its `requests`"):
            wanted = [(place, want) for place, group in enumerate(groups) for want in stage.requests(group, rollouts)]
        added, found = asking.rollouts(stage.name, groups, wanted, prompts)
        faults |= found
        grown = [list(group.rollouts) for group in groups]
        for (place, _), rollout in zip(wanted, added, strict=True):
            grown[place].append(rollout)
        groups = [RolloutGroup(task, tuple(rollouts)) for task, rollouts in zip(tasks, grown, strict=True)]
    return UpdateBatch(groups, faults)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who is asked, who scores, and how."""

    policy: Policy
    env: Environment
    renderer: Renderer
    options: SamplingOptions
    seed: int
    labels: Sequence[str]
    version: int

    def rollouts(
        self,
        stage: str,
        groups: Sequence[RolloutGroup],
        wanted: Sequence[tuple[int, Request]],
        prompts: Sequence[TokenIds] | None,
    ) -> tuple[list[Rollout], dict[str, str]]:
        """One rollout for each want, and what is said of those that could not be scored, by uid."""
        blank, faults = self._blank(stage, groups, wanted, prompts)
        asked = [place for place, rollout in enumerate(blank) if rollout.outcome is None and rollout.drop is None]
        done = sample(
            self.policy,
            [blank[place].prompt_ids for place in asked],
            self.options,
            seed=self.seed,
            uids=[blank[place].completion.uid for place in asked],
            version=self.version,
        )
        for place, completion in zip(asked, done, strict=True):
            opened = self.renderer.opened(blank[place].prompt_ids)  # thinking never closed would pass for an answer
            whole = replace(completion, text=opened + completion.text)
            blank[place] = replace(blank[place], completion=whole)
        judged = [place for place in asked if getattr(wanted[place][1], "scored", True)]
        verdicts = score_all(
            self.env, [(blank[place].task, blank[place].completion) for place in judged], seed=self.seed
        )
        for place, credited in zip(judged, verdicts, strict=True):
            if isinstance(credited, Fault):
                blank[place] = replace(blank[place], drop=credited.drop)
                faults[blank[place].completion.uid] = credited.text
            else:
                blank[place] = replace(blank[place], outcome=credited)
        return blank, faults

    def _blank(
        self,
        stage: str,
        groups: Sequence[RolloutGroup],
        wanted: Sequence[tuple[int, Request]],
        prompts: Sequence[TokenIds] | None,
    ) -> tuple[list[Rollout], dict[str, str]]:
        """The rollouts before anything is sampled: given ones are whole; those whose prompt does not fit are dropped,
        and those that no answer can satisfy, with the reason by uid."""
        numbers, faults = [len(group.rollouts) for group in groups], dict[str, str]()
        unusable = {place: why_unusable(self.env, groups[place].task) for place in {place for place, _ in wanted}}
        rendered = cache(self.renderer.prompt)  # group members are asked the same
        blank = []
        for place, want in wanted:
            group, done = groups[place], Completion(f"{self.labels[place]}-{numbers[place]}", "")
            numbers[place] += 1
            if isinstance(want, FixedCompletion):
                ids = self.renderer.answer(want.text)
                done = replace(done, text=want.text, token_ids=ids, policy_version=self.version)
                prompt = rendered(group.task.messages)
                blank.append(Rollout(group.task, prompt, done, want.outcome, stage=stage))
                continue
            prompt = prompts[place] if prompts is not None else rendered(want.messages)
            drop = DropReason.CONTEXT_TOO_LONG if len(prompt) >= self.renderer.context_length else None
            if unusable[place]:
                drop, faults[done.uid] = DropReason.BAD_ROW, unusable[place]
            asked = want.messages if want.messages != group.task.messages else ()
            blank.append(Rollout(group.task, prompt, done, None, drop, stage, asked, want.of))
        return blank, faults


def accuracy(groups: Sequence[RolloutGroup]) -> Accuracy:
    """Over all answers, clustered by task; one that an environment could not judge counts as wrong.

    Groups of one task, such as those that read different contexts, are one cluster.
    """
    rights: dict[str, list[bool]] = {}
    for group in groups:
        rights.setdefault(group.task.id, []).extend(solved(rollout) for rollout in group.rollouts)
    counts = [(sum(own), len(own)) for own in rights.values() if own]
    return Accuracy(clustered_share(counts), tasks=len(counts), solved=sum(2 * right > n for right, n in counts))


def mean_reward(rollouts: Sequence[Rollout]) -> float:
    """Over scored rollouts; 0 when there are none."""
    rewards = [rollout.outcome.reward for rollout in rollouts if rollout.outcome is not None]
    return sum(rewards) / len(rewards) if rewards else 0.0


def solved(rollout: Rollout) -> bool:
    """Whether an answer counts as right; one that an environment could not judge does not."""
    return rollout.outcome is not None and rollout.outcome.reward >= SOLVED
