"""From judged rollouts to training samples: what the method credits, in the prompts that student and teacher read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdistill.methods.base import Credit, Method, Verdict
from selfdistill.render import Renderer
from selfdistill.types import Context, Drop, Rollout, RolloutGroup, TrainingSample


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rollout with what became of it: samples, or the reason why it takes no part.

    `context` is what the teacher reads of its first use. `cut` says that a field of a teacher's prompt was shortened.
    """

    rollout: Rollout
    samples: tuple[TrainingSample, ...] = ()
    context: Context | None = None
    drop: Drop | None = None
    cut: bool = False


def prepare(method: Method, groups: Sequence[RolloutGroup], renderer: Renderer) -> list[Prepared]:
    """One entry per rollout, in the order of the groups: rollouts = used + dropped, always."""
    return [
        _prepare(rollout, verdict, renderer)
        for group in groups
        for rollout, verdict in zip(group.rollouts, method.credit(group), strict=True)
    ]


def rehearsal_sample(rollout: Rollout, weight: float) -> TrainingSample:
    """An answer to a question of the past, to be kept as the weights at the start would have it."""
    done = rollout.completion
    return TrainingSample(
        done.uid, rollout.prompt_ids, (), done.token_ids, done.logprobs, reference=weight, context_kind="rehearsal"
    )


def untaught(sample: TrainingSample) -> TrainingSample:
    """What is left of a sample that no teacher reads."""
    return replace(sample, teacher_prompts=(), against_prompts=(), distil=0.0)


def _prepare(rollout: Rollout, verdict: Verdict, renderer: Renderer) -> Prepared:
    if isinstance(verdict, Drop):
        return Prepared(rollout, drop=verdict)
    credits = verdict if isinstance(verdict, tuple) else (verdict,)
    context = credits[0].context if credits else None
    if not rollout.completion.token_ids and not any(credit.text for credit in credits):
        return Prepared(rollout, drop=Drop.EMPTY_COMPLETION)
    uses = [_use(rollout, credit, renderer, number) for number, credit in enumerate(credits)]
    lost = next((use for use in uses if isinstance(use, Drop)), None)
    if lost is not None:
        return Prepared(rollout, context=context, drop=lost)
    kept = [use for use in uses if not isinstance(use, Drop)]
    return Prepared(rollout, tuple(sample for sample, _ in kept), context, cut=any(cut for _, cut in kept))


def _use(rollout: Rollout, credit: Credit, renderer: Renderer, number: int) -> tuple[TrainingSample, bool] | Drop:
    """One use of a rollout as student and teacher will read it, and whether a field was cut; or why there is none."""
    done, task = rollout.completion, rollout.task
    answer = renderer.answer(credit.text) if credit.text else done.token_ids
    student = renderer.prompt(credit.question) if credit.question else rollout.prompt_ids
    contexts = () if credit.context is None else (credit.context, *credit.more)
    read = [renderer.teacher_prompt(task.messages, context, len(answer)) for context in (*contexts, *credit.against)]
    told = [entry for entry in read if not isinstance(entry, Drop)]
    if len(told) < len(read) or len(student) + len(answer) > renderer.context_length:
        return Drop.CONTEXT_TOO_LONG
    prompts = tuple(ids for ids, _ in told)
    views, against = prompts[: len(contexts)], prompts[len(contexts) :]
    if credit.swapped:
        student, views = views[0], (student,)
    elsewhere = bool(credit.text) or student != rollout.prompt_ids  # not what these words were sampled from
    sample = TrainingSample(
        uid=f"{done.uid}+{number}" if number else done.uid,
        student_prompt_ids=student,
        teacher_prompts=views,
        completion_ids=answer,
        sampled_logprobs=() if elsewhere and not credit.correct else done.logprobs,
        against_prompts=against,
        live=credit.swapped,
        advantage=credit.advantage,
        distil=credit.distil,
        reference=credit.reference,
        signal=credit.signal,
        spans=credit.spans,
        context_kind=credit.context.kind if credit.context else "none",
        policy_version=done.policy_version,
    )
    return sample, any(cut for _, cut in told)
