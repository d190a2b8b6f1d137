"""What scale costs and gives: where a step's seconds go, sampling against vLLM alone and `generate`, weights to
samplers, one and two learners.

    OMP_NUM_THREADS=1 python -m benchmarks.scale --model DIR --vllm-python .vllm/bin/python
    python -m benchmarks.scale --tiny                      # the embedded model, on a CPU

Each case runs in a process of its own, and stands beside what `selfdistill train --plan` models. A result is written as
soon as it is there, and what is there is not measured again. `benchmarks/gpu.sh` runs the same on a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.against_trl.__main__ import wide_console
from benchmarks.against_trl.board import GENERATE, OURS, Board, Entry
from benchmarks.real_model import questions
from selfdistill.config import from_settings
from selfdistill.models.checkpoint import save_weights
from selfdistill.models.load import load_policy
from selfdistill.models.planning import model_shape
from selfdistill.scale.costs import step_costs

VLLM = "vLLM alone"
NO_VLLM = "no --vllm-python was given; `make vllm` makes one for a CPU"
NO_MODEL = "no --model was given"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of the model; left out with --tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/scale"), help="folder of the results")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--only", action="append", choices=["step", "rollouts"])
    parser.add_argument("--case-s", type=float, default=3600.0, help="most seconds of one case")
    parser.add_argument("--tiny", action="store_true", help="the embedded model, in minutes on a CPU")
    return parser.parse_args()


def step_entries(model: str, vllm_python: str | None, *, tiny: bool, gpus: int = 0) -> list[Entry]:
    """Three steps of SDPO as a user runs them: one learner, two, and vLLM as the sampler."""
    new_tokens = 48 if tiny else 256
    settings: dict[str, Any] = {
        "method": "sdpo", "env": "verbs", "steps": 3, "tasks_per_step": 4 if tiny else 16, "rollouts_per_task": 8,
        "sampling": {"max_new_tokens": new_tokens}, "evaluation": {"every": 0, "tasks": 1}, "checkpoint_every": 0,
        "guards": {"action": "off"},
    }  # fmt: skip
    config = from_settings(settings | {"model": model})
    costs = step_costs(config, model_shape(model, None), prompt=150)
    label = f"SDPO, {costs.answers} answers of at most {new_tokens} tokens"
    flops = sum(costs.flops.values())
    command = str(Path(vllm_python).absolute().with_name("vllm")) if vllm_python else "vllm"
    sampler = {"command": command, "arguments": ["--enforce-eager"] if tiny else []}
    two = "" if gpus != 1 else "one GPU"
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("one learner", {}, ""),
        ("two learners", {"scale": {"learners": 2}}, two),
        ("vLLM samples", {"scale": {"sampler": sampler}}, "" if vllm_python else NO_VLLM),
    )
    return [
        Entry("Steps", label, side, "sampling", {"kind": "train", "model": model, "settings": settings | own},
              flops=flops, skipped=skipped)
        for side, own, skipped in cases
    ]  # fmt: skip


def rollout_entries(model: str, vllm_python: str | None, *, tiny: bool) -> list[Entry]:
    """Answers to questions of different lengths: this library, `generate`, and vLLM without us."""
    rows, new_tokens = (8, 16) if tiny else (64, 128)
    case: dict[str, Any] = {
        "kind": "rollouts",
        "model": model,
        "dtype": "float32" if tiny else "bfloat16",
        "repeats": 1,
        "eager": tiny,
    }
    case |= questions(model, rows) | {"new_tokens": new_tokens}
    case["longest"] = max(map(len, case["prompts"])) + new_tokens
    label, python = f"{rows} questions, up to {new_tokens} tokens", vllm_python or "python"
    return [
        Entry("Rollouts", label, OURS, "sampling", case | {"sampler": "ours"}),
        Entry("Rollouts", label, GENERATE, "sampling", case | {"sampler": "generate"}),
        Entry("Rollouts", label, VLLM, "vllm_alone", case, python=python, skipped="" if vllm_python else NO_VLLM),
    ]


def main() -> None:
    """Measures what is not measured yet, and prints the tables."""
    chosen, console = arguments(), wide_console()
    if not chosen.tiny and not chosen.model:
        raise SystemExit(NO_MODEL)
    model = str(Path(chosen.model).expanduser().resolve()) if chosen.model else str((chosen.out / "model").resolve())
    if chosen.tiny:
        save_weights(Path(model), load_policy("sapling-small", device="cpu", dtype="float32"))
    found: list[Entry] = []
    if "step" in (chosen.only or ["step"]):
        found += step_entries(model, chosen.vllm_python, tiny=chosen.tiny)
    if "rollouts" in (chosen.only or ["rollouts"]):
        found += rollout_entries(model, chosen.vllm_python, tiny=chosen.tiny)
    board = Board(chosen.out, found, say=console.print)
    board.measure(float("inf"), chosen.case_s)
    for sheet in board.sheets():
        console.print(sheet.table())


if __name__ == "__main__":
    main()
