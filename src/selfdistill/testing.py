"""A model of three tokens whose probabilities are given, and a sampler whose answers are: methods pinned by hand.

    policy = sd.testing.three_token_policy({"question": [[0.5, 0.3, 0.2]], "hint": [[0.2, 0.7, 0.1]]})
    group = policy.group(policy.answer("b", 0.0, feedback="hint"))
    policy.update(sd.SDPO(alpha=0.0), group).gradients["question"]          # ∂L/∂logits [T, 3]: p − q = .3, −.4, .1

The tokens are the letters of `TOKENS`, the last of which ends a turn. A table holds the probabilities of one prompt,
one row per position of the answer, whatever was answered before. It is read wherever its name occurs in the
conversation; of several, the last table counts. Everything else is what a run does. Numbers are float64, but for those
of a teacher that keeps weights of its own, which are float32.

Legend: T positions of an answer, N those of several, V the three tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn

from selfdistill.config import from_settings
from selfdistill.envs.rewards import as_environment
from selfdistill.errors import ConfigError
from selfdistill.losses import Head
from selfdistill.methods import Method
from selfdistill.models.batching import TokenPair
from selfdistill.models.policy import ALONE, Policy, Ranks
from selfdistill.models.sampler import SamplingOptions
from selfdistill.models.teacher import Frozen, Live, Other, Teacher, TeacherRule
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Attempts, Stage
from selfdistill.training.conversations import Sampler
from selfdistill.training.samples import CreditedRollout, credit_rollouts, roll_out
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import UpdateReport, update_all
from selfdistill.types import (
    ANSWER,
    Completion,
    Message,
    Outcome,
    Rollout,
    RolloutGroup,
    StopReason,
    Task,
    TrainingSample,
)

TOKENS = "ab."
END = len(TOKENS) - 1
QUESTION = Task("question", (Message("user", "question"),))
Table: TypeAlias = Sequence[Sequence[float]]
Tables: TypeAlias = Mapping[str, Table]
TABLES: Tables = {"question": [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], "hint": [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]}
MANY = 10_000


def scripted_sampler(texts: Iterable[str]) -> Sampler:
    """A sampler that gives these answers in their order, whatever the prompt: `models.sampler.sample` without draws.

    Log-probabilities [T] are the policy's own at the temperature of the options. An answer whose last token does not
    end a turn is one that was cut off. Raises `ConfigError` when there are fewer answers than prompts.
    """
    rest = iter(texts)

    @torch.no_grad()
    def sample(
        policy: Policy,
        prompts: Sequence[tuple[int, ...]],
        options: SamplingOptions,
        *,
        seed: int,
        uids: Sequence[str],
        version: int,
        **_: object,
    ) -> list[Completion]:
        given = list(islice(rest, len(prompts)))
        if len(given) < len(prompts):
            got = f"{len(given)} for {len(prompts)} prompts"
            raise ConfigError("the scripted answers ran out", got=got, do="script one for every attempt")
        found = []
        for prompt, uid, text in zip(prompts, uids, given, strict=True):
            ids = tuple(policy.tokenizer.encode(text, add_special_tokens=False))
            logits_TV = policy.head().logits(policy.answer_hidden([(prompt, ids)]))
            logprobs_TV = (logits_TV / (options.temperature or 1.0)).log_softmax(-1)
            logprobs = tuple(logprobs_TV[range(len(ids)), ids].tolist())
            stop = StopReason.END if ids[-1:] == (policy.tokenizer.eos_token_id,) else StopReason.LENGTH
            found.append(Completion(uid, text, ids, logprobs, stop, version))
        return found

    return sample


def three_token_policy(
    tables: Tables = TABLES, *, start: Tables | None = None, other: Tables | None = None, task: Task = QUESTION
) -> ThreeTokenPolicy:
    """A policy with these probabilities [T, 3] by table; `task` is the question of its rollouts.

    start: the tables that the run began with, where they differ: those of a teacher that is kept, and of the reference.
    other: the tables of another model, for the teacher rule `Other`. Raises `ConfigError` for a row that is not three
    positive numbers of sum 1.
    """
    start, other = start or {}, other or {}
    for name, table in (*tables.items(), *start.items(), *other.items()):
        for row in table:
            if len(row) != len(TOKENS) or min(row) <= 0 or abs(sum(row) - 1) > 1e-6:
                do = "give three positive numbers of sum 1, for " + ", ".join(map(repr, TOKENS))
                raise ConfigError("a row of probabilities is none", got=f"{row} in {name!r}", do=do)
    return ThreeTokenPolicy(tables, start, other, task)


@dataclass(frozen=True)
class Update:
    """The updates of one step. `gradients` are ∂L/∂logits [T, 3] by table in the last one, `all_gradients` those of
    every one, zeros where nothing was learned; `memory` is what the next step would start with."""

    all_gradients: list[dict[str, Tensor]]
    credited: list[CreditedRollout]
    reports: list[UpdateReport]
    memory: Mapping[str, float]

    @property
    def gradients(self) -> dict[str, Tensor]:
        """[T, 3] by table."""
        return self.all_gradients[-1]

    @property
    def report(self) -> UpdateReport:
        """That of the last update."""
        return self.reports[-1]


@dataclass(frozen=True)
class _Tokenizer:
    """A letter is one token, and so is a conversation: the last table whose name it holds, after the letters."""

    names: Sequence[str]
    eos_token_id: int = END
    added_tokens_decoder: Mapping[int, object] = field(default_factory=dict)
    all_special_tokens: Sequence[str] = ()
    chat_template: str = ""

    def apply_chat_template(self, chat: Sequence[Mapping[str, str]], **_: object) -> str:
        return "\n".join(turn["content"] for turn in chat)

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        places = [place for place, name in enumerate(self.names) if name in text]
        if not places:
            raise ConfigError("no table is named in a conversation", got=text, do=f"name one of {list(self.names)}")
        return {"input_ids": [len(TOKENS) + places[-1]]}

    def encode(self, text: str, **_: object) -> list[int]:
        if not set(text) <= set(TOKENS):
            raise ConfigError("an answer has other tokens", got=text, do=f"write it in the letters {TOKENS!r}")
        return [TOKENS.index(letter) for letter in text]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join((*TOKENS, *self.names)[token] for token in ids)


@dataclass
class ThreeTokenPolicy:
    """Tables of log-probabilities, which are the hidden states; the head is the identity. See `three_token_policy`."""

    tables: Tables
    start: Tables
    other: Tables
    task: Task

    device: ClassVar[torch.device] = torch.device("cpu")
    dtype: ClassVar[torch.dtype] = torch.float32
    has_adapter: ClassVar[bool] = False
    shares_prompts: ClassVar[bool] = False
    launched: ClassVar[int] = 0
    ranks: ClassVar[Ranks] = ALONE

    def __post_init__(self) -> None:
        self.parameters = {n: nn.Parameter(torch.empty(len(rows), 3).double()) for n, rows in self.tables.items()}
        self.set(self.tables)
        self.tokenizer = _Tokenizer(list(self.tables))
        self.renderer = Renderer(self.tokenizer, context_length=MANY, max_teacher_tokens=MANY)

    def set(self, tables: Tables) -> None:
        """Replaces the probabilities of some tables."""
        for name, rows in tables.items():
            self.parameters[name].data.copy_(torch.tensor(rows).double().log())

    def trainable(self) -> dict[str, nn.Parameter]:
        """Logits [T, 3] by table."""
        return self.parameters

    def shards(self) -> dict[str, Tensor]:
        """The same, without gradients."""
        return {name: value.data for name, value in self.parameters.items()}

    def put(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Policy.put`."""
        return Policy.put(cast(Policy, self), weights)

    def head(self) -> Head:
        """The identity."""
        return Head(torch.eye(len(TOKENS), dtype=torch.float64))

    def answer_hidden(self, pairs: Sequence[TokenPair], max_tokens: int | None = None) -> Tensor:
        """Log-probabilities [N, 3] at the positions of all answers. Raises `ConfigError` beyond the end of a table."""
        rows = []
        for (prompt,), answer in pairs:
            name = self.tokenizer.names[prompt - len(TOKENS)]
            if len(answer) > len(self.tables[name]):
                got = f"{len(answer)} tokens, {len(self.tables[name])} rows"
                raise ConfigError(f"an answer is longer than the table {name!r}", got=got, do="give it more rows")
            rows.append(self.parameters[name][: len(answer)])
        return torch.cat(rows)

    def answer(
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
    ) -> Rollout:
        """An answer of these letters. A reward of None: not scored. `text` is what others read of it, else its letters.
        Without `logprobs` the sampler's are assumed equal to the trainer's."""
        done = Completion("", text or letters, tuple(self.tokenizer.encode(letters)), logprobs)
        outcome = None if reward is None else Outcome(reward, feedback, reply=reply)
        prompt = self.renderer.prompt(messages or self.task.messages)
        return Rollout(self.task, prompt, done, outcome, None, stage, messages, of)

    def group(self, *rollouts: Rollout, name: str = "r") -> RolloutGroup:
        """Names them r0, r1, …; each group of a step needs a name of its own."""
        named = (replace(r, completion=replace(r.completion, uid=f"{name}{i}")) for i, r in enumerate(rollouts))
        return RolloutGroup(self.task, tuple(named))

    def roll_out(
        self,
        env: Any,
        answers: Sequence[str],
        *,
        stages: Sequence[Stage] = (Attempts(),),
        count: int = 0,
        name: str = "r",
    ) -> RolloutGroup:
        """One group, its answers scripted and scored by an environment or a reward function. With stages of its own a
        method adds to the first `count` answers; the rest of the script is for those."""
        options, sampler = SamplingOptions(max_new_tokens=MANY), scripted_sampler(answers)
        [group] = roll_out(
            cast(Policy, self), as_environment(env), self.renderer, [self.task], options,
            rollouts=count or len(answers), seed=0, label=name, stages=stages, sampler=sampler,
        )  # fmt: skip
        return group

    def update(
        self,
        method: Method,
        *groups: RolloutGroup,
        teacher: TeacherRule | None = None,
        step: int = 0,
        memory: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        later: Sequence[Tables] = (),
        replayed: Sequence[TrainingSample] = (),
    ) -> Update:
        """The updates of a step on these groups as a run makes them; nothing moves. The teacher's rule is the method's
        own, or this.

        By default it is one update from all groups. With `later`, each group makes one of its own, and after each but
        the last the policy has the next of these tables. `replayed` are samples held to the start.
        """
        this, rule = cast(Policy, self), teacher or method.teacher or Live()
        other = cast(Policy, three_token_policy(self.other)) if isinstance(rule, Other) else None
        self.set(self.start)
        kept, reference_policy = Teacher(rule, this, other=other), Teacher(Frozen(), this)
        self.set(self.tables)
        gradients, tables = list[dict[str, Tensor]](), iter(later)
        nothing = {name: torch.zeros_like(value) for name, value in self.parameters.items()}

        def keep(*_: object) -> None:
            gradients.append(nothing | {n: v.grad.clone() for n, v in self.parameters.items() if v.grad is not None})
            self.set(next(tables, {}))

        optimizer = torch.optim.SGD(list(self.parameters.values()), lr=0.0)
        optimizer.register_step_post_hook(keep)
        totals = Totals(step=step, memory=dict(memory or {}))
        learner = Learner(method, method.loss_specs(temperature), kept, reference_policy, optimizer, [])
        config = from_settings({"tasks_per_update": int(bool(later)), "optimiser": {"max_grad_norm": 0}})
        credited = credit_rollouts(method, groups, self.renderer)
        reports, _, _ = update_all(this, learner, config, groups, credited, replayed, totals)
        self.set(self.tables)
        return Update(gradients or [nothing], credited, reports, totals.memory)
