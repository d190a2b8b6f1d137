"""Credit sources: the answer of a credit query comes from the user's texts, or from a rollout of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from selfdistill.analysis.control_contexts import contexts_of_others, control_contexts
from selfdistill.analysis.conversation_credit import (
    as_rollout,
    conversation_credit,
    decodes,
    hindsight,
    recorded_turns,
    turn_contexts,
    turns_of,
)
from selfdistill.analysis.token_credit import CreditQuery, credit
from selfdistill.config import RunConfig, read_saved
from selfdistill.data.tasks import training_tasks
from selfdistill.envs.base import SOLVED
from selfdistill.envs.verbs.lexicon import all_words, dictionary_entry
from selfdistill.envs.verbs.operations import OPERATIONS
from selfdistill.envs.verbs.programs import VerbProgram
from selfdistill.errors import DataError, ModelError, RunError, SelfDistillError, nearest
from selfdistill.models.checkpoint import check_whole, latest_checkpoint
from selfdistill.models.load import SMOLLM2, in_hub_cache, load_policy
from selfdistill.models.policy import Policy
from selfdistill.prompts.context import FIELDS
from selfdistill.prompts.render import Renderer
from selfdistill.runs import RolloutRecord, Run, read_run
from selfdistill.runs.credit import AnswerCredit
from selfdistill.runs.events import Callback, Note, Phase, no_callback
from selfdistill.runs.store import CHECKPOINTS, CONFIG, SEARCH
from selfdistill.test_time.config import is_file, run_config
from selfdistill.training.session import open_policy, open_renderer
from selfdistill.types import ANSWER, Context, Message, Task, TokenIds

NO_CONTEXT = "teacher and student would read the same prompt: all log-ratios would be 0"
WORD = re.compile(r"[^\W\d_]+")
QUOTED = re.compile(r"(?<!\w)'[^'\n]*'(?!\w)")
Controls: TypeAlias = Callable[[Context], Sequence[Context]]
ERRORS = "list index out of range, unsupported operand type(s)"  # words of Python's errors, spelt letter by letter


@dataclass(frozen=True, slots=True)
class Texts:
    """A question, an answer and a context in words; `correct` is a corrected answer, or empty."""

    question: str
    answer: str
    context: Context
    correct: str = ""


# The example of the method's poster: the feedback names the error without its place.
EXAMPLE = Texts(
    question="Write a python function that returns all numbers from 1 to n",
    answer="```python\ndef numbers(n):\n    return list(range(1, n + 1))\n```",
    context=Context("feedback", feedback="Don't include n."),
    correct="```python\ndef numbers(n):\n    return list(range(1, n))\n```",
)


def credit_of_texts(
    texts: Texts, callback: Callback, *, model: str | None = None, advantage: float | None = None, top: int = 4
) -> AnswerCredit:
    """The credit of an answer given as text, its end token included. Without `model`: see `_reader`.

    Raises `DataError` for empty texts, `ModelError` when no local model knows the words.
    """
    for name, text in (("question", texts.question), ("answer", texts.answer)):
        if not text.strip():
            raise DataError(f"the {name} is empty", do=f"give it with --{name} TEXT")
    _check_filled(texts.context)
    sections = [getattr(texts.context, name) for name in FIELDS]
    policy = _reader(model, [texts.question, texts.answer, texts.correct, *sections], callback)
    renderer = _renderer(policy)
    correct = renderer.answer(texts.correct) if texts.correct.strip() else ()
    question = (Message("user", texts.question),)
    query = CreditQuery(question, renderer.answer(texts.answer), texts.context, correct, advantage=advantage)
    return _read(policy, renderer, query, _made(policy), callback, top)


def credit_of_conversation(
    messages: Sequence[Message],
    callback: Callback,
    *,
    context: Context | None = None,
    model: str | None = None,
    advantage: float | None = None,
    top: int = 4,
) -> AnswerCredit:
    """The credit of a conversation given as messages; without a context each turn is read with the messages that
    followed it. Without `model`: see `_reader`.

    Raises `DataError` for a conversation without a turn of the assistant's, or one that nothing followed, `ModelError`
    when no local model knows the words.
    """
    question, turns = turns_of(messages)
    if context is not None:
        _check_filled(context)
    found = context or hindsight(turns)
    if not found:
        do = "give a context, such as --feedback TEXT, or the message that followed"
        raise DataError("no message follows a turn of the assistant's", why=NO_CONTEXT, do=do)
    texts = [message.content for message in messages]
    policy = _reader(model, [*texts, *(getattr(context, name) for name in FIELDS if context)], callback)
    renderer = _renderer(policy)
    rollout = as_rollout(renderer, Task("conversation", question), turns)
    query = CreditQuery(question, rollout.completion.token_ids, Context("none"), advantage=advantage)
    callback(Phase("reading the conversation under every context"))
    return conversation_credit(policy, renderer, rollout, found, _made(policy), query, top=top)


def _made(policy: Policy, known: Sequence[tuple[str, Context]] = (), task: str = "") -> Controls:
    """Control contexts: those of other tasks of a run, and made ones."""

    def controls(context: Context) -> list[Context]:
        made = control_contexts(context, plain_words=not policy.name.startswith("sapling"))
        return [*contexts_of_others(context, known, task), *made][: len(made)]

    return controls


def credit_of_rollout(
    path: Path,
    uid: str,
    callback: Callback,
    *,
    model: str | None = None,
    context: Context | None = None,
    correct: str = "",
    advantage: float | None = None,
    top: int = 4,
) -> AnswerCredit:
    """The credit of one rollout of a run, read by the run's newest checkpoint, or by `model`.

    Prompts are those of the record: the student's is the one under which the answer was learned, the teacher's holds
    the context too. For another model or context they are rendered anew. `context` replaces that of the teacher. The
    corrected answer is `correct`, else a solved answer of the run to the same question, else the task's demonstration.

    Raises `RunError` for an unknown run or rollout (with the nearest name), `DataError` for one without a context, and
    for an empty `context`.
    """
    if context is not None:
        _check_filled(context)
    run = _run(path)
    record = _record(run, uid)
    if record.turns and correct:
        got = f"{uid}, a conversation"
        raise DataError("a corrected answer is that of a single answer", got=got, do="leave it out")
    exact = context is None and model is None
    recorded = (record.prompt_ids, record.teacher_prompt_ids) if exact and record.teacher_prompt_ids else None
    turns = turn_contexts(record) if context is None else {}
    context = context or (Context("hindsight") if turns else _context(record))
    config = read_saved(path, _without_method)
    policy = open_policy(_with_weights(config, path, model, callback), callback, trained=False)
    renderer = replace(_renderer(policy), thinking=config.thinking, templates=config.context.templates)
    task, tools = _task(run, config, record, callback)
    renderer = replace(renderer, tools=tools)
    known = [(other.task, _sections(other)) for other in run.rollouts() if other.context]
    controls = _made(policy, known, record.task)
    advantage = record.advantage or None if advantage is None else advantage
    if record.turns:
        rollout, as_sampled = recorded_turns(renderer, policy, record, task, callback)
        query = CreditQuery(
            task.messages,
            rollout.completion.token_ids,
            context,
            recorded=record.log_ratio if as_sampled else (),
            advantage=advantage,
            temperature=config.sampling.temperature or 1.0,
        )
        read = dict(enumerate(turn.teacher_read for turn in record.turns)) if as_sampled and exact else {}
        callback(Phase("reading the conversation under every context"))
        chosen = turns or context
        return conversation_credit(policy, renderer, rollout, chosen, controls, query, teacher_read=read, top=top)
    answer = _answer(policy, renderer, record, callback)
    as_sampled = answer == record.token_ids
    correct = correct or _right_answer(run, record) or task.demonstration
    query = CreditQuery(
        task.messages,
        answer,
        context,
        renderer.answer(correct) if correct and correct.strip() != record.completion.strip() else (),
        recorded=record.log_ratio if as_sampled else (),
        advantage=advantage,
        temperature=config.sampling.temperature or 1.0,
        prompts=recorded if as_sampled else None,
    )
    return _read(policy, renderer, query, controls, callback, top)


def _without_method(settings: Mapping[str, Any]) -> RunConfig:
    """The settings of a run. The method is not read: its file, or the value of a program, need not be there."""
    return run_config({key: value for key, value in settings.items() if key != "method"})


def _check_filled(context: Context) -> None:
    """Raises `DataError` for an empty context."""
    if not any(getattr(context, name).strip() for name in FIELDS):
        do = "give --feedback TEXT, or another of " + ", ".join(f"--{name}" for name in FIELDS)
        raise DataError("there is no context", why=NO_CONTEXT, do=do)


def _read(
    policy: Policy, renderer: Renderer, query: CreditQuery, controls: Controls, callback: Callback, top: int
) -> AnswerCredit:
    if query.correct == query.answer:
        query = replace(query, correct=())
    callback(Phase("reading the answer under every context"))
    found = credit(policy, renderer, query, controls(query.context), top=top)
    if found.cut:
        callback(Note(f"the context was cut: {policy.name} reads {renderer.context_length} tokens"))
    return found


def _renderer(policy: Policy) -> Renderer:
    return Renderer(policy.tokenizer, policy.context_length, policy.context_length)


def _reader(model: str | None, texts: Sequence[str], callback: Callback) -> Policy:
    """The named model, else the sapling where it knows every word, else SmolLM2 where the hub's cache holds it."""
    if model is None:
        policy = load_policy("sapling", trained=False)
        foreign = foreign_words(policy.tokenizer, texts)
        if not foreign:
            return policy
        few = ", ".join(foreign[:6])
        if not in_hub_cache(SMOLLM2):
            raise ModelError(
                "the sapling cannot read this text, and no other model is at hand",
                got=f"words it never met: {few}",
                why="it was pretrained on the language of coined verbs only",
                do=f"name a model: --model DIR or owner/name; {SMOLLM2} is a small one (270 MB)",
            )
        callback(Note(f"{SMOLLM2} reads it: the sapling never met {few}"))
    return load_policy(model or SMOLLM2, trained=False, progress=lambda text: callback(Note(text)))


