"""What an environment is, and scoring with one that a user wrote: its failures cost rollouts, never the run.

An environment has a `name` and `score(task, completion)`, which returns a reward: a finite number, (number, feedback)
or an `Outcome`. (`rewards.py` makes one of a function.) It may also have

    score_batch(pairs) -> list             scores many answers at once; a `Fault` in the list drops its answer alone
    tasks(split) -> list[Task]             "train", "held_out" (never trained on), "forgetting" (known before),
                                           "replay" (prompts for replay against forgetting)
    for_evaluation() -> Environment        the same environment, scoring by what training never shows
    row_kind: str                          what the rows of data are: "questions" (without it), "programs" in the shapes
                                           of docs/data.md, or "conversations" of a log
    prepare(task) -> Task                  the task of a row, with the form of an answer in its prompt
    reference(task) -> str                 a right answer, for `selfdistill check`; "" where none is known
    has_reward(task) -> bool               whether answers to a task get a reward (without it: all do); accuracy is
                                           measured on such tasks alone
    unusable(task) -> str                  why no answer to a task can be scored, or ""; it is then not sampled from
    isolation: str                         how untrusted programs are isolated
    tools: Sequence[Mapping]               schemas of the functions that the model may call, for the chat template
    start(task), step(state, completion)   instead of `score`: conversations (`ConversationEnvironment`); also
    start_batch(tasks), step_batch(pairs)  for all conversations of a batch at once, and `finish(state)`, the outcome of
                                           one that a budget ends. `opening` of a state: see `WholePrompt`
    spent: Counter                         what scoring has cost so far, such as a judge's tokens, for the records
    policy_weights: str                    "initial" or "current" weights of the run's model, which the environment
                                           samples from: `use_policy(replies)` is called with it before the first answer
    time_limit_s: float                    seconds that one call of `score` may take, instead of 30, and `score_batch`
                                           for every eight answers (without it: any time)
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, get_args, runtime_checkable

from selfdistill.errors import DataError, EnvError, SelfDistillError
from selfdistill.files import is_whole
from selfdistill.plugins import seed_global
from selfdistill.types import Completion, DropReason, Message, Observation, Outcome, Role, Rollout, Task

SOLVED = 0.5  # reward from which an answer counts as solved
PARALLEL = 8  # calls of an environment's function at a time
TIME_LIMIT_S = 30.0  # of one such call
MAX_TIME_LIMIT_S = 86_400.0
HANGING = 2 * PARALLEL  # calls in a row that ran out of time, after which no more are made
QUICK_S = 0.1  # calls within this time are made one at a time
QUICK_TOTAL_S = 5.0  # and all of a batch together within this
_TRACEBACK_CHARACTERS = 10_000
_PACKAGE = Path(__file__).parent.parent

Pair: TypeAlias = tuple[Task, Completion]


class ScoringEnvironment(Protocol):
    """Scores answers; the module's docstring lists what else it may offer."""

    name: str

    def score(self, task: Task, completion: Completion) -> Outcome:
        """The reward of one answer, and feedback on it."""


@runtime_checkable
class ConversationEnvironment(Protocol):
    """An environment of several turns. The state is its own: one for each conversation, which `step` may change."""

    name: str

    def start(self, task: Task) -> Any:
        """The state of a conversation about a task."""

    def step(self, state: Any, completion: Completion) -> Observation | Outcome:
        """What follows a turn: messages that the model reads next, or the outcome of the conversation."""


