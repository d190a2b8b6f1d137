"""Runs that are killed with signal 9 at given moments. A script, so that nothing of the test's process is shared:

    python killed_runs.py SETTINGS.json OUT

Torch is loaded once; each run is a fork that dies. Prints one line of JSON: how each of them ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfdistill.config import from_settings
from selfdistill.models import checkpoint, policy, resumable
from selfdistill.models.load import load_policy
from selfdistill.runs import store
from selfdistill.training import loop as train
from selfdistill.training import recording, steps, update


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nth_call(owner: Any, name: str, number: int, *, after: bool = False) -> Callable[[], None]:
    """Dies at (or right after) the `number`-th call of a function."""

    def arm() -> None:
        real, calls = getattr(owner, name), [0]

        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number and not after:
                die()
            result = real(*arguments, **options)
            if calls[0] == number:
                die()
            return result

        setattr(owner, name, call)

    return arm


def half_a_line(number: int) -> Callable[[], None]:
    """Dies when half of the `number`-th batch of records is on the disk."""

    def arm() -> None:
        real, calls = store._write, [0]

        def write(file: Any, text: str, path: Path) -> None:
            calls[0] += 1
            if calls[0] == number:
                real(file, text[: len(text) // 2], path)
                die()
            real(file, text, path)

        store._write = write

    return arm


MOMENTS: dict[str, Callable[[], None]] = {
    "before anything was saved": nth_call(update, "update_policy", 2),
    "while the first measurements are written": half_a_line(2),
    "while sampling": nth_call(policy.Policy, "backbone", 220),
    "between two updates": nth_call(update, "update_policy", 6),
    "after the last update of a step": nth_call(steps, "step_record", 3),
    "while records are written": half_a_line(9),
    "after the model of a checkpoint": nth_call(resumable, "write_model", 2, after=True),
    "before a checkpoint is durable": nth_call(checkpoint, "_make_durable", 2),
    "before the rename": nth_call(checkpoint, "_put_in_place", 2),
    "right after the rename": nth_call(checkpoint, "_put_in_place", 2, after=True),
    "while old checkpoints are removed": nth_call(checkpoint.shutil, "rmtree", 3),
    "after the last checkpoint": nth_call(recording, "summarise", 1),
}
RANDOM = {f"at a random moment ({number})": number for number in range(4)}


def main(settings: Path, out: Path) -> None:
    torch.set_num_threads(1)
    tree = json.loads(settings.read_text())
    load_policy(tree["model"], device="cpu")  # everything is imported once, before the first fork
    ends = {}
    for moment in [*MOMENTS, *RANDOM]:
        child = os.fork()
        if child == 0:
            MOMENTS.get(moment, lambda: None)()
            train.train(from_settings({**tree, "out": str(out / moment)}))
            os._exit(0)
        if moment in RANDOM:
            time.sleep(random.Random(moment).uniform(0.1, 1.2))
            os.kill(child, signal.SIGKILL)
        ends[moment] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(ends))  # noqa: T201 (this is its result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
