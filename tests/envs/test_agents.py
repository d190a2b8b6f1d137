"""Agents that lead a conversation through the endpoint: what the model reads of their requests, what they read of its
turns, and what goes wrong."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

import selfdistill as sd
from selfdistill.envs.agents import AgentEnvironment, AgentState
from selfdistill.envs.base import Fault, in_short
from selfdistill.envs.endpoint import HEADER
from selfdistill.envs.turns import start_all, step_all
from selfdistill.errors import ConfigError
from selfdistill.methods import GRPO, SDPO
from selfdistill.models.load import load_policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.context import NextObservation
from selfdistill.prompts.render import Renderer
from selfdistill.training.samples import credit_rollouts, roll_out
from selfdistill.types import Completion, DropReason, Message, Observation, Outcome, StopReason, Task, WholePrompt
from step_parts import whole_logits
from tiny_models import CHATML, tiny_policy_dir

TASK = Task("q", (Message("user", "What is 1 + 2?"),))
USER = {"role": "user", "content": "What is 1 + 2?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = 'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    + CHATML
)
Chat = Callable[..., dict[str, Any]]


def post(url: str, session: str, body: Any, **headers: str) -> Any:
    head = {HEADER: session, "Content-Type": "application/json", **headers}
    with urlopen(Request(f"{url}/chat/completions", json.dumps(body).encode(), head), timeout=20) as reply:
        return reply.read().decode()


class Agents(AgentEnvironment):
    """Each conversation is a call of `script(chat)` in a thread; what it returns is the outcome."""

    def __init__(self, script: Callable[[Chat], Any], limit_s: float = 20.0) -> None:
        super().__init__("agents", limit_s=limit_s)
        self.script, self.begun = script, 0
        self.cancelled: list[str] = []

    def launch(self, state: AgentState) -> None:
        session, self.begun = f"session-{self.begun}", self.begun + 1
        state.register(session)
        state.cancel = lambda: self.cancelled.append(session)

        def chat(messages: Any, **fields: Any) -> dict[str, Any]:
            found = json.loads(post(self.endpoint.url, session, {"model": "m", "messages": messages, **fields}))
            return found["choices"][0]["message"]

        def run() -> None:
            try:
                state.end(self.script(chat))
            except Exception as error:  # noqa: BLE001 (the script of a test)
                state.end(Fault(DropReason.ENV_RAISED, f"{type(error).__name__}: {error}"))

        threading.Thread(target=run, daemon=True).start()


def done(text: str, uid: str = "1-0") -> Completion:
    return Completion(uid, text, (5, 6), (-1.0, -1.0), prompt_tokens=7)


def test_an_agent_calls_tools_and_its_history_extends_what_the_model_read() -> None:
    def script(chat: Chat) -> Outcome:
        messages = [USER]
        messages.append(chat(messages, tools=[TOOL]))
        (call,) = messages[-1].pop("tool_calls")
        arguments = json.loads(call["function"]["arguments"])
        assert messages[-1] == {"role": "assistant", "content": "I add.", "reasoning_content": "One, two."}
        messages[-1] = {"role": "assistant", "content": "I add. ", "tool_calls": [call]}  # another white space
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(sum(arguments.values()))})
        last = chat(messages, tools=[TOOL])["content"]
        return Outcome(float(last == "3"), "" if last == "3" else "Give the sum.")

    env = Agents(script)
    state = env.start(TASK)
    assert isinstance(state, AgentState)
    assert state.opening == WholePrompt(TASK.messages, (TOOL,))
    thought = f"<think>\nOne, two.\n</think>\n\n{CALL}"
    assert env.step(state, done(thought)) == Observation((Message("tool", "3"),))
    assert env.step(state, done("4")) == Outcome(0.0, "Give the sum.")
    assert env.cancelled == ["session-0"]
    assert not env.endpoint.mailboxes


def test_a_history_that_was_written_anew_is_a_whole_prompt_with_our_turns_verbatim() -> None:
    summary = {"role": "user", "content": "You added. What was it?"}

    def script(chat: Chat) -> Outcome:
        first = chat([USER])
        chat(
            [{"role": "system", "content": "Be brief."}, USER, first, {"role": "assistant", "content": "Ok."}, summary]
        )
        chat([summary], tools=[TOOL])
        return Outcome(1.0)

    env = Agents(script)
    state = env.start(TASK)
    thought = "<think>\n1, 2\n</think>\n\n3"
    question, asked = Message("user", "What is 1 + 2?"), Message("user", summary["content"])
    own, other = Message("assistant", thought), Message("assistant", "Ok.")
    whole = WholePrompt((Message("system", "Be brief."), question, own, other, asked))
    assert env.step(state, done(thought)) == Observation((asked,), whole)
    assert env.step(state, done("3")) == Observation((asked,), WholePrompt((asked,), (TOOL,)))
    assert env.step(state, done("3")) == Outcome(1.0)


def test_calls_that_cannot_be_read_stay_text_and_a_cut_turn_says_so() -> None:
    found: list[dict[str, Any]] = []

    def script(chat: Chat) -> Outcome:
        found.append(chat([USER], tools=[TOOL]))
        found.append(chat([USER], tools=[TOOL], tool_choice="none"))
        return Outcome(0.0)

    env = Agents(script)
    state = env.start(TASK)
    env.step(state, done("<tool_call>{'name'}</tool_call>"))
    env.step(state, Completion("1-0.1", CALL, (5,), stop=StopReason.LENGTH))
    assert [message["content"] for message in found] == ["<tool_call>{'name'}</tool_call>", CALL]
    assert not any("tool_calls" in message for message in found)


def test_a_request_without_an_open_conversation_gets_an_error_as_openai_writes_it() -> None:
    release = threading.Event()

    def script(chat: Chat) -> Outcome:
        chat([USER])
        release.wait(20)
        return Outcome(1.0)

    env = Agents(script)
    env.start(TASK)
    url = env.endpoint.url
    refused = [
        (404, "unknown_session", "another", {"messages": [USER]}),
        (400, "no_session", "", {"messages": [USER]}),
        (400, None, "session-0", {"messages": []}),
        (400, None, "session-0", {"messages": [USER, {"role": "assistant", "content": "Ok"}]}),
    ]
    for status, code, session, body in refused:
        with pytest.raises(HTTPError) as raised:
            post(url, session, body)
        assert (raised.value.code, json.load(raised.value)["error"]["code"]) == (status, code)
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
    connection.request("GET", "/v1/models")
    assert json.load(answer := connection.getresponse())["error"]["code"] == "not_found"
    assert answer.status == 404
    connection.request("POST", "/v1/embeddings", b"{}", {HEADER: "session-0"})
    assert connection.getresponse().status == 404
    release.set()


def test_an_answer_streams_where_the_agent_wants_it() -> None:
    def script(chat: Chat) -> Outcome:
        body = {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}
        *events, end = post(env.endpoint.url, "session-0", body).split("\n\n")[:-1]
        first, last, counts = (json.loads(event.removeprefix("data: ")) for event in events)
        assert (end, last["choices"][0]["finish_reason"]) == ("data: [DONE]", "stop")
        assert counts["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        return Outcome(1.0, first["choices"][0]["delta"]["content"])

    env = Agents(script)
    assert env.step(env.start(TASK), done("3")) == Outcome(1.0, "3")


def test_conversations_go_side_by_side_and_an_agent_that_fails_costs_its_own_alone() -> None:
    def script(chat: Chat) -> Outcome:
        number = int(chat([USER])["content"])
        if number == 1:
            raise RuntimeError("no more")
        if number == 2:
            time.sleep(10)
        return Outcome(float(number))

    env = Agents(script, limit_s=3)
    states = env.start_batch([TASK] * 4)
    found = env.step_batch([(state, done(str(number), f"1-{number}")) for number, state in enumerate(states)])
    assert (found[0], found[3]) == (Outcome(0.0), Outcome(3.0))
    assert isinstance(found[1], Fault)
    assert isinstance(found[2], Fault)
    assert (found[1].drop, in_short(found[1].text)) == (DropReason.ENV_RAISED, "RuntimeError: no more")
    assert (found[2].drop, found[2].text) == (
        DropReason.ENV_TIMEOUT,
        "neither a request of the agent nor its end after 3 s",
    )


def test_an_agent_without_a_request_has_no_conversation() -> None:
    for script, limit_s, reason, says in (
        (lambda chat: Outcome(1.0), 10, DropReason.ENV_RAISED, "ended without a request, with the reward 1"),
        (lambda chat: 1 / 0, 10, DropReason.ENV_RAISED, "ZeroDivisionError"),
        (lambda chat: time.sleep(5), 0.2, DropReason.ENV_TIMEOUT, "no request of the agent after 0.2 s"),
    ):
        found = Agents(script, limit_s=limit_s).start(TASK)
        assert isinstance(found, Fault)
        assert found.drop is reason
        assert says in found.text


def test_a_budget_ends_the_agent_which_still_gives_the_outcome() -> None:
    def script(chat: Chat) -> Outcome:
        messages = [USER, chat([USER]), {"role": "user", "content": "And?"}]
        with pytest.raises(HTTPError) as raised:
            chat(messages)
        return Outcome(0.25, json.load(raised.value)["error"]["code"])

    env = Agents(script)
    state = env.start(TASK)
    assert isinstance(env.step(state, done("3")), Observation)
    assert env.finish(state) == Outcome(0.25, "context_length_exceeded")


def talking(chat: Chat) -> Outcome:
    """A turn on the task, one that extends it, and one on a history of the agent's own with a tool."""
    messages = [{"role": "system", "content": "Be brief."}, USER]
    messages += [chat(messages), {"role": "user", "content": "Go on."}]
    reply = chat(messages)["content"]
    chat([{"role": "user", "content": "Say it again."}], tools=[TOOL])
    return Outcome(float(len(reply) % 2), "Too long.")


