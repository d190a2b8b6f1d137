"""Conversations: exact ids, budgets and faults, and what each method learns from turns, against plain transformers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import selfdistill as sd
from selfdistill.envs.base import ConversationEnvironment
from selfdistill.envs.turns import RepeatedAttempts
from selfdistill.errors import ConfigError
from selfdistill.losses import denominators
from selfdistill.methods import GRPO, OPCD, SDFT, SDPO, Safe, UserReplies
from selfdistill.methods.base import Method
from selfdistill.models.load import Policy, load_policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.prompts.context import Instruction, NextObservation, teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.runs import read_run
from selfdistill.runs.events import no_callback
from selfdistill.training.forward import behaviour_pass, teacher_pass
from selfdistill.training.loop import train
from selfdistill.training.samples import credit_rollouts, roll_out
from selfdistill.training.session import open_session
from selfdistill.types import (
    Completion,
    Context,
    DropReason,
    Message,
    Observation,
    Outcome,
    Rollout,
    RolloutGroup,
    StopReason,
    Task,
    TokenIds,
    TrainingSample,
)
from step_parts import assert_same, divergence, literal_gradients, update, weighed, whole_logits
from tiny_models import tiny_policy_dir

TASK = Task("q", (Message("user", "Say a number."),), demonstration="Seven.")
OPTIONS = SamplingOptions(max_new_tokens=5)
# As Qwen3 with thinking off: the header of a turn has an empty thinking that the history lacks.
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


class Talk:
    """Answers each turn with its number; after `turns` of them the conversation has the reward of its task's place."""

    name = "talk"
    time_limit_s = 2.0

    def __init__(self, turns: int = 3, failing: dict[str, Any] | None = None) -> None:
        self.turns, self.failing = turns, failing or {}

    def start(self, task: Task) -> list[str]:
        return []

    def step(self, state: list[str], completion: Completion) -> Observation | Outcome:
        state.append(completion.text)
        fails = self.failing.get(completion.uid)
        if fails is not None:
            return fails()
        if len(state) < self.turns:
            return Observation((Message("user", f"That was turn {len(state)}. Go on."),))
        right = int(completion.uid.partition(".")[0][-1]) % 2
        return Outcome(float(right), "" if right else "No number was found.", reply="Thanks.")


@pytest.fixture(scope="module", params=["extends", "rewrites"])
def policy(request, tmp_path_factory) -> Policy:
    template = None if request.param == "extends" else REWRITES
    return load_policy(str(tiny_policy_dir(tmp_path_factory.mktemp("talk"), template=template)), device="cpu")


@pytest.fixture(autouse=True)
def single_again(policy: Policy) -> Iterator[None]:
    """Conversations are sampled in float32; what is learned from them is compared in float64."""
    yield
    policy.model.float()


@pytest.fixture
def renderer(policy: Policy) -> Renderer:
    return Renderer(policy.tokenizer, policy.context_length, 10_000, thinking="template")


def talks(policy: Policy, renderer: Renderer, env: Any, options: SamplingOptions = OPTIONS) -> RolloutGroup:
    (group,) = roll_out(policy, env, renderer, [TASK], options, rollouts=4, seed=0, label="1")
    return group


def history(rollout: Rollout, number: int) -> list[Message]:
    """All messages before a turn."""
    messages = list(TASK.messages)
    for turn in rollout.turns[:number]:
        messages += [Message("assistant", turn.completion.text), *turn.observation]
    return messages


