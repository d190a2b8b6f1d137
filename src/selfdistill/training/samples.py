"""From tasks to training samples: completions sampled and scored, the method's credits, and the prompts that student
and teacher read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice
from types import MappingProxyType
from typing import TypeAlias

from selfdistill.envs.base import Environment, Fault, score_all
from selfdistill.errors import ConfigError
from selfdistill.methods.base import Credit, CreditOrDrop, Method, credits_of
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts, FixedCompletion, Request, Stage
from selfdistill.types import Completion, Context, DropReason, Rollout, RolloutGroup, Task, TokenIds, TrainingSample

Sampler: TypeAlias = Callable[..., list[Completion]]
SOLVED = 0.5  # reward from which an answer counts as solved


def solved(rollout: Rollout) -> bool:
    """Whether an answer counts as solved; one that the environment could not score does not."""
    return rollout.outcome is not None and rollout.outcome.reward >= SOLVED


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
    sampler: Sampler | None = None,
) -> list[RolloutGroup]:
    """One group per task: what the stages request, in their order, sampled together and scored; by default `rollouts`
    answers.

    `label` makes uids unique, one for all or one per task; `prompts`, one per task, replace those of an answer's
    messages. Tasks of `bad_rows`, by id with the reason, are dropped without sampling. `sampler` takes the place of
    `models.sampler.sample`, with the same parameters.
    """
    rendered = cache(renderer.prompt)  # rollouts of a group have the same prompt
    labels = [f"{label}-{place}" for place in range(len(tasks))] if isinstance(label, str) else label
    groups = [RolloutGroup(task, ()) for task in tasks]

    def planned(place: int, number: int, stage: str, want: Request) -> Rollout:
        """A requested rollout before anything is sampled. A fixed completion is complete; a prompt that does not fit,
        or a task that cannot be scored, is dropped."""
        task, done = tasks[place], Completion(f"{labels[place]}-{number}", "")
        if isinstance(want, FixedCompletion):
            done = replace(done, text=want.text, token_ids=renderer.answer(want.text), policy_version=version)
            return Rollout(task, rendered(task.messages), done, want.outcome, stage=stage)
        messages = renderer.messages(want.messages, want.context)
        prompt = prompts[place] if prompts is not None else rendered(messages)
        drop = DropReason.CONTEXT_TOO_LONG if len(prompt) >= renderer.context_length else None
        bad_row = bad_rows.get(task.id, "")
        messages = messages if messages != task.messages else ()
        return Rollout(
            task, prompt, done, None, DropReason.BAD_ROW if bad_row else drop, stage, messages, want.of, bad_row
        )

    for stage in stages:
        with their_code(stage, "its `requests`"):
            wanted = [list(stage.requests(group, rollouts)) for group in groups]
        added = [
            planned(place, len(group.rollouts) + number, stage.name, want)
            for place, group in enumerate(groups)
            for number, want in enumerate(wanted[place])
        ]
        open_ = [n for n, rollout in enumerate(added) if rollout.outcome is None and rollout.drop is None]
        prompt_ids, uids = [added[n].prompt_ids for n in open_], [added[n].completion.uid for n in open_]
        completions = (sampler or sample)(policy, prompt_ids, options, seed=seed, uids=uids, version=version)
        for n, completion in zip(open_, completions, strict=True):
            opened = renderer.opened(added[n].prompt_ids)  # thinking never closed would pass for an answer
            added[n] = replace(added[n], completion=replace(completion, text=opened + completion.text))
        scored = [getattr(want, "scored", True) for want in chain(*wanted)]
        to_score = [n for n in open_ if scored[n]]
        results = score_all(env, [(added[n].task, added[n].completion) for n in to_score], seed=seed)
        for n, result in zip(to_score, results, strict=True):
            if isinstance(result, Fault):
                added[n] = replace(added[n], drop=result.drop, fault=result.text)
            else:
                added[n] = replace(added[n], outcome=result)
        rest = iter(added)
        groups = [
            replace(group, rollouts=(*group.rollouts, *islice(rest, len(own))))
            for group, own in zip(groups, wanted, strict=True)
        ]
    return groups


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
    credits, done = credits_of(entry), rollout.completion
    if not done.token_ids and not any(credit.text for credit in credits):
        return CreditedRollout(rollout, drop=DropReason.EMPTY_COMPLETION)
    samples: list[TrainingSample] = []
    read: list[Context | None] = []  # by the teacher, for each sample
    any_cut, lost = False, 0
    for number, credit in enumerate(credits):
        answer = renderer.answer(credit.text) if credit.text else done.token_ids
        student = renderer.prompt(credit.question) if credit.question else rollout.prompt_ids
        contexts = (credit.context, *credit.against) if credit.context else credit.against
        written = [renderer.teacher_prompt(rollout.task.messages, c, len(answer)) for c in contexts]
        fitting = [found for found in written if not isinstance(found, DropReason)]
        fits = len(fitting) == len(written)  # a mixture, or a contrast, of fewer contexts would be another one
        lost += not fits
        alone = bool(credit.advantage or credit.reference) and not credit.student_reads_context
        if len(student) + len(answer) > renderer.context_length or not (fits or alone):
            lost += fits
            continue
        prompts = tuple(ids for ids, *_ in fitting) if fits else ()
        own = len(contexts) - len(credit.against)
        teacher, against = prompts[:own], prompts[own:]
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
