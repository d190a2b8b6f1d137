"""Whose weights read the privileged context: the teacher's rule, and the weights it keeps.

A rule says which weights speak (`views`) and how the kept ones follow the student. The kept weights, the *shadow*,
are float32 copies of the trainable parameters alone: under LoRA that is the adapter, and a fresh adapter's shadow is
the base model itself, at no further cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from selfdistill.errors import ConfigError, RunError
from selfdistill.losses.head import Head
from selfdistill.models.policy import Policy
from selfdistill.options import option

Source: TypeAlias = Literal["shadow", "student", "other"]


@dataclass(frozen=True, slots=True)
class View:
    """One reading of the teacher's prompt: with whose weights, and its exponent in the product of the views' opinions
    (log-probabilities are averaged with these weights, which sum to 1)."""

    weight: float
    source: Source


@dataclass(frozen=True, slots=True)
class Frozen:
    """The teacher is the student as it was at the start."""

    kind: ClassVar[str] = "frozen"


@dataclass(frozen=True, slots=True)
class Ema:
    """After every step φ ← (1 − rate)·φ + rate·θ, φ the teacher and θ the student: once for a generation batch, after
    the last of its updates, and not after a step that made none.

    `rate` is the share of the *student* that the teacher takes in: 0.05 follows slowly, 0 never, 1 copies. (Elsewhere
    the same teacher may be written as a decay of 0.95.) Raises `ConfigError`.
    """

    kind: ClassVar[str] = "ema"
    rate: float = option(
        0.05, "share of the student that the teacher takes in once a step, after its last update", least=0, most=1
    )

    def __post_init__(self) -> None:
        _check_share(self.rate, "the rate of an EMA teacher")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The teacher becomes a copy of the student after every `every`-th step; steps that made no update do not count.
    Raises `ConfigError`."""

    kind: ClassVar[str] = "snapshot"
    every: int = option(10, "steps (generation batches, not updates) between copies of the student", least=1)

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or self.every < 1:
            why = "it counts steps"
            raise ConfigError(
                "a snapshot teacher needs a whole number of at least 1", got=self.every, why=why, do="try 10"
            )


@dataclass(frozen=True, slots=True)
class TrustRegion:
    """q ∝ q_ref^(1 − rate) · q_θ^rate: the student at the start and the student now, both reading the context.

    `rate` is the share of the *student*: 0 is `Frozen`, 1 is `Live`. Costs two forward passes. Where the paper mixes in
    the student as it is at every update, both are read once in a step: "now" is the start of the step, also for its
    later updates. Raises `ConfigError`.
    Source: Hübotter et al. 2026 (arXiv 2601.20802), app. A.2.
    """

    kind: ClassVar[str] = "trust_region"
    rate: float = option(0.05, "exponent of the student in the product with its start", least=0, most=1)

    def __post_init__(self) -> None:
        _check_share(self.rate, "the rate of a trust-region teacher")


@dataclass(frozen=True, slots=True)
class Live:
    """The teacher is the student itself, as it is at the start of a step, reading the context."""

    kind: ClassVar[str] = "live"


@dataclass(frozen=True, slots=True)
class Other:
    """Another model reads the context, by its own weights: on-policy distillation from a stronger one, which must have
    the same tokenizer. Raises `ConfigError`. Source: Agarwal et al., arXiv 2306.13649."""

    kind: ClassVar[str] = "other"
    model: str = option("", "directory or hub name of the teacher's model")


TeacherRule: TypeAlias = Frozen | Ema | Snapshot | TrustRegion | Live | Other


def _check_share(rate: float, what: str) -> None:
    if not 0 <= rate <= 1:
        why = "it is the share of the student that the teacher takes in"
        raise ConfigError(f"{what} must be between 0 and 1", got=rate, why=why, do="try 0.05")