def single(chat: Chat) -> Outcome:
    chat([{"role": "system", "content": "Be brief."}, USER])
    return Outcome(1.0)


def test_the_model_reads_exact_ids_of_openings_and_of_whole_prompts(tmp_path: Any) -> None:
    policy = load_policy(str(tiny_policy_dir(tmp_path, template=CHATML_TOOLS)), device="cpu")
    renderer = Renderer(policy.tokenizer, policy.context_length, 10_000, thinking="template")
    options = SamplingOptions(max_new_tokens=5)
    (group,) = roll_out(policy, Agents(talking), renderer, [TASK], options, rollouts=4, seed=0, label="1")
    opening = WholePrompt((Message("system", "Be brief."), *TASK.messages))
    again = WholePrompt((Message("user", "Say it again."),), (TOOL,))
    for rollout in group.rollouts:
        assert rollout.outcome is not None
        first, second, third = rollout.turns
        assert [turn.whole for turn in rollout.turns] == [opening, None, again]
        assert first.read == rollout.prompt_ids == renderer.prompt(opening.messages)
        assert third.read == renderer.using((TOOL,)).prompt(again.messages)
        assert not second.fresh
        ids = first.read + first.completion.token_ids + second.read
        assert second.completion.prompt_tokens == len(ids)
        for prompt, turn in ((ids, second), (third.read, third)):
            logits_TV = whole_logits(policy.base, prompt, turn.completion.token_ids)
            wanted = logits_TV.log_softmax(-1).gather(1, torch.tensor(turn.completion.token_ids)[:, None])
            assert turn.completion.logprobs == pytest.approx(wanted.squeeze(1).tolist(), abs=1e-5)
    rewarded = [replace(each, outcome=Outcome(n % 2, "Too long.")) for n, each in enumerate(group.rollouts)]
    group = replace(group, rollouts=tuple(rewarded))
    for rollout, entry in zip(rewarded, credit_rollouts(GRPO(), [group], renderer), strict=True):
        prompts = [sample.student_prompt_ids for sample in entry.samples]
        assert prompts == [rollout.prompt_ids, rollout.turns[2].read]
    first, last = credit_rollouts(SDPO(), [group], renderer)[0].samples
    solved = group.rollouts[1].completion.text
    assert all(word in policy.tokenizer.decode(first.teacher_prompts[0]) for word in ("Be brief.", solved))
    assert all(word in policy.tokenizer.decode(last.teacher_prompts[0]) for word in ("Say it again.", "add", solved))
    (two, *_) = credit_rollouts(SDPO(context=NextObservation()), [group], renderer)
    whole, last = (sample.teacher_prompts[0] for sample in two.samples if sample.uid.endswith(("@0", "@2")))
    assert "Go on." in policy.tokenizer.decode(whole)
    assert "Be brief." in policy.tokenizer.decode(whole)
    assert all(word in policy.tokenizer.decode(last) for word in ("add", "Say it again.", "Too long."))
    short = Renderer(policy.tokenizer, len(group.rollouts[0].prompt_ids), 10_000, thinking="template")
    (none,) = roll_out(policy, Agents(talking), short, [TASK], options, rollouts=1, seed=0, label="1")
    assert none.rollouts[0].drop is DropReason.CONTEXT_TOO_LONG

    given = renderer.prompt([Message("user", "A teacher's prompt.")])
    (held,) = roll_out(
        policy, Agents(single), renderer, [TASK], options, rollouts=2, seed=0, label="1", prompts=[given]
    )
    assert [turn.whole for turn in held.rollouts[0].turns] == [opening]
    assert held.rollouts[0].prompt_ids == held.rollouts[0].turns[0].read == given
    (one,) = roll_out(policy, Agents(single), renderer, [TASK], options, rollouts=2, seed=0, label="1")
    one = replace(one, rollouts=tuple(replace(r, outcome=Outcome(n)) for n, r in enumerate(one.rollouts)))
    for rollout, entry in zip(one.rollouts, credit_rollouts(GRPO(), [one], renderer), strict=True):
        (sample,) = entry.samples
        assert sample.student_prompt_ids == renderer.prompt(opening.messages)
        assert sample.completion_ids == rollout.completion.token_ids


def test_states_and_prompts_of_another_shape_are_faults() -> None:
    class Fewer(Agents):
        def start_batch(self, tasks: Any) -> Any:
            return []

    class Empty(Agents):
        def step_batch(self, pairs: Any) -> Any:
            return [Observation((Message("user", "Go on."),), WholePrompt(()))] * len(pairs)

    (found,) = start_all(Fewer(single), [TASK])
    assert found.drop is DropReason.BAD_OUTCOME
    assert "a list of one state each" in found.text
    (step,) = step_all(Empty(single), [(TASK, done("3"))], {"1-0": None}, seed=0)
    assert isinstance(step, Fault)
    assert step.drop is DropReason.BAD_OUTCOME


def test_without_the_extra_the_error_names_it() -> None:
    try:
        import verifiers  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"selfdistill\[verifiers\]"):
            sd.from_verifiers("glossary")
