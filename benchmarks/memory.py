"""The planned peak of memory against the measured one: `python benchmarks/memory.py MODEL [KEY=VALUE …] [--eval]`.

Runs two steps of SDPO, or an evaluation, in this process, with answers that are as long as they may be and without
checkpoints, and prints a line of JSON. Start it once for every figure: what a process has freed stays in its peak.
Linux only (/proc/self/status); on a CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import selfdistill as sd
from selfdistill.config import RunConfig, load_config
from selfdistill.models.policy import Policy
from selfdistill.runs import no_callback
from selfdistill.training import evaluation, loop
from selfdistill.training.planner import plan_memory
from selfdistill.training.session import Session, open_renderer

WORDS = "seven plus five and nine less two times three over four"


def reward(task: sd.Task, completion: str) -> tuple[float, str]:
    """Feedback for every answer."""
    return 0.0, "The answer is wrong: it should end with a number. Check every step."


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status, such as VmRSS or VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main(model: str, *given: str) -> None:
    """Prints what was planned and what was measured, in MiB."""
    evaluates, overrides = "--eval" in given, [item for item in given if "=" in item]
    tasks = [sd.Task(f"{n}", (sd.Message("user", f"What is {n} {WORDS}?"),), {}) for n in range(8)]
    own = [
        "evaluation.tasks=1",
        "evaluation.every=0",
        "guards.preflight=off",
        "steps=2",
        "context.max_prompt_tokens=128",
        *overrides,
    ]
    config = load_config(None, [f"model={model}", *own])
    made = Policy.__post_init__

    def endless(policy: Policy) -> None:
        made(policy)
        policy.end_ids = frozenset()

    Policy.__post_init__ = endless  # type: ignore[method-assign, assignment]
    Session.save = lambda *_, **__: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        run_config = with_values(config, tasks, folder)
        renderer = open_renderer(run_config, no_callback)
        longest = max(len(renderer.prompt(task.messages)) for task in tasks)
        plan = plan_memory(run_config, prompt_tokens=longest, learns=not evaluates)
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        before = resident("VmRSS")
        notes: list[str] = []
        if evaluates:
            evaluation.measure(run_config, splits=("train",))
        else:
            loop.train(run_config, lambda event: notes.append(str(event)))
        measured = resident("VmHWM") - before
    found: dict[str, str | float] = {
        "model": Path(model).name,
        "settings": " ".join([*overrides, *(["eval"] if evaluates else [])]),
    }
    found |= {"planned": plan.peak / 2**20, "measured": measured / 2**20, "ratio": plan.peak / measured}
    found |= {"phase": plan.phase, "before": before / 2**20}
    sys.stdout.write(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}) + "\n")
    sys.stderr.write(f"{plan}\n")


def with_values(config: RunConfig, tasks: list[sd.Task], folder: str) -> RunConfig:
    """The settings with these tasks, the reward above and a directory."""
    from dataclasses import replace

    from selfdistill.config import Values
    from selfdistill.envs.rewards import as_environment

    return replace(config, out=f"{folder}/run", values=Values(env=as_environment(reward), tasks=tasks))


if __name__ == "__main__":
    main(*sys.argv[1:])
