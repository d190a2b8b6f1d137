"""The values that travel through a run: frozen, and free of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from selfdistill.errors import nearest

TokenIds: TypeAlias = tuple[int, ...]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


class StopReason(StrEnum):
    """Why a completion ended."""

    END = "end"  # the model ended its turn
    LENGTH = "length"  # the token limit cut it off


@dataclass(frozen=True, slots=True)
class Task:
    """A question `x`, and what only the environment and the teacher read.

    `messages` is all that the student reads. `spec` belongs to the environment (tests, answers, the columns of a row)
    and is JSON; `task["answer"]` reads it. `demonstration` and `document` are privileged texts of the data,
    `logged_answer` is an earlier answer and `user_reply` the user's reply to a wrong one; empty means none.
    `data_set` is its set in a mixture.
    """

    id: str
    messages: tuple[Message, ...]
    spec: Mapping[str, Any] = field(default_factory=dict)
    demonstration: str = ""
    document: str = ""
    logged_answer: str = ""
    user_reply: str = ""
    data_set: str = field(default="", repr=False)  # a description of tasks in a config has no place for it

    def __getitem__(self, column: str) -> Any:
        """A column of `spec`. Raises `KeyError`, with the nearest column."""
        if column not in self.spec:
            raise KeyError(f"task {self.id!r} has no column {column!r}: {nearest(column, self.spec)}")
        return self.spec[column]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer `y` as sampled: `token_ids` [T] are never re-tokenised; `logprobs` [T] are nats under the weights,
    temperature and support that sampled them, and empty for words that were not sampled. `uid` is unique in a run;
    environments may seed choices with it. `prompt_tokens` is the length of its prompt; 0: not known."""

    uid: str
    text: str
    token_ids: TokenIds = ()
    logprobs: tuple[float, ...] = ()
    stop: StopReason = StopReason.END
    policy_version: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The score of a completion: a finite `reward`, `feedback` that a teacher may read (empty: none), `details` for the
    records, and `reply`, the user's next message."""

    reward: float
    feedback: str = ""
    details: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    reply: str = ""


@dataclass(frozen=True, slots=True)
class WholePrompt:
    """A prompt in place of the conversation so far, and schemas of the functions that the model may call in answer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment answers to a turn that does not end a conversation: the messages that the model reads next,
    such as a tool's result. They are read and never learned. `whole`: where the environment wrote the history anew, all
    that the model reads, these messages included."""

    messages: tuple[Message, ...]
    whole: WholePrompt | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation, token by token.

    `read` are the ids that the model read since its turn before: the observation as the template writes it. Where
    `fresh` they are a whole prompt, of the first turn and of one before which the history was written anew: by the
    template, or by the environment as `whole`. `completion` was sampled. `observation` holds the messages that followed
    it, empty after the last turn.
    """

    read: TokenIds
    completion: Completion
    observation: tuple[Message, ...] = ()
    fresh: bool = False
    whole: WholePrompt | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the turn adds to the conversation."""
        return (Message("assistant", self.completion.text), *self.observation)


class DropReason(StrEnum):
    """Why a rollout takes no part in an update. Every dropped rollout is counted under one of these."""

    ENV_RAISED = "env_raised"  # the environment's function raised an exception
    ENV_TIMEOUT = "env_timeout"  # the environment's function did not come back in time
    BAD_ROW = "bad_row"  # no answer to the row can be scored; nothing was sampled
    SCORING_FAILED = "scoring_failed"  # scoring this answer ended in an error: no reward can be given
    PROGRAM_LOST = "program_lost"  # the machine ended the answer's process each time: no reward can be given
    BAD_OUTCOME = "bad_outcome"  # the environment returned NaN, the wrong type or a list of the wrong length
    NOT_APPLICABLE = "not_applicable"  # every reward function returned None for this answer
    EMPTY_COMPLETION = "empty_completion"  # nothing was sampled
    ONLY_SUCCESS = "only_success"  # the only success of its group: never its own demonstration
    NO_CONTEXT = "no_context"  # no context was found
    CONTEXT_TOO_LONG = "context_too_long"  # even with the field cut, the teacher prompt does not fit
    ZERO_ADVANTAGE = "zero_advantage"  # all rewards of the group are equal, up to rounding: no advantage


