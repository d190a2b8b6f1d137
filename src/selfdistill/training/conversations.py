"""Conversations: turns are sampled together, the environment answers, and what it answers is read before the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from selfdistill.envs.base import ConversationEnvironment, Fault, Scored, with_result
from selfdistill.envs.turns import finish, start_all, step_all
from selfdistill.models.kept_states import KeptStates
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.render import Renderer
from selfdistill.types import (
    Completion,
    DropReason,
    Message,
    Observation,
    Rollout,
    StopReason,
    TokenIds,
    Turn,
    WholePrompt,
)

Sampler: TypeAlias = Callable[..., list[Completion]]
"""Completions of prompts, named by `uids`; as `models.sampler.sample` without its first parameter and its options."""


@dataclass(slots=True)
class _Conversation:
    """A rollout whose turns are being sampled. `ids` are those of the next prompt, of which `read` were added last.
    `renderer` writes the tools that the model may call in its next turn."""

    rollout: Rollout
    messages: tuple[Message, ...]
    state: Any
    renderer: Renderer
    ids: TokenIds
    read: TokenIds
    fresh: bool = True
    whole: WholePrompt | None = None
    turns: list[Turn] = field(default_factory=list)


def converse(
    draw: Sampler,
    env: ConversationEnvironment,
    renderer: Renderer,
    options: SamplingOptions,
    planned: Sequence[Rollout],
    *,
    seed: int,
) -> list[Rollout]:
    """The planned rollouts with their turns and outcomes, in order. An error of the environment drops its conversation
    alone.

    A conversation ends with an outcome; where it has `options.turns` turns or `options.conversation_tokens` tokens; and
    where the observation leaves no room in the context, as one that the length cut off (`StopReason.LENGTH`).
    """
    kept, ended = KeptStates(options.batch_tokens), dict[str, Rollout]()
    open_: list[_Conversation] = []
    for rollout, state in zip(planned, start_all(env, [rollout.task for rollout in planned]), strict=True):
        if isinstance(state, Fault):
            ended[rollout.completion.uid] = with_result(rollout, state)
            continue
        talk = _opened(rollout, state, renderer)
        if len(talk.ids) < renderer.context_length:
            open_.append(talk)
        else:
            finish(env, state, Observation(talk.messages))
            ended[rollout.completion.uid] = replace(talk.rollout, drop=DropReason.CONTEXT_TOO_LONG)
    for number in range(options.turns):
        names = [talk.rollout.completion.uid for talk in open_]
        uids = [f"{name}.{number}" if number else name for name in names]
        found = draw([talk.ids for talk in open_], uids=uids, kept=kept, threads=names)
        pairs = [
            (talk.rollout.task, replace(completion, text=renderer.opened(talk.read) + completion.text))
            for talk, completion in zip(open_, found, strict=True)
        ]
        states = {uid: talk.state for uid, talk in zip(uids, open_, strict=True)}
        going: list[_Conversation] = []
        for talk, (_, completion), result in zip(open_, pairs, step_all(env, pairs, states, seed=seed), strict=True):
            observed = result.messages if isinstance(result, Observation) else ()
            talk.turns.append(Turn(talk.read, completion, observed, talk.fresh, talk.whole))
            if isinstance(result, Observation):
                if number + 1 < options.turns and _reads(talk, result, options):
                    going.append(talk)
                    continue
                result = finish(env, talk.state, result)
            kept.take(talk.rollout.completion.uid, ())  # makes room for those that go on
            ended[talk.rollout.completion.uid] = _ended(talk, result)
        open_ = going
        if not open_:
            break
    return [ended[rollout.completion.uid] for rollout in planned]


def _opened(rollout: Rollout, state: Any, renderer: Renderer) -> _Conversation:
    """A conversation before its first turn, whose prompt is the state's `opening` where it has one. A prompt that was
    given in place of the task's stays."""
    messages, ids = rollout.messages or rollout.task.messages, rollout.prompt_ids
    opening = getattr(state, "opening", None)
    same = WholePrompt(messages, tuple(renderer.tools))
    if not isinstance(opening, WholePrompt) or opening == same:
        return _Conversation(rollout, messages, state, renderer, ids, ids)
    own = renderer.using(opening.tools)
    if ids == renderer.prompt(messages):
        ids = own.prompt(opening.messages)
    return _Conversation(replace(rollout, prompt_ids=ids), opening.messages, state, own, ids, ids, whole=opening)


def _reads(talk: _Conversation, observation: Observation, options: SamplingOptions) -> bool:
    """Adds the observation to the next prompt; False where there is no room for it or for another turn."""
    last, added = talk.turns[-1].completion, None
    talk.whole = observation.whole
    if talk.whole is not None:
        talk.messages, talk.renderer = talk.whole.messages, talk.renderer.using(talk.whole.tools)
    else:
        added = talk.renderer.extension(talk.messages, last, observation.messages)
        talk.messages = (*talk.messages, *talk.turns[-1].messages)
    talk.fresh = added is None
    if added is None:
        talk.ids = talk.read = talk.renderer.prompt(talk.messages)
    else:
        talk.read = added
        talk.ids = (*talk.ids, *last.token_ids, *added)
    if len(talk.ids) >= talk.renderer.context_length:
        talk.turns[-1] = replace(talk.turns[-1], completion=replace(last, stop=StopReason.LENGTH))
        return False
    return len(talk.ids) - len(talk.rollout.prompt_ids) < options.conversation_tokens


def _ended(talk: _Conversation, result: Scored) -> Rollout:
    sampled, rollout = [turn.completion for turn in talk.turns], talk.rollout
    whole = replace(
        sampled[-1],
        uid=rollout.completion.uid,
        token_ids=tuple(token for completion in sampled for token in completion.token_ids),
        logprobs=tuple(logprob for completion in sampled for logprob in completion.logprobs),
    )
    turns = tuple(talk.turns) if len(sampled) > 1 or talk.turns[0].whole else ()
    return with_result(replace(rollout, completion=whole, turns=turns), result)
