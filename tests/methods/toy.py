"""A model of three tokens whose every probability stands in the test, run through the real path of an update.

    toy = Toy({"bare": [[0.5, 0.3, 0.2]], "told": [[0.2, 0.7, 0.1]]})        # one row per position of the answer
    group = toy.group(toy.said("b", 0.0, feedback="told"))
    found = toy.learn(SDPO(), group).gradients["bare"]                       # ∂L/∂logits [positions, 3]

Tokens are the letters of `TOKENS`, the last of which ends a turn. A table is what the model says to every conversation
whose text holds its name; where several names occur, the last one of the tables counts. The question is "bare". What
the model says at a position does not depend on what it said before.

Legend: T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from selfdistill.losses import Head, Relative, denominators
from selfdistill.methods import Method
from selfdistill.models.teacher import Frozen, Live, Teacher, TeacherRule
from selfdistill.prompts.render import Renderer
from selfdistill.training.forward import behaviour_pass, reference_pass, teacher_pass
from selfdistill.training.samples import CreditedRollout, credit_rollouts
from selfdistill.training.update import UpdateBatch, UpdateReport, token_weights, update_policy
from selfdistill.types import ANSWER, Completion, DropReason, Message, Outcome, Rollout, RolloutGroup, Task, TokenIds

TOKENS = "ab."
QUESTION = Task("toy", (Message("user", "bare"),))
Table = Sequence[Sequence[float]]
MANY = 10_000


class ToyPolicy:
    """Tables of log-probabilities in float64, which are the hidden states; the head is the identity."""

    device, has_adapter = torch.device("cpu"), False

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.names = list(tables)
        self.tables = {name: nn.Parameter(torch.zeros(len(rows), 3).double()) for name, rows in tables.items()}
        self.become(tables)

    def become(self, tables: Mapping[str, Table]) -> None:
        for name, rows in tables.items():
            self.tables[name].data.copy_(torch.tensor(rows).double().log())

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.tables

    def head(self) -> Head:
        return Head(torch.eye(len(TOKENS), dtype=torch.float64))

    def answer_hidden(self, pairs: Sequence[tuple[TokenIds, TokenIds]], max_tokens: int | None = None) -> Tensor:
        """A prompt is one token, the place of its table."""
        return torch.cat([self.tables[self.names[prompt]][: len(answer)] for (prompt,), answer in pairs])


@dataclass(frozen=True)
class ToyTokenizer:
    """A conversation is one token: the place of the last table whose name it holds. A letter is one too. As text no
    token ends a turn."""

    names: Sequence[str]
    eos_token_id: int = len(TOKENS) - 1
    added_tokens_decoder: Mapping[int, object] = field(default_factory=dict)
    all_special_tokens: Sequence[str] = ()
    chat_template: str = ""

    def apply_chat_template(self, chat: Sequence[Mapping[str, str]], **_: object) -> str:
        return "\n".join(turn["content"] for turn in chat)

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [max(place for place, name in enumerate(self.names) if name in text)]}

    def encode(self, text: str, **_: object) -> list[int]:
        return [TOKENS.index(letter) for letter in text]


class Caught(torch.optim.Optimizer):
    """Keeps the gradients of its step, and moves nothing."""

    def __init__(self, policy: ToyPolicy) -> None:
        super().__init__(list(policy.trainable().values()), {})
        self.policy, self.gradients = policy, dict[str, Tensor]()

    def step(self, closure: None = None) -> None:
        for name, value in self.policy.trainable().items():
            self.gradients[name] = torch.zeros_like(value) if value.grad is None else value.grad.clone()


@dataclass(frozen=True)
class Learned:
    """`gradients` are ∂L/∂logits [T, 3] by table."""

    gradients: dict[str, Tensor]
    prepared: list[CreditedRollout]
    report: UpdateReport
    memory: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Toy:
    """`tables` are the student's probabilities now; `start` those it began with, where they differ, which is what a
    teacher that is kept and a reference go by; `other` those of another model. `task` is the question."""

    tables: Mapping[str, Table]
    start: Mapping[str, Table] = field(default_factory=dict)
    other: Mapping[str, Table] = field(default_factory=dict)
    task: Task = QUESTION

    @property
    def renderer(self) -> Renderer:
        return Renderer(ToyTokenizer(list(self.tables)), context_length=MANY, max_teacher_tokens=MANY)

    def said(
        self,
        letters: str,
        reward: float | None = 0.0,
        feedback: str = "",
        *,
        reply: str = "",
        text: str = "",
        stage: str = ANSWER,
        messages: tuple[Message, ...] = (),
        of: int | None = None,
        logprobs: tuple[float, ...] = (),
        drop: DropReason | None = None,
    ) -> Rollout:
        """An answer of these letters. A reward of None: nobody scored it. `text` is what others may read of it, else
        its letters. Without `logprobs` the sampler is taken at its word."""
        ids = self.renderer.tokenizer.encode(letters)
        done = Completion("", text or letters, tuple(ids), logprobs)
        outcome = None if reward is None else Outcome(reward, feedback, reply=reply)
        prompt = self.renderer.prompt(messages or self.task.messages)
        return Rollout(self.task, prompt, done, outcome, drop, stage, messages, of)

    def group(self, *rollouts: Rollout, name: str = "r") -> RolloutGroup:
        """Names them r0, r1, …; a second group of an update needs another name."""
        named = (replace(r, completion=replace(r.completion, uid=f"{name}{i}")) for i, r in enumerate(rollouts))
        return RolloutGroup(self.task, tuple(named))

    def learn(
        self,
        method: Method,
        *groups: RolloutGroup,
        teacher: TeacherRule | None = None,
        step: int = 0,
        memory: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        before: Mapping[str, Table] | None = None,
    ) -> Learned:
        """One update from all groups together, as a run makes it. The teacher's rule is the method's own, or this.
        `before` are the student's probabilities when the batch was sampled, if an update has moved it since."""
        rule = teacher or method.teacher or Live()
        policy = ToyPolicy({**self.tables, **self.start})
        kept = Teacher(rule, policy, other=ToyPolicy(self.other) if self.other else None)
        reference_policy = Teacher(Frozen(), policy)
        policy.become({**self.tables, **(before or {})})
        memory, prepared = dict(memory or {}), credit_rollouts(method, groups, self.renderer)
        samples = [sample for entry in prepared for sample in entry.samples]
        assert len({sample.uid for sample in samples}) == len(samples), "groups need names of their own"
        loss_specs = [
            replace(s, clipping=s.clipping.resolve(memory.get("magnitude"))) if isinstance(s.clipping, Relative) else s
            for s in method.loss_specs(temperature)
        ]
        read = teacher_pass(policy, kept, samples, MANY)
        reference = reference_pass(policy, reference_policy, samples, MANY)
        stats = behaviour_pass(policy, loss_specs, samples, read, MANY)
        lengths = [len(entry.samples[0].completion_ids) for entry in prepared if entry.samples]
        dropped = [len(entry.rollout.completion.token_ids) for entry in prepared if not entry.samples]
        over = denominators(lengths, dropped, count_dropped=method.count_dropped)
        share = (samples, over)
        weights, memory, numbers = token_weights(loss_specs, method.reduction, [share], stats, step, memory)
        old = {uid: found.logprobs_N for uid, found in stats.items()} if before else None
        batch = UpdateBatch(samples, weights, read, reference, old)
        policy.become(self.tables)
        caught = Caught(policy)
        report = update_policy(policy, caught, loss_specs, batch, max_grad_norm=0, tokens=MANY)
        return Learned(caught.gradients, prepared, report, memory, numbers)


def towards(token: str, probabilities: Sequence[float]) -> Tensor:
    """∂ log p(token)/∂logits = 1[token] − p."""
    return torch.eye(len(TOKENS)).double()[TOKENS.index(token)] - torch.tensor(probabilities).double()
