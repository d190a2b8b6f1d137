"""From scored rollouts to training samples: the method's credits, and the prompts that student and teacher read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.errors import ConfigError
from selfdistill.methods.base import Credit, CreditOrDrop, Method
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.types import Context, DropReason, Rollout, RolloutGroup, TrainingSample


@dataclass(frozen=True, slots=True)
class CreditedRollout:
    """A rollout with its training samples, or the reason why it has none.

    `context` is what the teacher reads for the first sample. `cut`: a field of a teacher's prompt was shortened.
    `lost` counts credits that go without a teacher, or are left out beside others, since its prompt does not fit.
    """

    rollout: Rollout
    samples: tuple[TrainingSample, ...] = ()
    context: Context | None = None
    drop: DropReason | None = None
    cut: bool = False
    lost: int = 0


def credit_rollouts(method: Method, groups: Sequence[RolloutGroup], renderer: Renderer) -> list[CreditedRollout]:
    """One entry per rollout, in the order of the groups. Raises `ConfigError` for a user's method whose credits are
    something else, or which corrects for a sampler without declaring it."""
    credited: list[tuple[Rollout, CreditOrDrop]] = []
    for group in groups:
        with their_code(method, "its `credit` or `credits`"):
            credits = method.credits(group)
        flat = [one for entry in credits for one in (entry if isinstance(entry, tuple) else (entry,))]
        wrong = next((one for one in flat if not isinstance(one, Credit | DropReason)), None)
        if wrong is not None or len(credits) != len(group.rollouts):
            raise ConfigError(
                f"{type(method).__name__} should give a Credit, several, or a DropReason for each rollout",
                got=f"{len(credits)} for {len(group.rollouts)}" if wrong is None else repr(wrong)[:200],
                do="correct its `credits`",
            )
        if not method.needs_sampler_logprobs and any(isinstance(one, Credit) and one.correct for one in flat):
            raise ConfigError(
                "this method has credits with `correct` and does not declare it",
                got=type(method).__name__,
                why="whether the sampler reports what they need is checked before a run begins",
                do="write `needs_sampler_logprobs: ClassVar[bool] = True` into its class",
            )
        credited += zip(group.rollouts, credits, strict=True)
    return [_credited(rollout, credit, renderer) for rollout, credit in credited]


def replay_sample(rollout: Rollout, weight: float) -> TrainingSample:
    """An answer to a replayed prompt, which learns from the divergence from the reference alone."""
    done = rollout.completion
    return TrainingSample(
        done.uid, rollout.prompt_ids, (), done.token_ids, done.logprobs, reference=weight, context_kind="replay"
    )


def _credited(rollout: Rollout, entry: CreditOrDrop, renderer: Renderer) -> CreditedRollout:
    """The samples of one rollout: one for each credit that fits. The policy gradient and the reference divergence need
    no teacher; a divergence from the teacher needs its prompt, and so does a student that reads the context."""
    if isinstance(entry, DropReason):
        return CreditedRollout(rollout, drop=entry)
    credits = entry if isinstance(entry, tuple) else (entry,)
    done = rollout.completion
    if not done.token_ids and not any(credit.text for credit in credits):
        return CreditedRollout(rollout, drop=DropReason.EMPTY_COMPLETION)
    samples: list[TrainingSample] = []
    read: list[Context | None] = []  # by the teacher, for each sample
    any_cut, lost = False, 0
    for number, credit in enumerate(credits):
        answer = renderer.answer(credit.text) if credit.text else done.token_ids
        student = renderer.prompt(credit.question) if credit.question else rollout.prompt_ids
        context = () if credit.context is None else (credit.context,)
        written = [renderer.teacher_prompt(rollout.task.messages, c, len(answer)) for c in (*context, *credit.against)]
        fitting = [found for found in written if not isinstance(found, DropReason)]
        fits = len(fitting) == len(written)  # a mixture, or a contrast, of fewer contexts would be another one
        lost += not fits
        alone = bool(credit.advantage or credit.reference) and not credit.student_reads_context
        if len(student) + len(answer) > renderer.context_length or not (fits or alone):
            lost += fits
            continue
        prompts = tuple(ids for ids, *_ in fitting) if fits else ()
        teacher, against = prompts[: len(context)], prompts[len(context) :]
        any_cut |= fits and any(cut for *_, cut in fitting)
        if credit.student_reads_context:
            student, teacher = teacher[0], (student,)
        sampled_here = not credit.text and student == rollout.prompt_ids
        read.append(credit.context if fits else None)
        samples.append(
            TrainingSample(
                uid=f"{done.uid}+{number}" if number else done.uid,
                student_prompt_ids=student,
                teacher_prompts=teacher,
                completion_ids=answer,
                sampled_logprobs=done.logprobs if sampled_here or credit.correct else (),
                against_prompts=against,
                live=credit.student_reads_context,
                advantage=credit.advantage,
                distil=credit.distil if fits else 0.0,
                reference=credit.reference,
                spec_index=credit.spec_index,
                spans=credit.spans,
                context_kind=read[-1].kind if read[-1] else "none",
            )
        )
    if not samples and credits:
        return CreditedRollout(rollout, context=credits[0].context, drop=DropReason.CONTEXT_TOO_LONG)
    return CreditedRollout(rollout, tuple(samples), read[0] if read else None, None, any_cut, lost)
