"""Sampling and scoring: groups of rollouts to learn from, and accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from selfdistill.envs.base import Environment, Fault, score_all
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts, FixedCompletion, Request, Stage
from selfdistill.runs.stats import Estimate, clustered_share
from selfdistill.types import Completion, DropReason, Rollout, RolloutGroup, Task, TokenIds

SOLVED = 0.5  # reward from which an answer counts as solved


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of solved answers with its 95 % interval, and how many tasks were solved more often than not."""

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
    bad_rows: Mapping[str, str] = MappingProxyType({}),
) -> list[RolloutGroup]:
    """One group per task: what the stages request, in their order, sampled together and scored; by default `rollouts`
    answers.

    `label` makes uids unique, one for all or one per task; `prompts`, one per task, replace those of an answer's
    messages. Tasks of `bad_rows`, by id with the reason, are dropped without sampling.
    """
    labels = [f"{label}-{place}" for place in range(len(tasks))] if isinstance(label, str) else label
    groups = [RolloutGroup(task, ()) for task in tasks]
    for stage in stages:
        with their_code(stage, "its `requests`"):
            requests = [(place, want) for place, group in enumerate(groups) for want in stage.requests(group, rollouts)]
        added = _planned(bad_rows, renderer, stage.name, groups, requests, prompts, labels, version)
        open_ = [n for n, rollout in enumerate(added) if rollout.outcome is None and rollout.drop is None]
        completions = sample(
            policy,
            [added[n].prompt_ids for n in open_],
            options,
            seed=seed,
            uids=[added[n].completion.uid for n in open_],
            version=version,
        )
        for n, completion in zip(open_, completions, strict=True):
            opened = renderer.opened(added[n].prompt_ids)  # thinking never closed would pass for an answer
            added[n] = replace(added[n], completion=replace(completion, text=opened + completion.text))
        to_score = [n for n in open_ if getattr(requests[n][1], "scored", True)]
        results = score_all(env, [(added[n].task, added[n].completion) for n in to_score], seed=seed)
        for n, result in zip(to_score, results, strict=True):
            if isinstance(result, Fault):
                added[n] = replace(added[n], drop=result.drop, fault=result.text)
            else:
                added[n] = replace(added[n], outcome=result)
        grown = [list(group.rollouts) for group in groups]
        for (place, _), rollout in zip(requests, added, strict=True):
            grown[place].append(rollout)
        groups = [RolloutGroup(task, tuple(found)) for task, found in zip(tasks, grown, strict=True)]
    return groups


def _planned(
    bad_rows: Mapping[str, str],
    renderer: Renderer,
    stage: str,
    groups: Sequence[RolloutGroup],
    requests: Sequence[tuple[int, Request]],
    prompts: Sequence[TokenIds] | None,
    labels: Sequence[str],
    version: int,
) -> list[Rollout]:
    """The requested rollouts before anything is sampled: fixed completions are complete; those whose prompt does not
    fit, or whose task cannot be scored, are dropped."""
    numbers = [len(group.rollouts) for group in groups]
    rendered = cache(renderer.prompt)  # rollouts of a group have the same prompt
    planned = []
    for place, want in requests:
        task, done = groups[place].task, Completion(f"{labels[place]}-{numbers[place]}", "")
        numbers[place] += 1
        if isinstance(want, FixedCompletion):
            ids = renderer.answer(want.text)
            done = replace(done, text=want.text, token_ids=ids, policy_version=version)
            planned.append(Rollout(task, rendered(task.messages), done, want.outcome, stage=stage))
            continue
        prompt = prompts[place] if prompts is not None else rendered(want.messages)
        drop = DropReason.CONTEXT_TOO_LONG if len(prompt) >= renderer.context_length else None
        bad_row = bad_rows.get(task.id, "")
        if bad_row:
            drop = DropReason.BAD_ROW
        messages = want.messages if want.messages != task.messages else ()
        planned.append(Rollout(task, prompt, done, None, drop, stage, messages, want.of, bad_row))
    return planned


def accuracy(groups: Sequence[RolloutGroup]) -> Accuracy:
    """Over all answers, clustered by task; one that the environment could not score counts as wrong.

    Groups of one task, such as those that read different contexts, are one cluster.
    """
    by_task: dict[str, list[bool]] = {}
    for group in groups:
        by_task.setdefault(group.task.id, []).extend(solved(rollout) for rollout in group.rollouts)
    counts = [(sum(own), len(own)) for own in by_task.values() if own]
    return Accuracy(clustered_share(counts), tasks=len(counts), solved=sum(2 * right > n for right, n in counts))


def solved(rollout: Rollout) -> bool:
    """Whether an answer counts as solved; one that the environment could not score does not."""
    return rollout.outcome is not None and rollout.outcome.reward >= SOLVED
