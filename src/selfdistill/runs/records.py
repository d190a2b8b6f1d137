"""What a run writes down: one frozen value per line of JSON. Other tools read these files; fields are only ever added.

    metrics.jsonl    StepRecord, EvalRecord, PreflightRecord, GuardRecord, ResumedRecord
    rollouts.jsonl   RolloutRecord, ResumedRecord
    summary.json     Summary

`event` names the kind of a line. Numbers that are not finite are written as the strings "NaN" and "Infinity", since
JSON has no other way to say them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter

from selfdistill.runs.old_names import has_old_names, renamed_record
from selfdistill.runs.stats import Estimate

EvalSplit = Literal["train", "held_out", "forgetting", "teacher"]
"""The tasks of an evaluation: those of the run; held-out ones; the forgetting set; those of the run, with context."""

GuardAction = Literal["ok", "warn", "hold", "stop"]


class Json:
    """Base of what is written as JSON."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")


@dataclass(frozen=True, slots=True)
class StepRecord(Json):
    """One step: a generation batch, and all updates (optimiser steps) made from it. `completions_sampled`, `tokens` and
    `wall_s` (seconds) are totals since the start of the run.

    `reward` and `accuracy` are means over the step's scored rollouts (accuracy: the share that counts as solved),
    `log_ratio` the mean |log q − log p| in nats of the sampled tokens that were distilled, `dropped` counts rollouts by
    reason, `contexts` samples by kind of context, `seconds` the time spent by phase, `extra` what one method measures,
    `signals` what guards compare (`training/signals.py`).
    """

    step: int
    completions_sampled: int
    tokens: int
    wall_s: float
    reward: float
    accuracy: float
    loss: float
    grad_norm: float
    lr: float
    log_ratio: float = 0.0
    completion_tokens: float = 0.0
    truncated: float = 0.0
    samples: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    contexts: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)
    event: Literal["step"] = "step"

    @property
    def informative(self) -> int:
        """Samples that carried an advantage or a teacher, and not the reference divergence alone."""
        return self.samples - int(self.extra.get("reference_only", 0))


@dataclass(frozen=True, slots=True)
class EvalRecord(Json):
    """One evaluation of the weights after `step` steps. `solved` of `tasks` were right more often than not."""

    step: int
    completions_sampled: int
    wall_s: float
    split: EvalSplit
    accuracy: Estimate
    tasks: int = 0
    solved: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)
    event: Literal["eval"] = "eval"


@dataclass(frozen=True, slots=True)
class PreflightRecord(Json):
    """The context gain before the first step, on tasks of the evaluations: accuracies `bare` and `with_context`, their
    paired difference, and `p` of the exact one-sided test that it is above 0."""

    tasks: int
    bare: float
    with_context: float
    gain: Estimate
    p: float
    decision: Literal["go", "undecided", "refuse"]
    reason: str
    step: int = 0
    event: Literal["preflight"] = "preflight"


@dataclass(frozen=True, slots=True)
class Finding:
    """A number beyond its limit. Signals of one `family` have one cause, and count as one."""

    signal: str
    family: str
    value: float
    threshold: float
    reason: str


