"""From scored rollouts to training samples: what the method credits, in the prompts that student and teacher read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdistill.errors import ConfigError
from selfdistill.methods.base import Credit, CreditOrDrop, Method, credits_of
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.types import Context, DropReason, Rollout, RolloutGroup, TokenIds, TrainingSample


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rollout with what became of it: samples, or the reason why it takes no part.

    `context` is what the teacher reads of its first use. `cut` says that a field of a teacher's prompt was shortened,
    `lost` counts uses that go without a teacher, or are left out beside others, since its prompt does not fit.
    """

    rollout: Rollout
    samples: tuple[TrainingSample, ...] = ()
    context: Context | None = None
    drop: DropReason | None = None
    cut: bool = False
    lost: int = 0


def prepare(method: Method, groups: Sequence[RolloutGroup], renderer: Renderer) -> list[Prepared]:
    """One entry per rollout, in the order of the groups: rollouts = used + dropped, always. Raises `ConfigError` for a
    method that corrects and does not say so."""
    judged = [pair for group in groups for pair in zip(group.rollouts, _verdicts(method, group), strict=True)]
    if not method.needs_sampler_logprobs and any(
        credit.correct for _, credited in judged for credit in credits_of(credited)
    ):
        raise ConfigError(
            "this method has credits with `correct` and does not say so",
            got=type(method).__name__,
            why="whether the sampler reports what they need is checked before a run begins",
            do="write `needs_sampler_logprobs: ClassVar[bool] = True` into its class",
        )
    return [_prepare(rollout, credited, renderer) for rollout, credited in judged]


def _verdicts(method: Method, group: RolloutGroup) -> Sequence[CreditOrDrop]:
    """The method's, one for each rollout. Raises `ConfigError` where a user's own gives something else."""
    with their_code(method, "its `credit` or `credited`"):
        verdicts = method.credits(group)
    uses = [use for credited in verdicts for use in (credited if isinstance(credited, tuple) else (credited,))]
    wrong = next((use for use in uses if not isinstance(use, Credit | DropReason)), None)
    if wrong is not None or len(verdicts) != len(group.rollouts):
        raise ConfigError(
            f"{type(method).__name__} should give a Credit, several, or a DropReason for each rollout",
            got=f"{len(verdicts)} for {len(group.rollouts)}" if wrong is None else repr(wrong)[:200],
            do="correct its `credited`",
        )
    return verdicts


def replay_sample(rollout: Rollout, weight: float) -> TrainingSample:
    """An answer to a question of the past, to be kept as the weights at the start would have it."""
    done = rollout.completion
    return TrainingSample(
        done.uid, rollout.prompt_ids, (), done.token_ids, done.logprobs, reference=weight, context_kind="replay"
    )


def without_teacher(sample: TrainingSample) -> TrainingSample:
    """What is left of a sample that no teacher reads."""
    return replace(sample, teacher_prompts=(), against_prompts=(), distil=0.0)


@dataclass(frozen=True, slots=True)
class _Use:
    """One use of a rollout as student and teacher will read it. `lost`: what the teacher would have read does not fit,
    and there is no teacher."""

    sample: TrainingSample
    context: Context | None
    cut: bool
    lost: bool


def _prepare(rollout: Rollout, credited: CreditOrDrop, renderer: Renderer) -> Prepared:
    if isinstance(credited, DropReason):
        return Prepared(rollout, drop=credited)
    credits = credits_of(credited)
    context = credits[0].context if credits else None
    if not rollout.completion.token_ids and not any(credit.text for credit in credits):
        return Prepared(rollout, drop=DropReason.EMPTY_COMPLETION)
    uses = [_use(rollout, credit, renderer, number) for number, credit in enumerate(credits)]
    kept = [use for use in uses if use is not None]
    if uses and not kept:
        return Prepared(rollout, context=context, drop=DropReason.CONTEXT_TOO_LONG)
    return Prepared(
        rollout,
        samples=tuple(use.sample for use in kept),
        context=kept[0].context if kept else None,
        cut=any(use.cut for use in kept),
        lost=len(uses) - sum(not use.lost for use in kept),
    )


def _use(rollout: Rollout, credit: Credit, renderer: Renderer, number: int) -> _Use | None:
    """None where it does not fit: an advantage needs no teacher, but a divergence does, and a student that reads the
    context needs that."""
    done = rollout.completion
    answer = renderer.answer(credit.text) if credit.text else done.token_ids
    student = renderer.prompt(credit.question) if credit.question else rollout.prompt_ids
    told = _told(rollout, credit, renderer, len(answer))
    judged = bool(credit.advantage or credit.reference) and not credit.student_reads_context
    if len(student) + len(answer) > renderer.context_length or not (told or judged):
        return None
    views, against, cut = told or ((), (), False)
    if credit.student_reads_context:
        student, views = views[0], (student,)
    elsewhere = bool(credit.text) or student != rollout.prompt_ids  # not what these words were sampled from
    context = credit.context if told else None
    sample = TrainingSample(
        uid=f"{done.uid}+{number}" if number else done.uid,
        student_prompt_ids=student,
        teacher_prompts=views,
        completion_ids=answer,
        sampled_logprobs=() if elsewhere and not credit.correct else done.logprobs,
        against_prompts=against,
        live=credit.student_reads_context,
        advantage=credit.advantage,
        distil=credit.distil if told else 0.0,
        reference=credit.reference,
        loss_spec=credit.loss_spec,
        spans=credit.spans,
        context_kind=context.kind if context else "none",
        policy_version=done.policy_version,
    )
    return _Use(sample, context, cut, lost=not told)


def _told(
    rollout: Rollout, credit: Credit, renderer: Renderer, answer: int
) -> tuple[tuple[TokenIds, ...], tuple[TokenIds, ...], bool] | None:
    """The teacher's prompts for an answer of so many tokens and against it, and whether a field was cut; None where one
    of them does not fit, for a contrast or a mixture of fewer would be another one."""
    contexts = () if credit.context is None else (credit.context,)
    wanted = (*contexts, *credit.against)
    read = [renderer.teacher_prompt(rollout.task.messages, context, answer) for context in wanted]
    told = [entry for entry in read if not isinstance(entry, DropReason)]
    if len(told) < len(read):
        return None
    prompts = tuple(ids for ids, _ in told)
    return prompts[: len(contexts)], prompts[len(contexts) :], any(cut for _, cut in told)