Environment: TypeAlias = ScoringEnvironment | ConversationEnvironment


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer without an outcome: why the rollout is dropped, and the traceback or what was returned."""

    drop: DropReason
    text: str


Scored: TypeAlias = Outcome | Fault
T = TypeVar("T")


def with_result(rollout: Rollout, result: Scored) -> Rollout:
    """The rollout with its outcome, or dropped for a fault."""
    if isinstance(result, Fault):
        return replace(rollout, drop=result.drop, fault=result.text)
    return replace(rollout, outcome=result)


def guarded(call: Callable[[], T], drop: DropReason = DropReason.SCORING_FAILED) -> T | Fault:
    """The result of a call, or a `Fault` with the traceback of an error in it. Our own errors and interrupts pass
    through."""
    try:
        return call()
    except SelfDistillError:
        raise
    except (Exception, SystemExit):  # noqa: BLE001 (code of the user's, or an answer that may hold anything)
        text = traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
        return Fault(drop, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def required(found: T | Fault, what: str = "an answer could not be scored") -> T:
    """What was found. Raises `EnvError` for a fault."""
    if isinstance(found, Fault):
        raise EnvError(what, got=in_short(found.text), why=found.text.strip())
    return found


def in_short(fault: str) -> str:
    """A fault on one line: of a traceback the error, and the first line outside this package that led to it."""
    *_, error = re.split(r'^  File ".*\n(?:    .*\n)*', fault.strip(), flags=re.MULTILINE)
    frames = re.findall(r'^  File "(.+)", line (\d+), in ', fault, re.MULTILINE)
    places = [f", in {file}, line {line}" for file, line in frames if not Path(file).is_relative_to(_PACKAGE)]
    return " ".join(error.split()) + "".join(places[:1])


def tasks_of(env: Environment, split: str) -> list[Task]:
    """The environment's own tasks of a split; none when it has none. Raises `EnvError`, `DataError` for tasks
    that are none."""
    own = getattr(env, "tasks", None)
    if own is None:
        return []
    tasks: list[Task] = required(
        guarded(lambda: list(own(split))), f"the environment {env.name!r} cannot name its tasks"
    )
    for task in tasks:
        if not isinstance(task, Task):
            what = f"the environment {env.name!r} has tasks of another type"
            raise EnvError(what, got=repr(task)[:200], do="give Tasks")
        check_conversation(task)
    name, times = max(Counter(task.id for task in tasks).items(), key=itemgetter(1), default=("", 0))
    if times > 1:
        raise EnvError(f"the environment {env.name!r} has two tasks with one id", got=name, do="give each its own")
    return tasks


def check_conversation(task: Task) -> None:
    """Raises `DataError` for a task whose messages are no tuple of messages."""
    turns: Any = task.messages
    if not isinstance(turns, tuple) or not turns or not all(map(is_message, turns)):
        what = f"the messages of the task {task.id!r} are no conversation"
        do = 'give a tuple of Messages with text, such as (Message("user", "…"),)'
        raise DataError(what, got=repr(turns)[:200], do=do)


def is_message(turn: Any) -> bool:
    return isinstance(turn, Message) and turn.role in get_args(Role) and _is_text(turn.content)


def prepared(env: Environment, task: Task) -> Task:
    """The task of a row as the model reads it. Raises `EnvError`."""
    prepare: Callable[[Task], Task] | None = getattr(env, "prepare", None)
    if prepare is None:
        return task
    return required(guarded(partial(prepare, task)), f"the environment {env.name!r} cannot prepare task {task.id!r}")


def spent_by(env: Environment) -> Counter[str]:
    """What the environment counts as its cost so far."""
    return Counter(getattr(env, "spent", {}))


def has_reward(env: Environment, task: Task) -> bool:
    """Whether answers to this task get a reward. Raises `EnvError` for an error of the environment's."""
    return not hasattr(env, "has_reward") or bool(required(guarded(lambda: env.has_reward(task)), "a task was refused"))


def why_unusable(env: Environment, task: Task) -> str:
    """Why no answer to this task can be scored, as far as the environment knows; empty where one can."""
    why = guarded(lambda: env.unusable(task)) if hasattr(env, "unusable") else ""
    return why.text if isinstance(why, Fault) else str(why or "")


def score_all(env: ScoringEnvironment, pairs: Sequence[Pair], *, seed: int = 0) -> list[Scored]:
    """One entry per pair, in order. Whatever an environment's own code raises or returns becomes a `Fault`.

    `score_batch` is called once, with the global random generators seeded by `seed` and the first completion's uid, and
    where `env.time_limit_s` is set, given that time for every `PARALLEL` pairs.
    Calls of `score` run one at a time while they are quick, each with the generators seeded by `seed` and its own
    completion's uid, so that what an environment draws from them repeats. Once one takes longer than `QUICK_S`, or all
    of them than `QUICK_TOTAL_S`, calls run `PARALLEL` at a time, and the order of their draws is open. Each may take
    `env.time_limit_s` seconds (without it: `TIME_LIMIT_S`). Once more than half have failed, or `HANGING` in a row did
    not return, the rest is not tried. Our own errors (no sandbox, a task without tests) pass through.
    """
    if not hasattr(env, "score_batch"):
        return _score_each(env, pairs, seed)
    seed_global(seed, *(completion.uid for _, completion in pairs[:1]))
    call: Callable[[], list[Scored] | Fault] = partial(
        guarded, partial(_score_batch, env, pairs), DropReason.ENV_RAISED
    )
    if hasattr(env, "time_limit_s"):
        limit_s = time_limit_of(env) * math.ceil(len(pairs) / PARALLEL)
        (scored,) = within([started(call)], limit_s, f"no outcomes of {len(pairs)} answers")
    else:
        scored = call()
    return [scored] * len(pairs) if isinstance(scored, Fault) else scored