class Teacher:
    """A rule at work on one policy: the shadow it keeps, and how many steps with an update it has seen.

        teacher = Teacher(Ema(0.05), policy)
        for view in teacher.views():
            with teacher.applied(policy, view) as reader:
                hidden_ND = reader.answer_hidden(pairs)
            head = teacher.head(policy, view)
        ...                                             # all updates of the step
        teacher.update(policy)

    The shadow starts as the student's own parameters. `other` is the model of an `Other` rule.
    """

    def __init__(
        self,
        rule: TeacherRule,
        policy: Policy,
        *,
        other: Policy | None = None,
    ) -> None:
        assert isinstance(rule, Other) == (other is not None), "an Other rule, and no other, comes with its model"
        self.rule = rule
        self.other = other
        self.batches = 0
        self._applied = False
        kept = {} if isinstance(rule, Live | Other) else policy.trainable()
        self._shadow = {name: _float32_copy(value) for name, value in kept.items()}

    def views(self) -> tuple[View, ...]:
        """Which weights read the teacher's prompt, and how much each counts."""
        if isinstance(self.rule, Live):
            return (View(1.0, "student"),)
        if isinstance(self.rule, Other):
            return (View(1.0, "other"),)
        if isinstance(self.rule, TrustRegion):
            both = (View(1.0 - self.rule.rate, "shadow"), View(self.rule.rate, "student"))
            return tuple(view for view in both if view.weight > 0)  # a view that counts for nothing costs a pass
        return (View(1.0, "shadow"),)

    @contextmanager
    def applied(self, policy: Policy, view: View) -> Iterator[Policy]:
        """Inside, the policy that this yields computes with the view's weights and without gradients.

        The parameters are pointed at the shadow and back again, so that the student's bits are never touched, also
        when the body raises. Cannot be nested.
        """
        assert not self._applied, "a teacher is already applied"
        assert not torch.is_autocast_enabled(policy.device.type), "autocast would go on with its copies of the student"
        parameters = policy.trainable() if view.source == "shadow" else {}
        student = {name: value.data for name, value in parameters.items()}
        self._applied = True
        try:
            for name, value in parameters.items():
                value.data = self._shadow[name].to(value.device, value.dtype)
            with torch.no_grad():
                yield self.other if view.source == "other" and self.other else policy
        finally:
            for name, value in parameters.items():
                value.data = student[name]
            self._applied = False

    def head(self, policy: Policy, view: View) -> Head:
        """The head that belongs to the view's hidden states, outside of `applied` too; never carries a gradient.

        It looks at the weights it came from. Where the head is trained, use a student view's before the next optimiser
        step, and a shadow view's before the next `update`.
        """
        if view.source == "other" and self.other:
            return self.other.head().detached()
        head = policy.head()
        if view.source == "student":
            return head.detached()
        names = {value.data_ptr(): name for name, value in policy.trainable().items()}

        def shadowed(value: Tensor) -> Tensor:
            """`value` is a parameter, or its first rows."""
            name = names.get(value.data_ptr())  # a head that is not trained, as under LoRA, has no shadow
            return value.detach() if name is None else self._shadow[name][: len(value)].to(value.device, value.dtype)

        bias_V = None if head.bias_V is None else shadowed(head.bias_V)
        return Head(shadowed(head.weight_VD), bias_V, head.softcap, head.scale)

    @torch.no_grad()
    def update(self, policy: Policy) -> None:
        """Follows the student. Call once in a step, after its last update."""
        self.batches += 1
        rate = self._rate()
        if rate == 0:
            return
        for name, value in policy.trainable().items():
            shadow = self._shadow[name]
            shadow.lerp_(value.detach().to(shadow), rate)

    def _rate(self) -> float:
        """How much of the student the shadow takes in now."""
        if isinstance(self.rule, Ema):
            return self.rule.rate
        if isinstance(self.rule, Snapshot):
            return float(self.batches % self.rule.every == 0)
        return 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """The shadow, by parameter name, and the number of batches. Not a copy: write it before the next `update`."""
        return {
            "batches": torch.tensor(self.batches),
            **{f"shadow.{name}": value for name, value in self._shadow.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave, to the bit. Raises `RunError` when it belongs to another model or rule."""
        wanted = {f"shadow.{name}": tuple(value.shape) for name, value in self._shadow.items()}
        found = {name: tuple(value.shape) for name, value in state.items() if name != "batches"}
        if wanted != found or "batches" not in state:
            differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise RunError(
                "the saved teacher does not fit this model",
                got=f"{len(found)} tensors",
                why=f"{len(wanted)} were expected; first difference: {(differing or ['batches'])[0]}",
                do="resume with the model, the LoRA options and the teacher that the run began with",
            )
        self.batches = int(state["batches"])
        for name, value in self._shadow.items():
            value.copy_(state[f"shadow.{name}"])


def _float32_copy(value: nn.Parameter) -> Tensor:
    return value.detach().to(torch.float32, copy=True)