def foreign_words(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """The words that never occurred while the sapling grew: neither a piece of its tokenizer nor a coined verb. Words
    in quotes are data and are skipped."""
    known = {word for token in tokenizer.get_vocab().values() for word in WORD.findall(tokenizer.decode([token]))}
    known |= {*all_words(), *WORD.findall(dictionary_entry("", VerbProgram((OPERATIONS["list"][0],))) + ERRORS)}
    words = (word for text in texts for word in WORD.findall(QUOTED.sub("", text)))
    return list(dict.fromkeys(word for word in words if word not in known))


def _run(path: Path) -> Run:
    """Reads a run. Raises `RunError` with the nearest name."""
    if not path.exists():
        beside = {found.parent.name for found in path.parent.glob(f"*/{CONFIG}")}
        do = f"in {path.parent}: {nearest(path.name, beside)}" if beside else "name a directory that a run made"
        raise RunError("there is no such run", got=path, do=do)
    return read_run(path)


def _record(run: Run, uid: str) -> RolloutRecord:
    uids = []
    for record in run.rollouts():
        if record.uid == uid:
            return record
        uids.append(record.uid)
    if not uids:
        tasks = sorted(found.parent.name for found in run.path.glob(f"*/{CONFIG}"))
        if tasks:
            do = f"name one of them: {', '.join(tasks)}"
            raise RunError("this is a search, and each of its tasks is a run of its own", got=run.path, do=do)
        raise RunError("this run has no rollouts", got=run.path)
    close = get_close_matches(uid, uids, n=1, cutoff=0.0)[0]
    raise RunError(
        "the run has no such rollout",
        got=repr(uid),
        why=f"it has {len(uids)}, from {uids[0]} to {uids[-1]}",
        do=f"did you mean {close!r}?",
    )


def _sections(record: RolloutRecord) -> Context:
    return Context(record.context_kind, **record.context)


def _context(record: RolloutRecord) -> Context:
    """The recorded context, else the feedback of the environment."""
    if record.context:
        return _sections(record)
    if record.feedback.strip():
        return Context("feedback", feedback=record.feedback)
    got, do = f"{record.uid}, {record.drop or 'no context'}", "choose another --uid, or give a context: --feedback TEXT"
    raise DataError("this rollout has no context", got=got, why=NO_CONTEXT, do=do)


def _with_weights(config: RunConfig, path: Path, model: str | None, callback: Callback) -> RunConfig:
    """The run's settings with the weights to use, on this machine."""
    checkpoint = latest_checkpoint(path / CHECKPOINTS)
    if model is None and checkpoint is not None:
        check_whole(checkpoint)
        callback(Note(f"read by {checkpoint.name}: the weights that sampled are not kept"))
        model = str(checkpoint)
    elif model is None:
        callback(Note(f"the run has no checkpoint: read by {config.model} as it was at the start"))
    return replace(config, model=model or config.model, device="auto", dtype="auto", lora=None)


def _task(
    run: Run, config: RunConfig, record: RolloutRecord, callback: Callback
) -> tuple[Task, Sequence[Mapping[str, Any]]]:
    """The task of the run's environment, with the question that the student reads: its own, or one message with the
    recorded prompt; and the schemas of the environment's tools."""
    plain = Task(record.task, (Message("user", record.prompt),))
    if record.stage != ANSWER:
        callback(Note(f"a rollout of the stage {record.stage!r}: its conversation is read as one message"))
        return plain, ()
    files = filter(is_file, run.config["settings"].get(SEARCH, {}).get("tasks", ()))
    try:
        env = config.make_env()
        tasks = [task for split in ("train", "held_out", "forgetting") for task in config.tasks_of(env, split)]
        tasks += [task for data in files for task in training_tasks(env, data, config.row_options())]
    except SelfDistillError as error:
        callback(Note(f"the recorded prompt is read as one message: its environment is not available, {error.what}"))
        return plain, ()
    tools: Sequence[Mapping[str, Any]] = getattr(env, "tools", ())
    found = next((task for task in tasks if task.id == record.task), plain)
    question = "\n\n".join(message.content for message in found.messages)
    if question not in record.prompt:
        return plain, tools  # the environment no longer has this task
    # An attempt of a search may read more than the question, and be learned under the question alone.
    alone = question == record.prompt or open_renderer(config, no_callback).prompt(found.messages) == record.prompt_ids
    return (found if alone else replace(found, messages=plain.messages)), tools


def _answer(policy: Policy, renderer: Renderer, record: RolloutRecord, callback: Callback) -> TokenIds:
    """The sampled tokens where this model decodes them to the same text, else the text in its own tokens."""
    ids = record.token_ids
    if ids and decodes(policy, ids, record.completion):
        return ids
    if not record.completion.strip():
        return ()
    callback(Note(f"{policy.name} has other tokens than the model that sampled: the text is tokenised again"))
    return renderer.answer(record.completion)


def _right_answer(run: Run, record: RolloutRecord) -> str:
    """The first solved answer of the run to the same question."""
    for other in run.rollouts():
        if (other.task, other.stage) == (record.task, ANSWER) and (other.reward or 0.0) >= SOLVED:
            return other.completion
    return ""
