"""What an environment is, and how one that somebody else wrote is kept from stopping a run.

    def environment(task: Task, completion: Completion) -> Outcome:      # a function is an environment
        right = completion.text.strip() == task.spec["answer"]
        return Outcome(reward=float(right), feedback="" if right else f"The answer is not {completion.text}.")

An object with `name` and `score` is one too. It may also have

    score_batch(pairs) -> list[Outcome]     to judge many answers at once; a `Fault` in the list drops its answer alone
    tasks(split) -> list[Task]             "train", "held_out" (never trained on), "forgetting" (known before),
                                           "replay" (what may be replayed, so as not to forget it)
    for_evaluation() -> Environment              the same environment, scoring by what training never shows
    unusable(task) -> str                  why no answer to a task can be scored, or ""; it is then not sampled from
    isolation: str                         how untrusted programs are shut in
    time_limit_s: float                    seconds that one call of `score` may take, instead of 30
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, TypeVar, get_args

from selfdistill.errors import EnvError, SelfDistillError
from selfdistill.files import is_whole
from selfdistill.randomness import seed_global
from selfdistill.types import Completion, DropReason, Message, Outcome, Role, Task

PARALLEL = 8  # calls of an environment's function at a time
TIME_LIMIT_S = 30.0  # of one such call
MAX_TIME_LIMIT_S = 86_400.0
HANGING = 2 * PARALLEL  # calls in a row that ran out of time, after which no more are made
QUICK_S = 0.1  # calls within this time are made one at a time
QUICK_TOTAL_S = 5.0  # and all of a batch together within this
_TRACEBACK_CHARACTERS = 10_000

Pair: TypeAlias = tuple[Task, Completion]


class Environment(Protocol):
    """Scores answers; see the module's docstring for what else it may offer."""

    name: str

    def score(self, task: Task, completion: Completion) -> Outcome:
        """What became of one answer."""
        ...


class FunctionEnvironment:
    """A plain function as an environment, with tasks of its own if it has any."""

    def __init__(
        self,
        function: Callable[[Task, Completion], Outcome],
        name: str,
        tasks: Callable[[], Sequence[Task]] | Sequence[Task] = (),
    ) -> None:
        self.name, self._function, self._tasks = name, function, tasks

    def score(self, task: Task, completion: Completion) -> Outcome:
        """Calls the function."""
        return self._function(task, completion)

    def tasks(self, split: str) -> list[Task]:
        """The tasks to train on; there are no others."""
        if split != "train":
            return []
        return list(self._tasks() if callable(self._tasks) else self._tasks)


@dataclass(frozen=True, slots=True)
class Fault:
    """An environment that did not judge: why the rollout is dropped, and the traceback or what was returned."""

    drop: DropReason
    text: str


Scored: TypeAlias = Outcome | Fault
T = TypeVar("T")


def require_outcome(judged: Scored) -> Outcome:
    """The outcome, for a caller that has no use for a fault. Raises EnvError."""
    if isinstance(judged, Fault):
        raise EnvError("an answer could not be scored", got=judged.text.strip().rsplit("\n", 1)[-1], why=judged.text)
    return judged