def test_every_turn_reads_the_ids_so_far_and_what_the_template_adds(policy: Policy, renderer: Renderer) -> None:
    for rollout in talks(policy, renderer, Talk()).rollouts:
        assert [len(turn.observation) for turn in rollout.turns] == [1, 1, 0]
        ids = TokenIds()
        for number, turn in enumerate(rollout.turns):
            ids = turn.read if turn.fresh else ids + turn.read
            assert len(turn.completion.token_ids) <= 5
            logits_TV = whole_logits(policy.base, ids, turn.completion.token_ids)
            wanted = logits_TV.log_softmax(-1).gather(1, torch.tensor(turn.completion.token_ids)[:, None])
            assert turn.completion.logprobs == pytest.approx(wanted.squeeze(1).tolist(), abs=1e-5)
            if turn.fresh:
                assert ids == renderer.prompt(history(rollout, number))
            ids += turn.completion.token_ids
        whole = rollout.completion
        assert whole.token_ids == sum((turn.completion.token_ids for turn in rollout.turns), ())
        assert whole.text == rollout.turns[-1].completion.text
        assert rollout.prompt_ids == rollout.turns[0].read
        rewritten = "<think>" in str(policy.tokenizer.chat_template)
        assert [turn.fresh for turn in rollout.turns] == [True, rewritten, rewritten]


def test_a_conversation_is_what_it_is_whoever_talks_beside_it(policy: Policy, renderer: Renderer) -> None:
    alone = roll_out(policy, Talk(), renderer, [TASK], OPTIONS, rollouts=1, seed=0, label="1")[0].rollouts[0]
    assert alone.completion.token_ids == talks(policy, renderer, Talk()).rollouts[0].completion.token_ids


def test_faults_cost_their_conversation_alone(policy: Policy, renderer: Renderer) -> None:
    def hang() -> Outcome:
        time.sleep(5)
        return Outcome(1.0)

    failing = {"1-0-0.1": lambda: 1 / 0, "1-0-1": lambda: "3", "1-0-2.2": hang}
    found = talks(policy, renderer, Talk(failing=failing)).rollouts
    reasons = [DropReason.ENV_RAISED, DropReason.BAD_OUTCOME, DropReason.ENV_TIMEOUT, None]
    assert [rollout.drop for rollout in found] == reasons
    assert [len(rollout.turns) for rollout in found] == [2, 0, 3, 3]
    assert "ZeroDivisionError" in found[0].fault
    assert "'3'" in found[1].fault


def test_a_conversation_that_cannot_begin_is_dropped_alone(policy: Policy, renderer: Renderer) -> None:
    class Slow(Talk):
        begun = 0

        def start(self, task: Task) -> list[str]:
            self.begun += 1
            if self.begun == 1:
                raise RuntimeError("no connection")
            if self.begun == 2:
                time.sleep(5)
            return []

    found = talks(policy, renderer, Slow()).rollouts
    assert sorted(str(rollout.drop) for rollout in found) == ["None", "None", "env_raised", "env_timeout"]


def test_budgets_end_a_conversation_with_what_the_environment_observed_last(policy: Policy, renderer: Renderer) -> None:
    (two, *_) = talks(policy, renderer, Talk(), replace(OPTIONS, turns=2)).rollouts
    assert len(two.turns) == 2
    assert two.outcome == Outcome(0.0, "That was turn 2. Go on.")
    (one, *_) = talks(policy, renderer, Talk(), replace(OPTIONS, conversation_tokens=3)).rollouts
    assert one.turns == ()
    assert one.outcome == Outcome(0.0, "That was turn 1. Go on.")
    short = replace(renderer, context_length=len(two.prompt_ids) + 12)
    (cut, *_) = talks(policy, short, Talk()).rollouts
    assert cut.completion.stop is StopReason.LENGTH

    class Ends(Talk):
        def finish(self, state: list[str]) -> Outcome:
            return Outcome(0.25, f"{len(state)} turns")

    assert talks(policy, renderer, Ends(), replace(OPTIONS, turns=2)).rollouts[0].outcome == Outcome(0.25, "2 turns")


def literal(policy: Policy, rollout: Rollout, teachers: Sequence[TokenIds] | None) -> list[tuple[Any, Any]]:
    """For each turn logits of the student [T, V] and of the teacher; `teachers` are its prompts before each turn."""
    found, ids = [], TokenIds()
    for number, turn in enumerate(rollout.turns):
        ids = turn.read if turn.fresh else ids + turn.read
        answer = turn.completion.token_ids
        with torch.no_grad():
            taught = whole_logits(policy.base, teachers[number], answer) if teachers else None
        found.append((whole_logits(policy.base, ids, answer), taught))
        ids += answer
    return found