def time_limit_of(env: Environment) -> float:
    """The seconds that one call of `score` may take. Raises `EnvError` for a limit that is none."""
    limit: Any = getattr(env, "time_limit_s", TIME_LIMIT_S)
    seconds = float(limit) if isinstance(limit, Real) else math.nan
    if not 0 < seconds <= MAX_TIME_LIMIT_S:
        what = f"time_limit_s of the environment {env.name!r} must be a number above 0 (seconds), at most a day"
        raise EnvError(what, got=repr(limit)[:80], do=f"leave it out for {TIME_LIMIT_S:g}")
    return seconds


def _score_each(env: ScoringEnvironment, pairs: Sequence[Pair], seed: int) -> list[Scored]:
    limit_s, quick_s = time_limit_of(env), QUICK_TOTAL_S  # seconds left for calls that are made one at a time
    scored: list[Scored] = []
    for start in range(0, len(pairs), PARALLEL):
        late = [isinstance(entry, Fault) and entry.drop is DropReason.ENV_TIMEOUT for entry in scored[-HANGING:]]
        hopeless = None
        if len(late) == HANGING and all(late):
            hopeless = Fault(DropReason.ENV_TIMEOUT, f"not tried: the last {HANGING} calls did not come back")
        elif 2 * sum(isinstance(entry, Fault) for entry in scored) > len(pairs):
            hopeless = Fault(DropReason.ENV_RAISED, "not tried: more than half had failed")
        if hopeless is not None:
            return scored + [hopeless] * (len(pairs) - start)
        calls: list[Future[Any]] = []
        for pair in pairs[start : start + PARALLEL]:
            if quick_s > 0:
                seed_global(seed, pair[1].uid)
            began = time.monotonic()
            calls.append(started(partial(guarded, partial(_score_one, env, *pair), DropReason.ENV_RAISED)))
            if quick_s > 0:
                wait(calls[-1:], min(QUICK_S, quick_s))
                quick_s = quick_s - (time.monotonic() - began) if calls[-1].done() else 0.0
        scored += within(calls, limit_s, "no outcome")
    return scored


def _score_one(env: ScoringEnvironment, task: Task, completion: Completion) -> Scored:
    return checked(env.score(task, completion))


def _score_batch(env: Any, pairs: Sequence[Pair]) -> list[Scored]:
    outcomes = env.score_batch(pairs)
    if not isinstance(outcomes, list) or len(outcomes) != len(pairs):
        text = f"score_batch returned {outcomes!r:.200} for {len(pairs)} pairs; expected a list of one outcome each"
        return [Fault(DropReason.BAD_OUTCOME, text)] * len(pairs)
    return [checked(outcome) for outcome in outcomes]


def started(call: Callable[[], T]) -> Future[T]:
    """A call in a thread that may outlive us: Python cannot stop a call that hangs."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is read)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def within(calls: Sequence[Future[T]], limit_s: float, late: str) -> list[T | Fault]:
    """The results of calls; a `Fault` for one that has not come back in time. Raises what a call raised."""
    wait(calls, limit_s)
    fault = Fault(DropReason.ENV_TIMEOUT, f"{late} after {limit_s:g} s")
    return [call.result() if call.done() else fault for call in calls]


def checked(returned: Any) -> Scored:
    """A reward in any of its shapes as an outcome with a float, or what is wrong with it; a fault as it is."""
    if isinstance(returned, Fault):
        return returned
    outcome: Outcome = returned
    if not isinstance(returned, Outcome):
        number, feedback = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, "")
        outcome = Outcome(number.tolist() if hasattr(number, "tolist") else number, feedback)  # of numpy or torch
    reward: Any = outcome.reward
    details: Any = outcome.details
    wrong = ""
    if not isinstance(reward, Real):
        wrong = f"expected a number, (number, feedback) or an Outcome, got {type(returned).__name__}: {returned!r:.200}"
    elif not abs(outcome.reward) <= sys.float_info.max:
        wrong = f"the reward is not a finite number: {reward!r:.200}"
    elif not _is_text(outcome.feedback):
        wrong = f"the feedback is not text: {outcome.feedback!r:.200}"
    elif not _is_text(outcome.reply):
        wrong = f"the reply is not text: {outcome.reply!r:.200}"
    elif not isinstance(details, Mapping) or not all(
        _is_text(key) and (type(value) in (bool, int, float) or _is_text(value)) for key, value in details.items()
    ):
        wrong = f"the details are not names with numbers or words: {details!r:.200}"
    if wrong:
        return Fault(DropReason.BAD_OUTCOME, wrong)
    writable = {  # JSON has no NaN and no infinity
        key: value if type(value) is not float or math.isfinite(value) else str(value) for key, value in details.items()
    }
    return replace(outcome, reward=float(reward), details=writable)


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be written as UTF-8."""
    return isinstance(value, str) and (value.isascii() or is_whole(value))
