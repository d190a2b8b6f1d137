"""This library's side: one case from the command line, one line of numbers back.

Legend: N answer positions, T tokens of an answer, V vocabulary, D hidden size.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.against_trl.meter import give, measure
from benchmarks.against_trl.ratios import enough
from benchmarks.against_trl.stopwatch import Stopwatch
from benchmarks.against_trl.work import Row, rows_of
from selfdistill.config import from_settings
from selfdistill.errors import SelfDistillError
from selfdistill.losses import LossSpec, TeacherStates, TokenWeights, denominators, fused_loss
from selfdistill.methods import get_method
from selfdistill.models.load import LoraOptions, load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Frozen, Live, Teacher
from selfdistill.runs import Event, Phase, StepEnd
from selfdistill.training.forward import teacher_pass
from selfdistill.training.loop import train
from selfdistill.training.update import UpdateBatch, token_weights, update_policy
from selfdistill.types import TrainingSample

Case = dict[str, Any]


def given_hidden(case: Case, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hidden states [T, D] of student and teacher: the same numbers on both sides."""
    generator = torch.Generator().manual_seed(case["seed"])
    student_TD = torch.randn(case["tokens"], size, generator=generator)
    teacher_TD = student_TD + 0.5 * torch.randn(case["tokens"], size, generator=generator)
    return student_TD.to(device), teacher_TD.to(device)


def signal_of(case: Case) -> LossSpec:
    """Top-k and a tail bucket, or the full vocabulary."""
    options = {"alpha": case["alpha"], "top_k": case["top_k"] if case["mode"] == "topk" else 0}
    return get_method("sdpo", options).loss_spec(temperature=1.0)


def loss_case(case: Case) -> dict[str, Any]:
    """The loss section: from hidden states through the head, forward and backward."""
    policy = load_policy(case["model"])
    head, tokens = policy.head(), case["tokens"]
    student_TD, teacher_TD = given_hidden(case, head.weight_VD.shape[1], policy.device)
    student_TD.requires_grad_(True)
    teacher = Teacher(Frozen(), policy)
    with teacher.applied(policy, teacher.views()[0]) as reader:
        view = TeacherStates(teacher_TD, reader.head().detached())
    token_T = torch.arange(tokens, device=policy.device) % head.vocabulary
    weight_T = torch.full((tokens,), 1.0 / tokens, device=policy.device)
    loss_spec = signal_of(case)

    def work() -> dict[str, float]:
        student_TD.grad = head.weight_VD.grad = None
        result = fused_loss(loss_spec, student_TD, head, token_T, TokenWeights(distil_N=weight_T), teacher=[view])
        result.loss.backward()  # type: ignore[no-untyped-call]
        assert student_TD.grad is not None
        assert head.weight_VD.grad is not None
        return norms(result.loss, student_TD.grad, head.weight_VD.grad)

    return measure(work, warm=case["warm"], repeats=case["repeats"])


def norms(loss: Tensor, hidden_grad: Tensor, weight_grad: Tensor) -> dict[str, float]:
    """What both sides must agree on."""
    return {
        "loss": float(loss.detach()),
        "hidden_grad": float(hidden_grad.norm()),
        "weight_grad": float(weight_grad.norm()),
    }


def sample_of(index: int, row: Row) -> TrainingSample:
    """A rollout with a signal."""
    assert row.teacher is not None
    said = (0.0,) * len(row.completion)
    return TrainingSample(f"r{index}", row.prompt, (row.teacher,), row.completion, said, distil=1.0)


def update_case(case: Case) -> dict[str, Any]:
    """A whole update: teacher, student forward and backward, optimiser."""
    lora = LoraOptions(rank=case["lora"]) if case.get("lora") else None
    policy = load_policy(case["model"], lora=lora, dtype=case.get("dtype", "auto"))
    rows = rows_of(case, policy.head().vocabulary)
    teacher = Teacher(Live() if case["teacher"] == "live" else Frozen(), policy)
    update = Update(policy, teacher, rows, case)
    if not (case.get("sample") or case.get("parts")):
        return measure(update, warm=case["warm"], repeats=case["repeats"])
    for _ in range(case["warm"]):
        update()
    # It waits for the device after each part, which costs time: only where the parts are asked for.
    with Stopwatch(update.optimizer) as watch:
        found = measure(update, warm=0, repeats=case["repeats"])
    return found | {"parts": {name: seconds / case["repeats"] for name, seconds in watch.seconds.items()}}


class Update:
    """One update after the other on the same rollouts, and a sampling pass before each where asked for; a call returns
    the losses and norms of gradients so far."""

    def __init__(self, policy: Policy, teacher: Teacher, rows: list[Row], case: Case) -> None:
        self.policy, self.teacher, self.tokens = policy, teacher, case["micro_tokens"]
        self.samples = [sample_of(index, row) for index, row in enumerate(rows) if row.teacher is not None]
        dropped = [len(row.completion) for row in rows if row.teacher is None]
        self.over = denominators([len(s.completion_ids) for s in self.samples], dropped, count_dropped=True)
        self.loss_spec = signal_of(case)
        self.optimizer = torch.optim.AdamW(list(policy.trainable().values()), lr=case["lr"], weight_decay=0.01)
        self.history: list[dict[str, float]] = []
        self.prompts = [row.prompt for row in rows]
        self.sampled = SamplingOptions(max_new_tokens=case["sample"]) if case.get("sample") else None

    def __call__(self) -> list[dict[str, float]]:
        if self.sampled:
            uids = [f"r{index}" for index in range(len(self.prompts))]
            sample(self.policy, self.prompts, self.sampled, seed=1, uids=uids, version=0)
        passes = teacher_pass(self.policy, self.teacher, self.samples, self.tokens)
        specs, share = [self.loss_spec], (self.samples, self.over)
        weights, _, _ = token_weights(specs, "sequence-mean", [share], {}, step=0, memory={})
        batch = UpdateBatch(self.samples, weights, passes, sampler_correction=False)
        report = update_policy(self.policy, self.optimizer, specs, batch, max_grad_norm=1.0, tokens=self.tokens)
        self.history.append({"loss": report.loss, "grad_norm": report.grad_norm})
        return self.history


class TimeIsUp(Exception):
    """Enough was seen."""


class Curve:
    """Keeps (seconds, accuracy) of every step, counted from the first batch that is sampled."""

    def __init__(self, limit_s: float, goal: float) -> None:
        self.limit_s, self.goal, self.began = limit_s, goal, 0.0
        self.points: list[tuple[float, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase) and event.name.startswith("sampling"):
            self.began = self.began or time.monotonic()
        if isinstance(event, StepEnd):
            self.points.append((time.monotonic() - self.began, event.record.accuracy))
            if enough(self.points, self.limit_s, self.goal):
                raise TimeIsUp


def learn_case(case: Case) -> dict[str, Any]:
    """Coined verbs until enough is learned or the time is up: accuracy of each sampled batch against seconds."""
    curve = Curve(case["limit_s"], case["goal"])
    with tempfile.TemporaryDirectory() as folder:
        settings = case["settings"] | {"out": str(Path(folder) / "run")}
        with suppress(TimeIsUp, SelfDistillError):  # what was measured until then is the result
            train(from_settings(settings), curve)
    return {"points": curve.points}


CASES = {"loss": loss_case, "update": update_case, "learn": learn_case}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    give(CASES[given["kind"]](given))
