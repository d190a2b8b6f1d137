"""Environments in which an agent leads the conversation: a program that sends chat requests to an endpoint of ours."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from selfdistill.envs.base import Fault, Scored
from selfdistill.envs.endpoint import Endpoint, Event, Mailbox, Parked
from selfdistill.envs.tools import before_calls, parse_calls
from selfdistill.envs.turns import Step
from selfdistill.protocol.chat import ChatError, Key, Reply, reply_to
from selfdistill.types import Completion, DropReason, Message, Observation, Outcome, Task, WholePrompt

GRACE_S = 10.0  # seconds more than those of an agent that a call of the environment may take
BUDGET = "the conversation has no tokens or turns left: reduce the length of the messages"


class AgentState:
    """The state of a conversation: its agent's request, and what the model wrote in it so far, verbatim."""

    def __init__(self, task: Task, endpoint: Endpoint) -> None:
        self.task, self.endpoint, self.mailbox = task, endpoint, Mailbox()
        self.cancel: Callable[[], object] = lambda: None  # ends the agent
        self.opening: WholePrompt | None = None
        self._ids: list[str] = []
        self._parked: Parked | None = None
        self._keys: tuple[Key, ...] = ()  # of the messages so far
        self._tools: tuple[Mapping[str, Any], ...] = ()
        self._own: dict[Key, str] = {}

    def register(self, session: str) -> None:
        """Takes the requests with this id for those of the conversation."""
        self._ids.append(session)
        self.endpoint.mailboxes[session] = self.mailbox

    def end(self, result: Scored) -> None:
        """The agent's end, from any thread."""
        self.mailbox.put(result)

    def open(self, event: Event | None, limit_s: float) -> AgentState | Fault:
        """The state with the agent's first request as its opening, or why there is none."""
        if isinstance(event, Parked):
            self._parked, self._keys, self._tools = event, event.request.keys, event.request.tools
            self.opening = WholePrompt(event.request.messages, event.request.tools)
            return self
        self.close()
        if isinstance(event, Outcome):
            return Fault(DropReason.ENV_RAISED, f"the agent ended without a request, with the reward {event.reward:g}")
        return event or Fault(DropReason.ENV_TIMEOUT, f"no request of the agent after {limit_s:g} s")

    def answer(self, completion: Completion) -> None:
        """Answers the request with a completion."""
        parked, self._parked = self._parked, None
        assert parked is not None
        request = parked.request
        calls = parse_calls(completion.text) if request.may_call else []
        if any(call.fault for call in calls):
            calls = []
        named = [(call.name, call.arguments) for call in calls]
        before = before_calls(completion.text) if calls else ""
        reply: Reply = reply_to(request, completion, named, before, prompt_tokens=completion.prompt_tokens)
        self._own[reply.key] = completion.text
        self._keys = (*request.keys, reply.key)
        parked.answer.set_result(reply)

    def follow(self, event: Event | None, limit_s: float) -> Step:
        """What an event after an answer is to the conversation."""
        if isinstance(event, Parked):
            return self._observed(event)
        self.close()
        return event or Fault(DropReason.ENV_TIMEOUT, f"neither a request of the agent nor its end after {limit_s:g} s")

    def refuse(self) -> None:
        """Answers the request with the error for a context that is full, on which agents end by themselves."""
        if self._parked is not None:
            self._parked.answer.set_exception(ChatError(BUDGET, code="context_length_exceeded"))
            self._parked = None

    def close(self) -> None:
        """Ends the agent, if it has not ended, and forgets its ids."""
        self.refuse()
        self.mailbox.close(ChatError(BUDGET, code="context_length_exceeded"))
        for session in self._ids:
            self.endpoint.mailboxes.pop(session, None)
        self.cancel()

    def _observed(self, parked: Parked) -> Observation:
        """The messages that a request adds to the ones before and to our answer; a whole prompt where it has others."""
        request, known = parked.request, len(self._keys)
        same = request.keys[:known] == self._keys and request.tools == self._tools
        self._parked, self._keys, self._tools = parked, request.keys, request.tools
        added = request.messages[known:]
        if same and added and all(message.role in ("user", "tool") for message in added):
            return Observation(added)
        written = tuple(
            Message("assistant", self._own[key]) if key in self._own else message
            for key, message in zip(request.keys, request.messages, strict=True)
        )
        start = max((n for n, message in enumerate(written) if message.role not in ("user", "tool")), default=-1)
        return Observation(written[start + 1 :], WholePrompt(written, request.tools))


class AgentEnvironment(ABC):
    """An environment of conversations that agents lead, each about a task. An agent may take `limit_s` seconds to its
    first request and between two of them; one that takes longer, or fails, costs its conversation alone.

    Where a budget of the run ends a conversation, the agent's request gets the error for a full context: its outcome
    is that with which the agent ends then.
    """

    def __init__(self, name: str, *, limit_s: float = 600.0) -> None:
        self.name, self.limit_s, self.time_limit_s = name, limit_s, limit_s + GRACE_S

    @abstractmethod
    def launch(self, state: AgentState) -> None:
        """Begins the agent of a conversation and returns. Its requests go to `endpoint.url`, with an id that
        `state.register` was called with in the header; its end is passed to `state.end`. `state.cancel` ends it."""

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint of all conversations."""
        return Endpoint()

    def start(self, task: Task) -> AgentState | Fault:
        """As `start_batch`, for one task."""
        return self.start_batch([task])[0]

    def start_batch(self, tasks: Sequence[Task]) -> list[AgentState | Fault]:
        """The states of conversations whose agents have sent their first requests."""
        states = [AgentState(task, self.endpoint) for task in tasks]
        for state in states:
            self.launch(state)
        return [state.open(event, self.limit_s) for state, event in zip(states, self._next(states), strict=True)]

    def step(self, state: AgentState, completion: Completion) -> Step:
        """As `step_batch`, for one conversation."""
        return self.step_batch([(state, completion)])[0]

    def step_batch(self, pairs: Sequence[tuple[AgentState, Completion]]) -> list[Step]:
        """Answers all requests, and returns what the agents do next."""
        for state, completion in pairs:
            state.answer(completion)
        events = self._next([state for state, _ in pairs])
        return [state.follow(event, self.limit_s) for (state, _), event in zip(pairs, events, strict=True)]

    def finish(self, state: AgentState) -> Any:
        """The outcome of a conversation that a budget ends: that of its agent, which gets no more answers."""
        deadline = time.monotonic() + self.limit_s
        state.refuse()
        while isinstance(event := state.mailbox.next(deadline - time.monotonic()), Parked):
            event.answer.set_exception(ChatError(BUDGET, code="context_length_exceeded"))
        return state.follow(event, self.limit_s)

    def _next(self, states: Sequence[AgentState]) -> list[Event | None]:
        deadline = time.monotonic() + self.limit_s
        return [state.mailbox.next(deadline - time.monotonic()) for state in states]
