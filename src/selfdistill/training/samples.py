"""From tasks to training samples: completions sampled and scored, the method's credits, and the prompts that student
and teacher read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate, chain, islice, pairwise
from types import MappingProxyType
from typing import Any

from selfdistill.envs.base import SOLVED, ConversationEnvironment, Environment, score_all, with_result
from selfdistill.errors import ConfigError
from selfdistill.methods.base import Credit, CreditOrDrop, Method, credits_of
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.plugins import their_code
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts, FixedCompletion, Request, Stage
from selfdistill.training.conversations import Sampler, converse
from selfdistill.training.session import Session
from selfdistill.types import Completion, Context, DropReason, Rollout, RolloutGroup, Task, TokenIds, TrainingSample


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
    draw = partial(sampler or sample, policy, options=options, seed=seed, version=version)

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
        todo = [added[n] for n in open_]
        if isinstance(env, ConversationEnvironment):
            made = converse(draw, env, renderer, options, todo, seed=seed)
        else:
            found = draw([rollout.prompt_ids for rollout in todo], uids=[rollout.completion.uid for rollout in todo])
            made = [
                # Thinking that was opened by the prompt and never closed would pass for an answer.
                replace(rollout, completion=replace(done, text=renderer.opened(rollout.prompt_ids) + done.text))
                for rollout, done in zip(todo, found, strict=True)
            ]
            scored = [getattr(want, "scored", True) for want in chain(*wanted)]
            to_score = [place for place, n in enumerate(open_) if scored[n]]
            results = score_all(env, [(made[place].task, made[place].completion) for place in to_score], seed=seed)
            for place, result in zip(to_score, results, strict=True):
                made[place] = with_result(made[place], result)
        for n, rollout in zip(open_, made, strict=True):
            added[n] = rollout
        rest = iter(added)
        groups = [
            replace(group, rollouts=(*group.rollouts, *islice(rest, len(own))))
            for group, own in zip(groups, wanted, strict=True)
        ]
    return groups


def session_groups(
    session: Session,
    tasks: Sequence[Task],
    *,
    label: str | Sequence[str],
    prompts: Sequence[TokenIds] | None = None,
    evaluates: bool = False,
    **options: Any,
) -> list[RolloutGroup]:
    """`roll_out` with what a session holds: as in training, or as in evaluation. `options` are its other arguments.
    Each rank samples and scores its share of the groups; by servers the first one samples and scores all."""
    config, env = session.config, session.evaluation_env if evaluates else session.env
    sampling = replace(config.sampling, temperature=config.evaluation.temperature) if evaluates else config.sampling
    options = {"sampler": session.sampler.generate if session.sampler else None} | options
    policy, labels = session.policy, [f"{label}-{n}" for n in range(len(tasks))] if isinstance(label, str) else label
    return policy.each(
        range(len(tasks)),
        lambda places: roll_out(
            policy, env, session.renderer, [tasks[n] for n in places], sampling,
            seed=config.seed,
            label=[labels[n] for n in places],
            prompts=prompts and [prompts[n] for n in places],
            **options,
        ),
        first=session.sampler is not None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CreditedRollout:
    """A rollout with its training samples, or the reason why it has none.

    `contexts` are what the teacher reads for each sample, `context` the first of them. `cut`: a field of a teacher's
    prompt was shortened. `lost` counts credits that go without a teacher, or are left out beside others, since its
    prompt does not fit.
    """

    rollout: Rollout
    samples: tuple[TrainingSample, ...] = ()
    context: Context | None = None
    drop: DropReason | None = None
    cut: bool = False
    lost: int = 0
    contexts: tuple[Context | None, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Part:
    """Sampled tokens behind one prompt: a whole answer, a segment of a conversation, or a turn of it. `write` gives the
    teacher's prompt with a context, `observed` is that of a training sample."""

    prompt: TokenIds
    ids: TokenIds
    logprobs: tuple[float, ...]
    write: Callable[[Context], TokenIds]
    observed: tuple[tuple[int, TokenIds], ...] = ()


