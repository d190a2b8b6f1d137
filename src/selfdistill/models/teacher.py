"""Teachers: which weights read the privileged context, and how those that are kept follow the student.

A rule names the weights (`Teacher.views`) and moves the kept ones. The kept weights, the *shadow*, are copies of the
trainable parameters alone: under LoRA that is the adapter, and a fresh adapter's shadow is the base model. Where ranks
divide a policy they are those of the own shards. They are float32; where they never move, in the precision of forward
passes if that holds them exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from selfdistill.errors import Ranged, RunError, option
from selfdistill.models.policy import Policy
from selfdistill.models.precision import MASTER, compact

Source: TypeAlias = Literal["shadow", "student", "other"]


@dataclass(frozen=True, slots=True)
class View:
    """One forward pass of a teacher: which weights, and their exponent in the product of the views' distributions.
    Exponents sum to 1."""

    weight: float
    source: Source


@dataclass(frozen=True, slots=True)
class Frozen:
    """The teacher is the student at the start of the run."""


@dataclass(frozen=True, slots=True)
class Ema(Ranged):
    """After every step φ ← (1 − rate)·φ + rate·θ, φ the teacher and θ the student: once per generation batch, after its
    last update, and not after a step without updates.

    `rate` is the share of the *student*: 0.05 follows slowly, 0 never, 1 copies; often written as a decay of 0.95.
    Raises `ConfigError`.
    """

    rate: float = option(0.05, "share of the student taken in once a step, after its last update", least=0, most=1)


@dataclass(frozen=True, slots=True)
class Snapshot(Ranged):
    """The teacher becomes a copy of the student after every `every`-th step; steps without updates do not count.
    Raises `ConfigError`."""

    every: int = option(10, "steps (generation batches, not updates) between copies of the student", least=1)


@dataclass(frozen=True, slots=True)
class TrustRegion(Ranged):
    """q ∝ q_ref^(1 − rate) · q_θ^rate: the student at the start and the student now, both reading the context.

    `rate` is the share of the *student*: 0 is `Frozen`, 1 is `Live`. Costs two forward passes. The paper mixes in the
    student of every update; here both are read once per step, with the weights at its start. Raises `ConfigError`.
    Source: Hübotter et al. 2026 (arXiv 2601.20802), app. A.2.
    """

    rate: float = option(0.05, "exponent of the student in the product with its start", least=0, most=1)


@dataclass(frozen=True, slots=True)
class Live:
    """The teacher is the student itself, with its weights at the start of the step, reading the context."""


@dataclass(frozen=True, slots=True)
class Other:
    """The teacher is another model with the same tokenizer: on-policy distillation from a stronger one.
    Source: Agarwal et al., arXiv 2306.13649."""

    model: str = option("", "directory or hub name of the teacher's model")


TeacherRule: TypeAlias = Frozen | Ema | Snapshot | TrustRegion | Live | Other


class Teacher:
    """A rule with the weights that it keeps for one policy, and the number of steps that moved them.

        teacher = Teacher(Ema(0.05), policy)
        for view in teacher.views():
            with teacher.applied(policy, view) as reader:
                hidden_ND, head = reader.answer_hidden(pairs), reader.head().detached()
        ...                                             # all updates of the step
        teacher.update(policy)

    The shadow starts as the student's parameters; while the teacher is `held` it does not move. `other` is the model of
    an `Other` rule. `on_host`: the shadow waits in the memory of the host until it reads.
    """

    def __init__(
        self, rule: TeacherRule, policy: Policy, *, other: Policy | None = None, on_host: bool = False
    ) -> None:
        assert isinstance(rule, Other) == (other is not None), "an Other rule, and no other, comes with its model"
        self.rule = rule
        self.other = other
        self.batches = 0
        self.held = False
        self._applied = False
        self._on_host = on_host
        self._fixed_in = policy.dtype if isinstance(rule, Frozen | TrustRegion) else MASTER
        kept = {} if isinstance(rule, Live | Other) else policy.shards()
        self._shadow = {name: self._copy(value) for name, value in kept.items()}

    def views(self) -> tuple[View, ...]:
        """The forward passes of the teacher's prompt."""
        if isinstance(self.rule, TrustRegion):
            both = (View(1.0 - self.rule.rate, "shadow"), View(self.rule.rate, "student"))
            return tuple(view for view in both if view.weight > 0)  # a view of weight 0 would cost a pass
        live = isinstance(self.rule, Live)
        return (View(1.0, "student" if live else "other" if isinstance(self.rule, Other) else "shadow"),)

    @contextmanager
    def applied(self, policy: Policy, view: View) -> Iterator[Policy]:
        """Yields a policy that computes with the view's weights, without gradients. Cannot be nested.

        The parameters point at the shadow and, also after an exception, back at the student's own tensors, which are
        never written. A head taken inside stays valid until `update`, that of a student view until the optimiser step.
        """
        assert not self._applied, "a teacher is already applied"
        assert not torch.is_autocast_enabled(policy.device.type), "autocast has cached copies of the student"
        student = policy.put(self._shadow if view.source == "shadow" else {})
        self._applied = True
        try:
            with torch.no_grad():
                yield self.other if view.source == "other" and self.other else policy
        finally:
            policy.put(student)
            self._applied = False

    @property
    def moves(self) -> bool:
        """Whether the rule moves the shadow at all."""
        return isinstance(self.rule, Snapshot) or (isinstance(self.rule, Ema) and self.rule.rate > 0)

    @property
    def next_rate(self) -> float:
        """The share of the student that the next `update` takes in."""
        if isinstance(self.rule, Snapshot):
            return float(not self.held and (self.batches + 1) % self.rule.every == 0)
        return self.rule.rate if isinstance(self.rule, Ema) and not self.held else 0.0

    @torch.no_grad()
    def update(self, policy: Policy) -> None:
        """Moves the shadow towards the student. Call once per step, after its last update."""
        rate = self.next_rate if isinstance(self.rule, Ema | Snapshot) else 0.0
        self.batches += 1
        if rate > 0:
            for name, value in policy.shards().items():
                self._shadow[name].lerp_(value.to(self._shadow[name]), rate)

    def _copy(self, value: Tensor) -> Tensor:
        """A copy for the shadow."""
        place = "cpu" if self._on_host else value.device
        return compact(value.to(place, MASTER, copy=True), self._fixed_in)

    def state_dict(self) -> dict[str, Tensor]:
        """The shadow, by parameter name, and the number of batches. Not a copy: write it before the next `update`."""
        shadow = {f"shadow.{name}": value for name, value in self._shadow.items()}
        return {"batches": torch.tensor(self.batches), **shadow}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a `state_dict`, bit-identical. Raises `RunError` for one of another model or rule."""
        own = self.state_dict()
        wanted, found = ({name: tuple(x.shape) for name, x in tensors.items()} for tensors in (own, state))
        if wanted != found:
            differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            what, got = "the saved teacher does not fit this model", f"{len(found)} tensors, not {len(wanted)}"
            why, do = f"first difference: {differing[0]}", "resume with its model, LoRA options and teacher"
            raise RunError(what, got=got, why=why, do=do)
        self.batches = int(state["batches"])
        for name, value in self._shadow.items():
            self._shadow[name] = self._copy(state[f"shadow.{name}"].to(value.device))
