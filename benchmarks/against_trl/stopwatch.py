"""Which part of an update the seconds go to. Times the calls that compute, and leaves the rest as overhead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

import selfdistill.training.update as step
from benchmarks.against_trl.meter import timer, wait
from selfdistill.losses import Head
from selfdistill.models.policy import Policy

MODEL = ("layers, forward", "head and loss", "layers, backward", "optimiser")


class Stopwatch:
    """Inside a `with`, every call of the timed functions adds its seconds under its name; calls inside a timed call
    belong to the outer one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._busy = False
        self._undo: list[tuple[Any, str, Any]] = []
        self._targets: list[tuple[Any, str, str]] = [
            (Policy, "backbone", MODEL[0]),
            (Head, "logits", MODEL[1]),
            (step, "fused_loss", MODEL[1]),
            (torch.Tensor, "backward", MODEL[2]),
            (torch.nn.utils, "clip_grad_norm_", MODEL[3]),
            (optimizer, "step", MODEL[3]),
        ]

    def __enter__(self) -> Stopwatch:
        for owner, name, label in self._targets:
            original = getattr(owner, name)
            self._undo.append((owner, name, original))
            setattr(owner, name, self._timed(original, label))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, original in self._undo:
            setattr(owner, name, original)

    def _timed(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._busy:
                return function(*arguments, **options)
            self._busy = True
            start = timer()
            try:
                return function(*arguments, **options)
            finally:
                wait()
                self.seconds[label] += timer() - start
                self._busy = False

        return call