def parts_of(rollout: Rollout, turn: int | None, renderer: Renderer) -> list[Part]:
    """One turn of a rollout, or all that was sampled: an answer, or the segments of a conversation, between which the
    template wrote the history anew.

    The teacher reads a context of the whole in the question, and that of a turn in the last message before it. All
    other ids are those that the student read.
    """
    if turn is not None and rollout.turns:
        return [_turn(rollout, turn, renderer)]
    turns, parts = rollout.all_turns, list[Part]()
    for start, stop in pairwise([*(number for number, each in enumerate(turns) if each.fresh), len(turns)]):
        whole, before = rollout.history(start)
        writer = renderer.using(whole.tools) if whole else renderer
        prompt, *observed = (each.read for each in turns[start:stop])
        sampled = [each.completion for each in turns[start:stop]]
        ids, logprobs = (
            tuple(chain(*rows)) for rows in zip(*((c.token_ids, c.logprobs) for c in sampled), strict=True)
        )
        ends = accumulate(len(completion.token_ids) for completion in sampled)
        write = partial(writer.written, whole.messages if whole else rollout.task.messages, before)
        parts.append(Part(prompt, ids, logprobs, write, tuple(zip(ends, observed, strict=False))))
    return parts


def _turn(rollout: Rollout, number: int, renderer: Renderer) -> Part:
    """One turn of a conversation, whose prompt is all that was read before it."""
    turns, own, before = rollout.turns, rollout.turns[number], TokenIds()
    whole, since = rollout.history(number)
    renderer = renderer.using(whole.tools) if whole else renderer
    messages = (*(whole.messages if whole else rollout.messages or rollout.task.messages), *since)
    write: Callable[[Context], TokenIds] = partial(renderer.written, messages, ())
    if not own.fresh:
        start = max(n for n in range(number) if turns[n].fresh)
        before = sum((each.read + each.completion.token_ids for each in turns[start:number]), TokenIds())
        last = turns[number - 1]
        earlier = messages[: -len(last.messages)]

        def write(context: Context) -> TokenIds:
            added = renderer.extension(earlier, last.completion, renderer.messages(last.observation, context))
            assert added is not None, "the student's prompt extends the one before"
            return before + added

    return Part(before + own.read, own.completion.token_ids, own.completion.logprobs, write)


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
    learned = {credit.turn for credit in credits}  # of a conversation: None for all turns
    lengths = [len(turn.completion.token_ids) for turn in rollout.turns]
    tokens = sum(length for number, length in enumerate(lengths) if learned & {number, None})
    parts = [
        (number, credit, place, part)
        for number, credit in enumerate(credits)
        for place, part in enumerate(parts_of(rollout, credit.turn, renderer))
    ]
    for number, credit, place, part in parts:
        suffix = f"+{number}" * bool(number) + f"/{place}" * bool(place)
        answer = renderer.answer(credit.text) if credit.text else part.ids
        student = renderer.prompt(credit.question) if credit.question else part.prompt
        length = len(answer) + sum(len(ids) for _, ids in part.observed)
        contexts = (credit.context, *credit.against) if credit.context else credit.against
        written = [renderer.fitted(part.write, context, length) for context in contexts]
        fitting = [found for found in written if not isinstance(found, DropReason)]
        fits = len(fitting) == len(written)  # a mixture, or a contrast, of fewer contexts would be another one
        lost += not fits
        alone = bool(credit.advantage or credit.reference) and not credit.student_reads_context
        if len(student) + length > renderer.context_length or not (fits or alone):
            lost += fits
            continue
        prompts = tuple(ids for ids, *_ in fitting) if fits else ()
        own = len(contexts) - len(credit.against)
        teacher, against = prompts[:own], prompts[own:]
        any_cut |= fits and any(cut for *_, cut in fitting)
        if credit.student_reads_context:
            student, teacher = teacher[0], (student,)
        sampled_here = not credit.text and student == part.prompt
        read.append(credit.context if fits else None)
        samples.append(
            TrainingSample(
                uid=done.uid + (suffix if credit.turn is None else f"@{credit.turn}"),
                student_prompt_ids=student,
                teacher_prompts=teacher,
                completion_ids=answer,
                sampled_logprobs=part.logprobs if sampled_here or credit.correct else (),
                against_prompts=against,
                live=credit.student_reads_context,
                advantage=credit.advantage,
                distil=credit.distil if fits else 0.0,
                reference=credit.reference,
                spec_index=credit.spec_index,
                spans=credit.spans,
                context_kind=read[-1].kind if read[-1] else "none",
                observed=part.observed,
                answer_tokens=tokens,
            )
        )
    if not samples and credits:
        return CreditedRollout(rollout, context=credits[0].context, drop=DropReason.CONTEXT_TOO_LONG)
    return CreditedRollout(rollout, tuple(samples), read[0] if read else None, None, any_cut, lost, tuple(read))
