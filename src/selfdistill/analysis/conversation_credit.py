"""The credit of a conversation: the sampled tokens of all turns, under a context of the whole or of each turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias, cast

from selfdistill.analysis.token_credit import CreditQuery, Passage, credit_of_passages
from selfdistill.envs.base import is_message
from selfdistill.errors import DataError
from selfdistill.files import BadJson, decode_json, read_text
from selfdistill.models.policy import Policy
from selfdistill.prompts.render import Renderer
from selfdistill.runs import RolloutRecord
from selfdistill.runs.credit import AnswerCredit, TurnBegin
from selfdistill.runs.events import Callback, Note
from selfdistill.training.samples import Part, parts_of
from selfdistill.types import (
    Completion,
    Context,
    DropReason,
    Message,
    Role,
    Rollout,
    StopReason,
    Task,
    TokenIds,
    TrainingSample,
    Turn,
)

ByTurn: TypeAlias = Mapping[int, Context]
"""Contexts of single turns, by their place in the conversation."""
WholeTurns: TypeAlias = Sequence[tuple[str, tuple[Message, ...]]]
"""The texts of turns, each with the messages that followed it."""


def read_messages(file: Path) -> tuple[Message, ...]:
    """The messages of a JSON file: a list of {"role", "content"}, alone or under "messages". Raises `DataError`."""
    text = read_text(file, what="the conversation", do="check the name")
    try:
        value: Any = decode_json(text)
    except BadJson as error:
        raise DataError(f"{file} holds no conversation", got=error, do=_FORM) from error
    turns = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{file} holds no conversation", got=repr(value)[:200], do=_FORM)
    messages = [
        Message(turn["role"], turn["content"])
        if isinstance(turn, dict) and {"role", "content"} <= turn.keys()
        else turn
        for turn in turns
    ]
    wrong = next((place for place, message in enumerate(messages) if not is_message(message)), None)
    if wrong is not None:
        raise DataError(f"{file}: messages[{wrong}] is no message", got=repr(turns[wrong])[:200], do=_FORM)
    return tuple(messages)


_FORM = 'write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]'


def turns_of(messages: Sequence[Message]) -> tuple[tuple[Message, ...], WholeTurns]:
    """The question of a conversation, and its turns. Raises `DataError`."""
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if not places or places[0] == 0:
        what = (
            "the conversation begins with the assistant" if places else "the conversation has no turn of the assistant"
        )
        raise DataError(what, why="credit is that of an answer to a question", do=_FORM)
    ends = [*places[1:], len(messages)]
    turns = [
        (messages[place].content, tuple(messages[place + 1 : end])) for place, end in zip(places, ends, strict=True)
    ]
    if not all(observed for _, observed in turns[:-1]):
        raise DataError("two turns of the assistant follow one another", do="join them, or write what came between")
    return tuple(messages[: places[0]]), turns


def hindsight(turns: WholeTurns) -> ByTurn:
    """Of each turn the messages that followed: the user's as reply, a tool's as feedback."""
    found = dict[int, Context]()
    for place, (_, observed) in enumerate(turns):
        texts = {role: "\n\n".join(m.content for m in observed if m.role == role) for role in ("user", "tool")}
        if texts["user"].strip():
            found[place] = Context("reply", reply=texts["user"])
        elif texts["tool"].strip():
            found[place] = Context("observation", feedback=texts["tool"])
    return found


def as_rollout(renderer: Renderer, task: Task, turns: WholeTurns) -> Rollout:
    """The conversation in the tokens of a model: the ids of given words, and the prompts that its template writes."""
    messages, read, fresh, made = task.messages, renderer.prompt(task.messages), True, list[Turn]()
    for text, observed in turns:
        done = Completion("", text, renderer.answer(text))
        made.append(Turn(read, done, observed, fresh))
        if len(made) < len(turns):
            added = renderer.extension(messages, done, observed)
            messages = (*messages, Message("assistant", text), *observed)
            fresh = added is None
            read = renderer.prompt(messages) if added is None else added
    return rollout_of(task, made)


def rollout_of(task: Task, turns: Sequence[Turn]) -> Rollout:
    """The rollout of these turns."""
    ids = tuple(chain(*(turn.completion.token_ids for turn in turns)))
    return Rollout(task, turns[0].read, replace(turns[-1].completion, token_ids=ids), turns=tuple(turns))


def turn_contexts(record: RolloutRecord) -> ByTurn:
    """The recorded contexts of single turns."""
    contexts = ((place, turn.context) for place, turn in enumerate(record.turns))
    return {place: Context(record.context_kind, **texts) for place, texts in contexts if texts}


def recorded_turns(
    renderer: Renderer, policy: Policy, record: RolloutRecord, task: Task, callback: Callback
) -> tuple[Rollout, bool]:
    """The recorded conversation, and whether it is in the tokens that were sampled: in those of this model where it
    decodes them to another text."""
    ends = list(accumulate((turn.tokens for turn in record.turns), initial=0))
    turns = [
        Turn(
            turn.read,
            Completion(record.uid, turn.completion, record.token_ids[start:end], stop=StopReason(turn.stop)),
            tuple(Message(cast(Role, role), text) for role, text in turn.observation),
            turn.fresh,
        )
        for turn, (start, end) in zip(record.turns, pairwise(ends), strict=True)
    ]
    if all(
        decodes(policy, turn.completion.token_ids, turn.completion.text, renderer.opened(turn.read)) for turn in turns
    ):
        return rollout_of(task, turns), True
    callback(Note(f"{policy.name} has other tokens than the model that sampled: the text is tokenised again"))
    return as_rollout(renderer, task, [(turn.completion.text, turn.observation) for turn in turns]), False


def decodes(policy: Policy, ids: TokenIds, text: str, opened: str = "") -> bool:
    """Whether the ids are this text in the tokens of a model, behind the thinking that the prompt `opened`."""
    if max(ids, default=0) >= len(policy.tokenizer):
        return False
    found = policy.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.removeprefix(opened).strip() == str(found).strip()


def conversation_credit(
    policy: Policy,
    renderer: Renderer,
    rollout: Rollout,
    context: Context | ByTurn,
    controls: Callable[[Context], Sequence[Context]],
    query: CreditQuery,
    *,
    teacher_read: Mapping[int, TokenIds] = {},
    top: int = 4,
) -> AnswerCredit:
    """The credit of all sampled tokens. `context` is that of the whole, or of single turns, of which the others have a
    log-ratio of 0; `controls` gives the control contexts of one, the same number each. `teacher_read` are the ids that
    the teacher read in a turn, where they were recorded. `query` has the rest.

    Raises `DataError` for a context that does not fit however much of it is cut, `ModelError`.
    """
    turns = rollout.turns
    whole = context if isinstance(context, Context) else None
    starts = [n for n, turn in enumerate(turns) if turn.fresh or whole is None]
    parts = parts_of(rollout, None, renderer) if whole else [parts_of(rollout, n, renderer)[0] for n in starts]
    passages, tried, cut = list[Passage](), list[list[TokenIds | None]](), False
    for number, part in zip(starts, parts, strict=True):
        if not part.ids:
            continue
        own = context if isinstance(context, Context) else context.get(number)
        ids, places = TrainingSample("", part.prompt, (), part.ids, (), observed=part.observed).continuation()
        teacher, others = part.prompt, list[TokenIds | None]()
        if own is not None:
            teacher, shorter = _teacher(renderer, part, own, len(ids), turns[number].read, teacher_read.get(number, ()))
            cut |= shorter
            found = [renderer.fitted(part.write, other, len(ids)) for other in controls(own)]
            others = [None if isinstance(one, DropReason) else one[0] for one in found]
        passages.append(Passage(part.prompt, teacher, (), ids, places))
        tried.append(others)
    fitting = [all(row) for row in zip(*filter(None, tried), strict=True)]
    passages = [
        replace(passage, others=tuple(ids for ids, fits in zip(row, fitting, strict=False) if fits and ids))
        for passage, row in zip(passages, tried, strict=True)
    ]
    tokens, error_visibility = credit_of_passages(policy, query, passages, top)
    ends = accumulate((len(turn.completion.token_ids) for turn in turns), initial=0)
    before = (rollout.task.messages, *(turn.observation for turn in turns))
    begins = tuple(
        TurnBegin(place, read, None if isinstance(context, Context) else context.get(n), turn.fresh and n > 0)
        for n, (place, read, turn) in enumerate(zip(ends, before, turns, strict=False))
    )
    shown = whole or Context("hindsight")
    return AnswerCredit(policy.name, query.question, shown, tokens, cut, error_visibility, query.advantage, begins)


def _teacher(
    renderer: Renderer, part: Part, context: Context, length: int, read: TokenIds, recorded: TokenIds
) -> tuple[TokenIds, bool]:
    """The teacher's prompt before `length` ids, and whether the context was cut. Raises `DataError`."""
    if recorded:
        return part.prompt[: len(part.prompt) - len(read)] + recorded, False
    found = renderer.fitted(part.write, context, length)
    if isinstance(found, DropReason):
        got = f"{length} tokens, and a model that reads {renderer.context_length}"
        raise DataError("conversation and context do not fit the model", got=got, do="shorten it, or take --model")
    return found[0], found[2]