@dataclass(frozen=True, slots=True)
class GuardRecord(Json):
    """The decision of the guards after a step, where it differs from the one before. The trouble began after step
    `since`; `restored` is the step of the checkpoint that a stop brought back (None: there was none)."""

    step: int
    action: GuardAction
    findings: tuple[Finding, ...] = ()
    since: int = 0
    restored: int | None = None
    event: Literal["guard"] = "guard"

    def __str__(self) -> str:
        """The action, and a line for each finding."""
        lines = [f"{one.signal} {one.value:.3g} (limit {one.threshold:.3g}): {one.reason}" for one in self.findings]
        return "\n  ".join([f"guards, step {self.step}: {self.action}", *lines])


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn of a conversation: `read`, the ids that the model read since its turn before (a whole prompt where
    `fresh`), the text and the number of tokens that it sampled, and the messages that followed, as role and content.

    `teacher_read` are the ids that the teacher read in place of `read`, with a context in them; empty: the same ones.
    `context` holds the texts of a context of this turn alone, by section.
    """

    read: tuple[int, ...]
    completion: str
    tokens: int
    stop: str
    fresh: bool = False
    observation: tuple[tuple[str, str], ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    teacher_read: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RolloutRecord(Json):
    """One rollout: how it was scored, and what was learned from it.

    `reward` is None when the environment could not score it; `fault` is then the traceback. `stage` is "answer" for an
    answer to the task's question. `context` holds the texts that only the teacher read, by section of its prompt.
    `prompt_ids` and `teacher_prompt_ids` are the prompts of student and teacher, token by token: those of its first
    training sample; without one, the prompt that it was sampled from, and none. `token_texts` [T] are the texts of its
    `token_ids` ("" for the first parts of a letter of several tokens).

    `log_ratio` [T] is log q − log p of each sampled token in nats, empty when the rollout was not distilled;
    `log_ratio_at` names the student's weights, those at the start of the step (empty in older runs: those just before
    its update). `policy_version` counts the steps that the sampling weights had been trained for. `right` is whether an
    answer that passed the public tests also passed the private ones (False: its `reward` is 0 for that); None: they
    were not run. Of a conversation of several `turns`, `completion` is the text of the last one, and all that is by
    token is about the sampled tokens of all turns; `log_ratio` is 0 in turns that were not distilled. `entropy` [T] is
    the student's at each sampled token in nats, at the start of the step and the temperature of the loss, rounded to
    4 digits (NaN in turns that were not trained); empty when the rollout took no part in an update, and in older runs.
    `data_set` is that of the task in a mixture of several.
    """

    step: int
    uid: str
    task: str
    prompt: str
    completion: str
    stop: str
    stage: str = "answer"
    reward: float | None = None
    right: bool | None = None
    feedback: str = ""
    context_kind: str = "none"
    context: Mapping[str, str] = field(default_factory=dict)
    drop: str | None = None
    fault: str = ""
    advantage: float = 0.0
    distil: float = 0.0
    policy_version: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    log_ratio: tuple[float, ...] = ()
    log_ratio_at: Literal["step_start", ""] = ""
    entropy: tuple[float, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    teacher_prompt_ids: tuple[int, ...] = ()
    token_texts: tuple[str, ...] = ()
    turns: tuple[TurnRecord, ...] = ()
    details: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    data_set: str = ""
    event: Literal["rollout"] = "rollout"


@dataclass(frozen=True, slots=True)
class ResumedRecord(Json):
    """The run resumed from the checkpoint of `step`: earlier lines about later steps are void.

    `changes` are the settings that were changed for the rest of the run.
    """

    step: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    event: Literal["resumed"] = "resumed"


@dataclass(frozen=True, slots=True)
class Accuracies:
    """What the weights could do at one moment; None where it was not measured."""

    train_accuracy: Estimate | None = None
    held_out_accuracy: Estimate | None = None
    forgetting_accuracy: Estimate | None = None
    teacher_accuracy: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Summary(Json):
    """A finished run in one value: what was run, what it cost, and what changed."""

    method: str
    model: str
    env: str
    seed: int
    steps: int
    completions_sampled: int
    tokens: int
    wall_s: float
    before: Accuracies
    after: Accuracies

    def __str__(self) -> str:
        """A line on the run, and one for each accuracy before and after it."""
        names = [item.name for item in fields(Accuracies)]
        pairs = [(name, getattr(self.before, name), getattr(self.after, name)) for name in names]
        cost = f"{self.steps} steps, {self.completions_sampled:,} completions, {self.wall_s:.0f} s"
        changes = [f"  {name.replace('_', ' ')}: {old or '–'} → {new or '–'}" for name, old, new in pairs if old or new]
        return "\n".join([f"{self.method} on {self.env}, {self.model}: {cost}", *changes])


def numbers_of(record: StepRecord | EvalRecord) -> dict[str, float]:
    """The numbers of a record by the names under which they are logged."""
    if isinstance(record, EvalRecord):
        found = record.accuracy
        values = {"accuracy": found.value, "low": found.low, "high": found.high, "solved": record.solved}
        return {f"eval/{record.split}/{name}": value for name, value in values.items()}
    return {name: value for name, value in columns_of(record).items() if name != "step"}


def columns_of(record: Record) -> dict[str, Any]:
    """The fields of a record as the columns of a table: those of a table within as `extra/divergence`."""
    columns: dict[str, Any] = {}
    for name, value in asdict(record).items():
        if isinstance(value, Mapping):
            columns |= {f"{name}/{key}": one for key, one in value.items()}
        elif name != "event":
            columns[name] = value
    return columns


Record: TypeAlias = StepRecord | EvalRecord | PreflightRecord | GuardRecord | RolloutRecord | ResumedRecord
AnyRecord: TypeAlias = Annotated[Record, Field(discriminator="event")]


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Reads and writes values of one kind."""
    return TypeAdapter(kind)


def to_json(value: object, *, indent: int | None = None) -> str:
    """A record as JSON, on one line unless `indent` is given."""
    kind: Any = type(value)
    return adapter(kind).dump_json(value, indent=indent).decode()


def record_from_json(text: str) -> Record:
    """The record that a line holds. Fields this version does not know are ignored. Raises pydantic's ValueError."""
    record: Record = value_from_json(AnyRecord, text)
    return record


def value_from_json(kind: Any, text: str) -> Any:
    """A value of `kind`, such as `Summary`, from its JSON. Raises pydantic's ValueError."""
    reads = adapter(kind)
    return reads.validate_python(renamed_record(text)) if has_old_names(text) else reads.validate_json(text)