def gradients(policy: Policy, method: Method, group: RolloutGroup, renderer: Renderer, places: Sequence[int]):
    """The update that a method makes of some rollouts of a group, and its samples."""
    policy.model.double()
    entries = credit_rollouts(method, [group], renderer)
    samples = [s for place in places for s in entries[place].samples]
    lengths = [entries[place].samples[0].answer_tokens for place in places]
    loss_spec = method.loss_spec(1.0)
    teacher = Teacher(Frozen(), policy)
    passes = teacher_pass(policy, teacher, samples, 10_000)
    stats = behaviour_pass(policy, [loss_spec], samples, passes, 10_000)
    options = {"teacher": passes, "sampler_correction": False}
    batch = weighed(samples, denominators(lengths), loss_spec=loss_spec, stats=stats, **options)
    return update(policy, batch, loss_spec)[1], samples


def whole_teachers(renderer: Renderer, rollout: Rollout, context: Context) -> list[TokenIds]:
    """The context in the question, and all else as the student read it."""
    ids, found = TokenIds(), []
    for number, turn in enumerate(rollout.turns):
        if turn.fresh:
            rest = history(rollout, number)[len(TASK.messages) :]
            ids = renderer.prompt([*teacher_messages(TASK.messages, context), *rest])
        else:
            ids += turn.read
        found.append(ids)
        ids += turn.completion.token_ids
    return found


def turn_teachers(renderer: Renderer, rollout: Rollout, contexts: dict[int, Context]) -> list[TokenIds]:
    """The context of a turn in the last message before it."""
    found, ids = [], TokenIds()
    for number, turn in enumerate(rollout.turns):
        messages = history(rollout, number)
        context = contexts.get(number, Context("bare"))
        if turn.fresh:
            ids = turn.read
            found.append(renderer.prompt(teacher_messages(messages, context)))
        else:
            last = rollout.turns[number - 1]
            written = teacher_messages(last.observation, context)
            added = renderer.extension(history(rollout, number - 1), last.completion, written)
            assert added is not None
            found.append(ids + added)
            ids += turn.read
        ids += turn.completion.token_ids
    return found


SOLUTION = "solved in turn three"


def one_solved(group: RolloutGroup) -> RolloutGroup:
    rollouts = list(group.rollouts)
    done = replace(rollouts[1].completion, text=SOLUTION)
    rollouts[1] = replace(rollouts[1], completion=done, outcome=Outcome(1.0))
    return replace(group, rollouts=tuple(rollouts))