ANSWER = "answer"  # the stage of ordinary answers: the student reads the question, and nothing more


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt at a task. `outcome` is None when it was not scored; `drop` is the reason why it could not be, and
    `fault` the traceback.

    `stage` is "answer", or the name of a later stage of the method, whose prompt is `messages` (empty: those of the
    task) about the rollout at place `of` in the group. `turns` are those of a conversation of several; `prompt_ids` is
    then the prompt of the first one, and `completion` has the text of the last one and the sampled tokens of all.
    """

    task: Task
    prompt_ids: TokenIds
    completion: Completion
    outcome: Outcome | None = None
    drop: DropReason | None = None
    stage: str = ANSWER
    messages: tuple[Message, ...] = ()
    of: int | None = None
    fault: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def all_turns(self) -> tuple[Turn, ...]:
        """The turns; an answer is one."""
        return self.turns or (Turn(self.prompt_ids, self.completion, fresh=True),)

    def history(self, number: int) -> tuple[WholePrompt | None, tuple[Message, ...]]:
        """What was written before a turn: the last whole prompt of the environment, if any, and the messages since."""
        start = max((n for n in range(number + 1) if self.turns and self.turns[n].whole), default=0)
        whole = self.turns[start].whole if self.turns else None
        return whole, tuple(message for turn in self.turns[start:number] for message in turn.messages)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All attempts at one task that were sampled together (group members)."""

    task: Task
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """Privileged context `c`: what the teacher reads beside the question. `kind` names it in the records.

    The texts fill the sections of the teacher's prompt; an empty one leaves its section out. `instruction` becomes a
    system message. All empty: the teacher reads what the student reads.
    """

    kind: str
    instruction: str = ""
    solution: str = ""
    feedback: str = ""
    demonstration: str = ""
    document: str = ""
    reply: str = ""
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One completion, ready to be read by the student and by the teacher.

    With x rendered as [5, 6], (x, c) rendered as [5, 9, 9, 6] and y sampled as [7, 8]:

        student reads 5 6 7 8          teacher reads 5 9 9 6 7 8
        the loss compares their next-token distributions before 7 and before 8.

    `teacher_prompts` hold the contexts, `against_prompts` those that they are contrasted with; without any there is no
    teacher. `live`: the student's current weights read them, else the teacher's. `distil` scales the divergence from
    the teacher, `advantage` the policy gradient on the tokens, `reference` the divergence from the weights at the
    start, which read what the student reads. `spec_index` is the place of its loss in the method's. `sampled_logprobs`
    are empty for tokens that were not sampled from this prompt. Tokens in `spans` (start, stop) count; None: all.

    `observed` are the ids that both read between the sampled ones, each with the place in `completion_ids` before which
    it stands. `answer_tokens` counts the sampled tokens of the whole answer that the sample is a part of; 0: its own.
    """

    uid: str
    student_prompt_ids: TokenIds
    teacher_prompts: tuple[TokenIds, ...]
    completion_ids: TokenIds
    sampled_logprobs: tuple[float, ...]
    against_prompts: tuple[TokenIds, ...] = ()
    live: bool = False
    advantage: float = 0.0
    distil: float = 0.0
    reference: float = 0.0
    spec_index: int = 0
    spans: tuple[tuple[int, int], ...] | None = None
    context_kind: str = "none"
    observed: tuple[tuple[int, TokenIds], ...] = ()
    answer_tokens: int = 0

    def continuation(self) -> tuple[TokenIds, tuple[int, ...]]:
        """All ids after the prompt, sampled and observed, and the places of the sampled ones among them."""
        ids, places, start = list[int](), list[int](), 0
        for place, observed in (*self.observed, (len(self.completion_ids), ())):
            places += range(len(ids), len(ids) + place - start)
            ids += [*self.completion_ids[start:place], *observed]
            start = place
        return tuple(ids), tuple(places)
