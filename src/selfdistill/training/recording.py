"""The records of a step, a rollout and a whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from math import nan
from typing import Any

from selfdistill.config import RunConfig
from selfdistill.envs.base import in_short
from selfdistill.errors import EnvError
from selfdistill.losses import LOSS_TERMS
from selfdistill.methods import Method
from selfdistill.prompts.context import FIELDS
from selfdistill.runs import Accuracies, EvalRecord, RolloutRecord, StepRecord, Summary
from selfdistill.runs.records import TurnRecord
from selfdistill.training.samples import CreditedRollout, solved
from selfdistill.training.session import Totals
from selfdistill.training.update import MEANS, PerToken, UpdateReport
from selfdistill.types import Context, DropReason, StopReason, TokenIds

WINDOW = 8  # tokens, at least, with which a token is decoded: some tokenizers drop the first space of a text
TORN = "\N{REPLACEMENT CHARACTER}"


def step_record(
    totals: Totals,
    credited: Sequence[CreditedRollout],
    reports: Sequence[UpdateReport],
    lr: float,
    seconds: Mapping[str, float],
    numbers: Mapping[str, float],
    tokens: PerToken,
) -> StepRecord:
    """The record of a step, whose completions are added to `totals`."""
    rollouts = [entry.rollout for entry in credited]
    sampled = [rollout.completion for rollout in rollouts if rollout.completion.logprobs]
    totals.completions_sampled += len(sampled)
    totals.tokens += sum(len(completion.token_ids) for completion in sampled)
    scored = [rollout for rollout in rollouts if rollout.of is None and rollout.outcome is not None]  # no follow-ups
    samples = [sample for entry in credited for sample in entry.samples]
    return StepRecord(
        step=totals.step + 1,
        completions_sampled=totals.completions_sampled,
        tokens=totals.tokens,
        wall_s=totals.wall_s,
        reward=_mean([rollout.outcome.reward for rollout in scored if rollout.outcome]),
        accuracy=_mean([solved(rollout) for rollout in scored]),
        loss=_mean([report.loss for report in reports]),
        grad_norm=_mean([report.grad_norm for report in reports]),
        lr=lr,
        log_ratio=_mean([abs(value) for row in tokens.get("log_ratio", {}).values() for value in row]),
        completion_tokens=_mean([len(rollout.completion.token_ids) for rollout in rollouts]),
        truncated=_mean([rollout.completion.stop is StopReason.LENGTH for rollout in rollouts]),
        samples=len(samples),
        dropped=dict(Counter(str(entry.drop) for entry in credited if entry.drop is not None)),
        contexts=dict(Counter(sample.context_kind for sample in samples)),
        seconds=dict(seconds),
        extra={
            **{name: _mean([getattr(report, name) for report in reports]) for name in MEANS},
            "updates": len(reports),
            "skipped": sum(report.skipped for report in reports),
            "contexts_cut": sum(entry.cut for entry in credited),
            "reference_only": sum(not (sample.advantage or sample.distil) for sample in samples),
            **{f"loss_{name}": _mean([report.terms[name] for report in reports]) for name in LOSS_TERMS},
            **numbers,
        },
    )


def rollout_record(step: int, entry: CreditedRollout, tokens: PerToken, tokenizer: Any) -> RolloutRecord:
    """One rollout, with the prompts of its first training sample; of several samples, the largest weights."""
    rollout, context = entry.rollout, entry.context
    first = entry.samples[0] if entry.samples else None
    done, outcome = rollout.completion, rollout.outcome
    found = {n: _of_turns(entry, by, n) if rollout.turns else by.get(done.uid, ()) for n, by in tokens.items()}
    ratios = found.get("log_ratio", ())
    whole = rollout.all_turns[0].whole
    messages = whole.messages if whole else rollout.messages or rollout.task.messages
    return RolloutRecord(
        step=step,
        uid=done.uid,
        task=rollout.task.id,
        prompt="\n\n".join(message.content for message in messages),
        stage=rollout.stage,
        completion=done.text,
        stop=str(done.stop),
        reward=outcome.reward if outcome else None,
        feedback=outcome.feedback if outcome else "",
        context_kind=context.kind if context else "none",
        context=_sections(context),
        drop=str(entry.drop) if entry.drop else None,
        fault=rollout.fault,
        advantage=max((sample.advantage for sample in entry.samples), key=abs, default=0.0),
        distil=max((sample.distil for sample in entry.samples), key=abs, default=0.0),
        policy_version=done.policy_version,
        token_ids=done.token_ids,
        logprobs=done.logprobs,
        log_ratio=ratios,
        log_ratio_at="step_start" if ratios else "",
        entropy=tuple(round(value, 4) for value in found.get("entropy", ())),
        prompt_ids=first.student_prompt_ids if first else rollout.prompt_ids,
        teacher_prompt_ids=first.teacher_prompts[0] if first and first.teacher_prompts else (),
        token_texts=token_texts(tokenizer, done.token_ids),
        turns=_turn_records(entry) if rollout.turns else (),
        details=outcome.details if outcome else {},
        data_set=rollout.task.data_set,
    )


def _of_turns(entry: CreditedRollout, by_uid: Mapping[str, tuple[float, ...]], name: str) -> tuple[float, ...]:
    """A number of every sampled token of a conversation; empty where it was not measured. In turns without one the
    log-ratio is 0, and the entropy not known."""
    uid, turns = entry.rollout.completion.uid, entry.rollout.turns
    by_turn = any(f"{uid}@{number}" in by_uid for number in range(len(turns)))
    parts = {f"{uid}@{number}": len(turn.completion.token_ids) for number, turn in enumerate(turns)}
    if not by_turn:
        parts = {sample.uid: len(sample.completion_ids) for sample in entry.samples}
    blank = nan if name == "entropy" else 0.0
    found = [by_uid.get(part, (blank,) * length) for part, length in parts.items()]
    return tuple(chain(*found)) if parts.keys() & by_uid.keys() else ()


def _turn_records(entry: CreditedRollout) -> tuple[TurnRecord, ...]:
    """The turns of a conversation. What the teacher read stands with the turn that learned under it, or with the first
    one of its segment."""
    uid, turns = entry.rollout.completion.uid, entry.rollout.turns
    starts = [number for number, turn in enumerate(turns) if turn.fresh]
    places = {f"{uid}@{number}": number for number in range(len(turns))}
    places |= {uid + f"/{segment}" * bool(segment): number for segment, number in enumerate(starts)}
    samples = zip(entry.samples, entry.contexts, strict=True)
    found = {places[s.uid]: (s, context) for s, context in samples if s.uid in places and not s.live}
    records: list[TurnRecord] = []
    for number, turn in enumerate(turns):
        done, observation = turn.completion, tuple((message.role, message.content) for message in turn.observation)
        sample, context = found.get(number, (None, None))
        records.append(
            TurnRecord(
                turn.read,
                done.text,
                len(done.token_ids),
                str(done.stop),
                turn.fresh,
                observation,
                _sections(context if sample and "@" in sample.uid else None),
                sample.teacher_prompts[0][len(sample.student_prompt_ids) - len(turn.read) :]
                if sample and sample.teacher_prompts
                else (),
            )
        )
    return tuple(records)


def _sections(context: Context | None) -> dict[str, str]:
    return {name: getattr(context, name) for name in FIELDS if context and getattr(context, name)}


def token_texts(tokenizer: Any, ids: TokenIds) -> tuple[str, ...]:
    """The text of each token as part of the whole: "" for the first parts of a letter of several tokens. Together they
    are the text of the ids, but for bytes that are no letter."""
    decode, texts, before, start = partial(tokenizer.decode, clean_up_tokenization_spaces=False), list[str](), "", 0
    for place in range(len(ids)):
        if place - start > 2 * WINDOW:  # the window moves at times, not at every token: one decode a token, not two
            start = place - WINDOW
            before = decode(list(ids[start:place])).rstrip(TORN)
        after = decode(list(ids[start : place + 1])).rstrip(TORN)
        texts.append(after[len(before) :])
        before = after
    return tuple(texts)


def check_environment(rollouts: Sequence[RolloutRecord], *, least: int = 0) -> None:
    """Raises `EnvError` when the environment failed on more than half of a batch; one of fewer than `least` rollouts
    counts as `least`."""
    kinds = (DropReason.ENV_RAISED, DropReason.ENV_TIMEOUT, DropReason.BAD_OUTCOME)
    failed = [record for record in rollouts if record.drop in kinds]
    if 2 * len(failed) > max(len(rollouts), least):
        first = in_short(failed[0].fault) or failed[0].drop
        raise EnvError(
            "the environment failed on more than half of a batch",
            got=f"{len(failed)} of {len(rollouts)} rollouts, first: {first}",
            why="what is left would not be a fair sample",
            do="correct the reward function or environment; tracebacks are in rollouts.jsonl of the run, under `fault`",
        )


def why_nothing_was_learned(dropped: Mapping[str, int], method: Method) -> dict[str, str]:
    """Cause and remedy of a step without training samples, by its most frequent drop reason: `why` and `do` of an
    error. `dropped` counts rollouts by reason; it is empty where the method found nothing to train on in the data."""
    reason = max(dropped, key=dropped.__getitem__, default="")
    reward_helps = "take easier tasks, or raise rollouts_per_task"
    known: Mapping[str, tuple[str, str]] = {
        DropReason.ZERO_ADVANTAGE: ("all rewards of a group are equal: no advantages", reward_helps),
        DropReason.ONLY_SUCCESS: ("a group has one success, and no other rollout's solution to show it", reward_helps),
        DropReason.CONTEXT_TOO_LONG: (
            "the prompt of the teacher or the student does not fit",
            "raise context.max_teacher_tokens, shorten the prompts, or take a model with a longer context",
        ),
        DropReason.NOT_APPLICABLE: ("no reward function applies to these answers", "return a number instead of None"),
        DropReason.BAD_ROW: ("no answer to these rows can be scored", "see `selfdistill check --data FILE`"),
        DropReason.EMPTY_COMPLETION: (
            "the model ended its turn without a token", "check the model's chat template, or take another model"
        ),
    }  # fmt: skip
    needs_success = "" if method.needs_reward == "no" else f"; where it reads a success: {reward_helps}"
    missing = (
        f"the method reads {method.reads}, and none of that was there",
        "give it in the rows of the data (demonstration, document, logged_answer, user_reply) or in what the "
        f"environment returns (feedback, reply){needs_success}",
    )
    why, do = known.get(reason, missing)
    return {"why": why, "do": do}


def summarise(config: RunConfig, totals: Totals, evaluations: Sequence[EvalRecord]) -> Summary:
    """The summary of a run; before and after are its first and its last evaluations."""

    def accuracies(step: int) -> Accuracies:
        return Accuracies(**{f"{found.split}_accuracy": found.accuracy for found in evaluations if found.step == step})

    return Summary(
        method=config.method.name,
        model=config.model,
        env=config.env.name,
        seed=config.seed,
        steps=totals.step,
        completions_sampled=totals.completions_sampled,
        tokens=totals.tokens,
        wall_s=totals.wall_s,
        before=accuracies(0),
        after=accuracies(totals.step),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