def guarded(score: Callable[[], T]) -> T | Fault:
    """What scoring one answer gives. An error costs that answer alone; our own errors and interrupts pass through."""
    try:
        return score()
    except SelfDistillError:
        raise
    except Exception:  # noqa: BLE001 (an answer may hold anything; the traceback is kept)
        text = traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
        return Fault(DropReason.JUDGING_FAILED, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def tasks_of(env: Environment, split: str) -> list[Task]:
    """The environment's own tasks of a split; none when it has none. Raises `EnvError` when it cannot name them."""
    own = getattr(env, "tasks", None)
    if own is None:
        return []
    try:
        tasks = list(own(split))
    except SelfDistillError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(
            f"the environment {env.name!r} cannot name its tasks",
            got=f"{type(error).__name__}: {error}",
            why=_last_line(error),
            do="correct its `tasks`",
        ) from error
    wrong = next((task for task in tasks if not isinstance(task, Task)), None)
    if wrong is not None:
        raise EnvError(
            f"the environment {env.name!r} has tasks of another type", got=repr(wrong)[:200], do="give Tasks"
        )
    no_signal_steps = next((task for task in tasks if not _is_conversation(task.messages)), None)
    if no_signal_steps is not None:
        raise EnvError(
            f"the environment {env.name!r} has a task whose messages are no conversation",
            got=repr(no_signal_steps.messages)[:200],
            why=f"it is {no_signal_steps.id!r}",
            do='give a tuple of Messages with text, such as (Message("user", "…"),)',
        )
    name, times = max(Counter(task.id for task in tasks).items(), key=itemgetter(1), default=("", 0))
    if times > 1:
        raise EnvError(f"the environment {env.name!r} has two tasks with one id", got=name, do="give each its own")
    return tasks


def _last_line(error: BaseException) -> str:
    """The last line of source that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.line]
    return f"in {frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, tuple) or not messages:
        return False
    turns = [message for message in messages if isinstance(message, Message) and message.role in get_args(Role)]
    return len(turns) == len(messages) and all(_is_text(turn.content) for turn in turns)


def why_unusable(env: Environment, task: Task) -> str:
    """Why no answer to this task can be scored, as far as the environment can tell; empty where one can."""
    tell = getattr(env, "unusable", None)
    if tell is None:
        return ""
    try:
        return str(tell(task) or "")
    except (Exception, SystemExit):  # noqa: BLE001 (code of the user's; the traceback is kept)
        return traceback.format_exc()


def score_all(
    env: Environment, pairs: Sequence[Pair], *, seed: int = 0, time_limit_s: float | None = None
) -> list[Scored]:
    """One entry per pair, in order. Whatever an environment's own code raises or returns becomes a `Fault`.

    Quick calls are made one at a time, the global random generators seeded by `seed` and the completion's uid before
    each, so that what an environment draws from them repeats. Once one takes longer than `QUICK_S`, or all of them than
    `QUICK_TOTAL_S`, calls run `PARALLEL` at a time, and the order of their draws is open. Each may take `time_limit_s`
    seconds (None: what the environment says, else `TIME_LIMIT_S`). Once more than half have failed, or `HANGING` in a
    row did not come back, the rest is not tried. Our own errors (no sandbox, a task without tests) are the user's to
    see and pass through.
    """
    together = getattr(env, "score_batch", None)
    if together is not None:
        seed_global(seed, *(completion.uid for _, completion in pairs[:1]))
        return _score_together(together, pairs)
    limit = time_limit_of(env) if time_limit_s is None else time_limit_s
    judged: list[Scored] = []
    turns = _Turns(seed)
    for start in range(0, len(pairs), PARALLEL):
        why = _hopeless(judged, len(pairs))
        if why is not None:
            return judged + [why] * (len(pairs) - start)
        judged += _score_some(env, pairs[start : start + PARALLEL], limit, turns)
    return judged


def time_limit_of(env: Environment) -> float:
    """The seconds that one call of `score` may take. Raises `EnvError` for a limit that is none."""
    limit: Any = getattr(env, "time_limit_s", TIME_LIMIT_S)
    seconds = float(limit) if isinstance(limit, Real) else math.nan
    if not 0 < seconds <= MAX_TIME_LIMIT_S:
        what = f"time_limit_s of the environment {env.name!r} must be a number above 0 (seconds), at most a day"
        raise EnvError(what, got=repr(limit)[:80], do=f"leave it out for {TIME_LIMIT_S:g}")
    return seconds


def _hopeless(judged: Sequence[Scored], total: int) -> Fault | None:
    """What is said of the answers that are not tried any more, once trying is of no use."""
    last = judged[-HANGING:]
    if len(last) == HANGING and all(
        isinstance(entry, Fault) and entry.drop is DropReason.ENV_TIMEOUT for entry in last
    ):
        return Fault(DropReason.ENV_TIMEOUT, f"not tried: the last {HANGING} calls did not come back")
    if 2 * sum(isinstance(entry, Fault) for entry in judged) > total:
        return Fault(DropReason.ENV_RAISED, "not tried: more than half had failed")
    return None


def _score_together(score_batch: Callable[[Sequence[Pair]], list[Scored]], pairs: Sequence[Pair]) -> list[Scored]:
    try:
        outcomes = score_batch(pairs)
    except SelfDistillError:
        raise
    except (Exception, SystemExit):  # noqa: BLE001 (code of the user's; the traceback is kept)
        return [Fault(DropReason.ENV_RAISED, traceback.format_exc())] * len(pairs)
    if not isinstance(outcomes, list) or len(outcomes) != len(pairs):
        return [Fault(DropReason.BAD_OUTCOME, f"score_batch returned {outcomes!r:.200} for {len(pairs)} pairs")] * len(
            pairs
        )
    return [outcome if isinstance(outcome, Fault) else _checked(outcome) for outcome in outcomes]


@dataclass
class _Turns:
    """Calls in turn, each behind a seed of its own, while they are quick; `left_s` seconds of that are left."""

    seed: int
    left_s: float = QUICK_TOTAL_S

    def start(self, thread: threading.Thread, uid: str) -> None:
        """Starts a call, and waits for it as long as it may be the only one."""
        if self.left_s <= 0:
            thread.start()
            return
        seed_global(self.seed, uid)
        began = time.monotonic()
        thread.start()
        thread.join(min(QUICK_S, self.left_s))
        self.left_s = 0.0 if thread.is_alive() else self.left_s - (time.monotonic() - began)


def _score_some(env: Environment, pairs: Sequence[Pair], time_limit_s: float, turns: _Turns) -> list[Scored]:
    """Each call in a thread that may outlive us: Python cannot stop a call that hangs."""
    results: dict[int, Scored | SelfDistillError] = {}

    def call(index: int) -> None:
        try:
            results[index] = _checked(env.score(*pairs[index]))
        except SelfDistillError as error:
            results[index] = error
        except BaseException:  # noqa: BLE001 (code of the user's, `exit()` too; the traceback is kept)
            results[index] = Fault(DropReason.ENV_RAISED, traceback.format_exc())

    threads = [threading.Thread(target=call, args=(index,), daemon=True) for index in range(len(pairs))]
    for thread, (_, completion) in zip(threads, pairs, strict=True):
        turns.start(thread, completion.uid)
    deadline = time.monotonic() + time_limit_s
    judged: list[Scored] = []
    for index, thread in enumerate(threads):
        thread.join(max(0.0, deadline - time.monotonic()))
        result = results.get(index, Fault(DropReason.ENV_TIMEOUT, f"no outcome after {time_limit_s:g} s"))
        if isinstance(result, SelfDistillError):
            raise result
        judged.append(result)
    return judged


def _checked(outcome: Any) -> Scored:
    """The outcome with its reward as a float, or what is wrong with it."""
    if not isinstance(outcome, Outcome):
        return Fault(DropReason.BAD_OUTCOME, f"expected an Outcome, got {type(outcome).__name__}: {outcome!r:.200}")
    reward: Any = outcome.reward
    if not isinstance(reward, Real) or not math.isfinite(reward):
        return Fault(DropReason.BAD_OUTCOME, f"the reward is not a finite number: {reward!r:.200}")
    if not 0 <= float(reward) <= 1:
        return Fault(DropReason.BAD_OUTCOME, f"the reward is outside [0, 1]: {reward!r}")
    for name in ("feedback", "reply"):
        if not _is_text(getattr(outcome, name)):
            return Fault(DropReason.BAD_OUTCOME, f"the {name} is not text: {getattr(outcome, name)!r:.200}")
    details: Any = outcome.details
    if not isinstance(details, Mapping) or not all(_is_text(key) and _is_plain(details[key]) for key in details):
        return Fault(DropReason.BAD_OUTCOME, f"the details are not names with numbers or words: {details!r:.200}")
    return replace(outcome, reward=float(reward))


def _is_plain(value: Any) -> bool:
    return _is_text(value) or type(value) in (bool, int, float)


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be written down."""
    return isinstance(value, str) and is_whole(value)
