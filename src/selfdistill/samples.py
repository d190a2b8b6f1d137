"""From judged rollouts to training samples: what the method credits, in the prompts that student and teacher read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.methods.base import Credit, Method
from selfdistill.render import Renderer
from selfdistill.types import Context, Drop, Rollout, RolloutGroup, TrainingSample


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rollout with what became of it: a sample, or the reason why it takes no part.

    `cut` says that a field of the teacher's prompt was shortened to fit.
    """

    rollout: Rollout
    sample: TrainingSample | None = None
    context: Context | None = None
    drop: Drop | None = None
    cut: bool = False


def prepare(method: Method, groups: Sequence[RolloutGroup], renderer: Renderer) -> list[Prepared]:
    """One entry per rollout, in the order of the groups: sampled = trained + dropped, always."""
    return [
        _prepare(rollout, credit, renderer)
        for group in groups
        for rollout, credit in zip(group.rollouts, method.credit(group), strict=True)
    ]


def rehearsal_sample(rollout: Rollout, weight: float) -> TrainingSample:
    """An answer to a question of the past, to be kept as the weights at the start would have it."""
    done = rollout.completion
    return TrainingSample(
        done.uid, rollout.prompt_ids, None, done.token_ids, done.logprobs, reference=weight, context_kind="rehearsal"
    )


def _prepare(rollout: Rollout, credit: Credit | Drop, renderer: Renderer) -> Prepared:
    if isinstance(credit, Drop):
        return Prepared(rollout, drop=credit)
    done, teacher_ids, cut = rollout.completion, None, False
    if not done.token_ids:
        return Prepared(rollout, drop=Drop.EMPTY_COMPLETION)
    if credit.distil:
        assert credit.context is not None, "a method that distils names what the teacher knows"
        found = renderer.teacher_prompt(rollout.task.messages, credit.context, len(done.token_ids))
        if isinstance(found, Drop):
            return Prepared(rollout, context=credit.context, drop=found)
        teacher_ids, cut = found
    sample = TrainingSample(
        uid=done.uid,
        student_prompt_ids=rollout.prompt_ids,
        teacher_prompt_ids=teacher_ids,
        completion_ids=done.token_ids,
        sampled_logprobs=done.logprobs,
        advantage=credit.advantage,
        distil=credit.distil,
        reference=credit.reference,
        context_kind=credit.context.kind if credit.context else "none",
        policy_version=done.policy_version,
    )
    return Prepared(rollout, sample, credit.context, cut=cut)
