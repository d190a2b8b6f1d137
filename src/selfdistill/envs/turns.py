"""Environments of several turns: one step of many conversations, and several attempts at a task in one conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from selfdistill.envs.base import (
    PARALLEL,
    SOLVED,
    ConversationEnvironment,
    Environment,
    Fault,
    Pair,
    Scored,
    ScoringEnvironment,
    checked,
    guarded,
    is_message,
    score_all,
    started,
    time_limit_of,
    within,
)
from selfdistill.errors import ConfigError
from selfdistill.types import Completion, DropReason, Message, Observation, Outcome, Task

NO_FEEDBACK = "That was not right."

Step: TypeAlias = Observation | Scored


class _Steps:
    """Turns as answers to be scored: an observation is kept by the uid of its turn, beside a reward that is not read.
    `step_batch` of the environment, where it has one, is passed all pairs of state and completion together."""

    def __init__(self, env: Any, states: Mapping[str, Any]) -> None:
        self.env, self.states, self.name = env, states, env.name
        self.time_limit_s = time_limit_of(env)
        self.observed: dict[str, Observation] = {}
        if hasattr(env, "step_batch"):
            self.score_batch = self._step_batch

    def score(self, task: Task, completion: Completion) -> Any:
        return self._scored(completion, self.env.step(self.states[completion.uid], completion))

    def _step_batch(self, pairs: Sequence[Pair]) -> Any:
        found = self.env.step_batch([(self.states[completion.uid], completion) for _, completion in pairs])
        if not isinstance(found, list) or len(found) != len(pairs):
            return found
        return [self._scored(completion, each) for (_, completion), each in zip(pairs, found, strict=True)]

    def _scored(self, completion: Completion, found: Any) -> Any:
        if not isinstance(found, Observation):
            return found
        turns = found.messages
        read = turns if found.whole is None else found.whole.messages
        wrong = not turns or not all(is_message(turn) and turn.role in ("user", "tool") for turn in turns)
        if wrong or not read or not all(map(is_message, read)):
            return Fault(DropReason.BAD_OUTCOME, f"expected turns of user or tool, got {found!r:.200}")
        self.observed[completion.uid] = found
        return Outcome(0.0)


def start_all(env: ConversationEnvironment, tasks: Sequence[Task]) -> list[Any]:
    """The state of a conversation about each task, or the `Fault` of one that raised or did not come back in time; from
    `start_batch(tasks)` of the environment, where it has one."""
    if hasattr(env, "start_batch"):
        call = started(partial(guarded, partial(env.start_batch, tasks), DropReason.ENV_RAISED))
        (found,) = within([call], time_limit_of(env) * math.ceil(len(tasks) / PARALLEL), "no states")
        if not isinstance(found, Fault | list) or (isinstance(found, list) and len(found) != len(tasks)):
            text = f"start_batch returned {found!r:.200} for {len(tasks)} tasks; expected a list of one state each"
            found = Fault(DropReason.BAD_OUTCOME, text)
        return [found] * len(tasks) if isinstance(found, Fault) else found
    states: list[Any] = []
    for first in range(0, len(tasks), PARALLEL):
        calls = [
            started(partial(guarded, partial(env.start, task), DropReason.ENV_RAISED))
            for task in tasks[first : first + PARALLEL]
        ]
        states += within(calls, time_limit_of(env), "no state")
    return states


def step_all(
    env: ConversationEnvironment, pairs: Sequence[Pair], states: Mapping[str, Any], *, seed: int
) -> list[Step]:
    """What follows each turn, in order; `states` are those of the conversations, by the uid of the turn. Errors and
    time limits are those of `score_all`."""
    steps = _Steps(env, states)
    found = score_all(steps, pairs, seed=seed)
    return [
        result if isinstance(result, Fault) else steps.observed.get(completion.uid, result)
        for (_, completion), result in zip(pairs, found, strict=True)
    ]


def finish(env: ConversationEnvironment, state: Any, observation: Observation) -> Scored:
    """The outcome of a conversation that a budget ends: that of `finish(state)` where the environment has one, else a
    reward of 0, with the last observation as feedback."""
    own = getattr(env, "finish", None)
    if own is not None:
        return checked(guarded(partial(own, state), DropReason.ENV_RAISED))
    return Outcome(0.0, "\n\n".join(message.content for message in observation.messages))


@dataclass(slots=True)
class Attempted:
    """The state of a conversation: the attempts that are left, this one included."""

    task: Task
    left: int


class AroundScoring:
    """Base of environments of conversations that another environment, `env`, scores: whatever they lack is that one's,
    such as its tasks, the form of its rows and its isolation."""

    def __init__(self, env: ScoringEnvironment) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name in ("score", "score_batch", "env"):  # conversations are not scored, and `env` is not there yet
            raise AttributeError(name)
        return getattr(self.env, name)


class RepeatedAttempts(AroundScoring):
    """An environment of up to `turns` attempts at a task, each after the feedback on the one before.

    `decides` scores the last attempt of a conversation, where another environment does (private tests in evaluations).
    """

    def __init__(self, env: ScoringEnvironment, turns: int, decides: ScoringEnvironment | None = None) -> None:
        super().__init__(env)
        self.turns, self.decides, self.name = turns, decides, env.name

    def for_evaluation(self) -> RepeatedAttempts:
        """The same conversations, in which what training never shows decides about the last attempt."""
        private = getattr(self.env, "for_evaluation", None)
        return RepeatedAttempts(self.env, self.turns, private() if private is not None else None)

    def start(self, task: Task) -> Attempted:
        """A conversation in which nothing was attempted yet."""
        return Attempted(task, self.turns)

    def step(self, state: Attempted, completion: Completion) -> Any:
        """As `step_batch`, for one conversation."""
        return self.step_batch([(state, completion)])[0]

    def step_batch(self, pairs: Sequence[tuple[Attempted, Completion]]) -> list[Step]:
        """The outcomes of solved and of last attempts, and the feedback on all others."""
        results: list[Any] = list(score_all(self.env, [(state.task, done) for state, done in pairs]))
        last: list[int] = []
        for place, ((state, _), found) in enumerate(zip(pairs, results, strict=True)):
            state.left -= 1
            if isinstance(found, Fault) or found.reward >= SOLVED or not state.left:
                last.append(place)
            else:
                results[place] = Observation((Message("user", found.feedback.strip() or NO_FEEDBACK),))
        if self.decides is not None:
            decided = score_all(self.decides, [(pairs[place][0].task, pairs[place][1]) for place in last])
            for place, found in zip(last, decided, strict=True):
                results[place] = found
        return results


def single_turn(env: Environment, command: str) -> ScoringEnvironment:
    """The environment that scores single answers: that of repeated attempts, or the one given. Raises `ConfigError` for
    other environments of several turns."""
    if isinstance(env, RepeatedAttempts):
        return env.env
    if isinstance(env, ConversationEnvironment):
        what = f"{command} needs an environment that scores single answers"
        raise ConfigError(what, got=f"{env.name!r}, an environment of conversations", do="train or evaluate with it")
    return env