@pytest.mark.parametrize(
    ("method", "context", "alpha"),
    [
        (SDPO(), Context("solution", solution=SOLUTION), 0.5),
        (OPCD(context=Instruction("Be brief."), top_k=1000), Context("instruction", instruction="Be brief."), 1.0),
        (SDFT(skip_first=0), Context("demonstration", demonstration="Seven."), 0.0),
        (Safe(bound=0.0), Context("solution", solution=SOLUTION), 0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_context_of_the_whole_stands_in_the_question_and_every_turn_learns(
    policy: Policy, renderer: Renderer, method: Method, context: Context, alpha: float
) -> None:
    group = one_solved(talks(policy, renderer, Talk()))
    found, samples = gradients(policy, method, group, renderer, [0])
    rollout = group.rollouts[0]
    tokens = len(rollout.completion.token_ids)
    assert {sample.answer_tokens for sample in samples} == {tokens}
    assert len(samples) == sum(turn.fresh for turn in rollout.turns)
    loss = sum(
        divergence(alpha, student.softmax(-1), teacher.softmax(-1)).sum() / tokens
        for student, teacher in literal(policy, rollout, whole_teachers(renderer, rollout, context))
    )
    assert_same(found, literal_gradients(policy, loss))


def test_hindsight_stands_in_the_message_before_its_turn_and_only_that_turn_learns(
    policy: Policy, renderer: Renderer
) -> None:
    group = talks(policy, renderer, Talk())
    rollout = group.rollouts[0]
    found, samples = gradients(policy, SDPO(context=NextObservation()), group, renderer, [0])
    texts = ["That was turn 1. Go on.", "That was turn 2. Go on.", "No number was found."]
    contexts = {number: Context("observation", feedback=text) for number, text in enumerate(texts)}
    assert len(samples) == 3
    tokens = len(rollout.completion.token_ids)
    loss = sum(
        divergence(0.5, student.softmax(-1), teacher.softmax(-1)).sum() / tokens
        for student, teacher in literal(policy, rollout, turn_teachers(renderer, rollout, contexts))
    )
    assert_same(found, literal_gradients(policy, loss))


def test_replies_of_users_weigh_the_tokens_of_the_turns_before_them(policy: Policy, renderer: Renderer) -> None:
    group = talks(policy, renderer, Talk())
    rollout = group.rollouts[1]
    found, _ = gradients(policy, UserReplies(), group, renderer, [1])
    texts = ["That was turn 1. Go on.", "That was turn 2. Go on.", "Thanks."]
    contexts = {number: Context("reply", reply=text) for number, text in enumerate(texts)}
    tokens, loss = len(rollout.completion.token_ids), torch.zeros((), dtype=torch.float64)
    pairs = literal(policy, rollout, turn_teachers(renderer, rollout, contexts))
    for turn, (student, teacher) in zip(rollout.turns, pairs, strict=True):
        ids_T1 = torch.tensor(turn.completion.token_ids)[:, None]
        logp, logq = (logits.log_softmax(-1).gather(1, ids_T1).squeeze(1) for logits in (student, teacher))
        evidence = (logq - logp).detach()
        loss = loss - ((evidence - evidence.mean()) * logp).sum() / tokens
    assert_same(found, literal_gradients(policy, loss))


def test_grpo_gives_every_sampled_token_the_advantage_of_its_conversation(policy: Policy, renderer: Renderer) -> None:
    group = talks(policy, renderer, Talk())
    found, samples = gradients(policy, GRPO(), group, renderer, [0, 1, 2, 3])
    assert [s.advantage for s in samples] == [a for a in (-0.5, 0.5, -0.5, 0.5) for _ in range(len(samples) // 4)]
    loss = torch.zeros((), dtype=torch.float64)
    for rollout, advantage in zip(group.rollouts, (-0.5, 0.5, -0.5, 0.5), strict=True):
        tokens = len(rollout.completion.token_ids)
        for turn, (student, _) in zip(rollout.turns, literal(policy, rollout, None), strict=True):
            ids_T1 = torch.tensor(turn.completion.token_ids)[:, None]
            loss = loss - advantage * student.log_softmax(-1).gather(1, ids_T1).sum() / tokens / 4
    assert_same(found, literal_gradients(policy, loss))


def test_observations_are_read_and_weigh_nothing() -> None:
    sample = TrainingSample("u", (1,), (), (5, 6, 7), (), observed=((2, (8, 9)),))
    assert sample.continuation() == ((5, 6, 8, 9, 7), (0, 1, 4))
    assert TrainingSample("u", (1,), (), (5, 6), ()).continuation() == ((5, 6), (0, 1))


class Even:
    """Right is an even number of characters."""

    name = "even"

    def tasks(self, split: str) -> list[Task]:
        return [replace(TASK, id=f"q{n}") for n in range(3)] if split == "train" else []

    def score(self, task: Task, completion: Completion) -> Outcome:
        right = len(completion.text) % 3 == 0
        return Outcome(float(right), "" if right else "Not a multiple of three.")

    def for_evaluation(self) -> Even:
        return Stricter()


class Stricter(Even):
    """Shows nothing, and decides by six."""

    def score(self, task: Task, completion: Completion) -> Outcome:
        return Outcome(float(len(completion.text) % 6 == 0), "a private test failed")


def test_repeated_attempts_go_on_until_one_is_right() -> None:
    env = RepeatedAttempts(Even(), 3)
    assert isinstance(env, ConversationEnvironment)
    assert [task.id for task in env.tasks("train")] == ["q0", "q1", "q2"]
    state = env.start(TASK)
    assert env.step(state, Completion("a", "xx")) == Observation((Message("user", "Not a multiple of three."),))
    assert env.step(state, Completion("a", "xxx")) == Outcome(1.0)
    state = env.start(TASK)
    results = [env.step(state, Completion("a", "xx")) for _ in range(3)]
    assert results[2] == Outcome(0.0, "Not a multiple of three.")
    private = env.for_evaluation()
    assert private.step(private.start(TASK), Completion("a", "xxx")) == Outcome(0.0, "a private test failed")
    assert private.step(private.start(TASK), Completion("a", "xx")) == results[0], "feedback is that of training"


@pytest.fixture
def attempts(tmp_path) -> str:
    """The name of an environment of up to three attempts."""
    file = tmp_path / "talk.py"
    file.write_text("from test_conversations import RepeatedAttempts, Even\nenv = RepeatedAttempts(Even(), 3)\n")
    return f"{file}:env"


def test_a_run_over_turns_records_what_each_turn_read(config_of, attempts: str) -> None:
    config = config_of()
    run = read_run(train(replace(config, env=replace(config.env, name=attempts))))
    assert math.isfinite(run.steps[-1].loss)
    several = [rollout for rollout in run.rollouts() if rollout.turns]
    assert several
    for rollout in several:
        assert sum(turn.tokens for turn in rollout.turns) == len(rollout.token_ids) == len(rollout.logprobs)
        assert len(rollout.log_ratio) in (0, len(rollout.token_ids))
        assert len(rollout.entropy) == (0 if rollout.drop else len(rollout.token_ids))
        assert rollout.turns[0].read == rollout.prompt_ids
        assert {turn.observation for turn in rollout.turns[:-1]} == {(("user", "Not a multiple of three."),)}
    assert any(rollout.log_ratio for rollout in several)
    for record in run.evals_of("train"):
        assert 0 <= record.extra["first_turn"] <= record.accuracy.value
        assert 1 <= record.extra["turns"] <= 3


@pytest.mark.parametrize("template", [None, REWRITES], ids=["one prompt", "segments"])
def test_log_probabilities_of_turns_are_replayed_by_plain_transformers_from_the_records_alone(
    tmp_path, template: str | None
) -> None:
    """Under `REWRITES` every turn has a prompt of its own, which the record holds whole."""
    model_dir = tiny_policy_dir(tmp_path, template=template)
    sizes = {"steps": 1, "tasks_per_step": 2, "rollouts_per_task": 3, "sampling": {"max_new_tokens": 5}}
    sd.train(
        model_dir, method="sdpo", env=RepeatedAttempts(Even(), 3), out=tmp_path / "run", evaluation={"tasks": 1},
        device="cpu", progress=False, **sizes,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    talks = [line for line in lines if line["turns"]]
    assert len(talks) >= 3
    for talk in talks:
        ids, sampled, found = list[int](), list(talk["token_ids"]), list[float]()
        for number, turn in enumerate(talk["turns"]):
            assert turn["fresh"] == (template is not None or not number)
            ids = turn["read"] if turn["fresh"] else ids + turn["read"]
            own, sampled = sampled[: turn["tokens"]], sampled[turn["tokens"] :]
            with torch.no_grad():
                logprobs_LV = model(torch.tensor([ids + own])).logits[0].log_softmax(-1)
            found += logprobs_LV[len(ids) - 1 : -1].gather(1, torch.tensor(own)[:, None])[:, 0].tolist()
            ids = ids + own
        assert not sampled
        assert found == pytest.approx(talk["logprobs"], abs=1e-5)


@pytest.mark.parametrize("method", ["rltf_sd", "erl", "pi_distill", "nca"])
def test_a_method_that_does_not_say_what_turns_read_is_refused(config_of, attempts: str, method: str) -> None:
    config = config_of(method=method)
    config = replace(config, env=replace(config.env, name=attempts))
    with pytest.raises(ConfigError, match=r"does not learn from conversations(.|\n)*choose one of antisd, grpo"):
        open_session(config, no_callback, learns=True)
