"""What needs a GPU: updates against TRL's and their share of the peak (MFU), losses of 8,192 tokens, rollouts, a run.

    benchmarks/gpu.sh --out runs/gpu --trl-python trl-venv/bin/python --model DIR --data tasks.jsonl

Random Qwen3 models of 0.6 to 8 billion parameters; from 4 billion on under LoRA, stored in bfloat16. Each case is a
process of its own. Tables are written as soon as a case is measured, cases not run stand as "not measured", and a
second call measures those alone. Stops after `--limit-s` seconds. `--tiny` runs all of it on tiny models.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.against_trl.__main__ import wide_console
from benchmarks.against_trl.board import GENERATE, OURS, TRL, Board, Entry
from benchmarks.against_trl.child import trl_refusal
from benchmarks.against_trl.sections import PEAK_FLOPS
from benchmarks.against_trl.work import FIRST_ID, SIZES, Ragged, update_flops, work_of
from benchmarks.scale import step_entries

LORA = {"4b": 16, "8b": 16}  # rank, of the sizes whose optimiser would not fit
CASE_S = 150.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of models and results")
    parser.add_argument("--trl-python", help="interpreter of a virtual environment with TRL and peft")
    parser.add_argument("--model", help="directory of a small real model, for one run of SDPO")
    parser.add_argument("--data", default="examples/my_tasks.jsonl", help="programming tasks of that run")
    parser.add_argument("--limit-s", type=float, default=480.0, help="seconds for all cases together")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that it runs")
    return parser.parse_args()


def entries(chosen: argparse.Namespace) -> list[Entry]:
    """All cases, the most important first."""
    tiny, refusal = chosen.tiny, trl_refusal(chosen.trl_python)
    python = chosen.trl_python or "python"

    def model(size: str) -> str:
        return str((chosen.out / "models" / ("tiny" if tiny else size)).resolve())

    def pair(section: str, label: str, case: dict[str, Any], flops: float = 0.0) -> list[Entry]:
        return [
            Entry(section, label, OURS, "ours", case, flops=flops),
            Entry(section, label, TRL, "peer", case, python=python, skipped=refusal, flops=flops),
        ]

    ragged = Ragged(4, 24, 0.6, prompt=8, context=16) if tiny else Ragged(20, 2048, prompt=256, context=1024)
    update = {
        "kind": "update", "ragged": asdict(ragged), "seed": 1, "mode": "topk", "top_k": 100, "alpha": 0.5,
        "teacher": "frozen", "lr": 1e-4, "micro_rows": 2, "micro_tokens": 128 if tiny else 8192, "warm": 1,
        "repeats": 1 if tiny else 2,
    }  # fmt: skip
    found: list[Entry] = []
    work = work_of(ragged.rows(SIZES["0.6b"].vocabulary))
    for size in ("8b", "1.7b", "0.6b", "4b"):
        lora = LORA.get(size, 0)
        case = update | {"model": model(size)} | ({"lora": lora, "dtype": "bfloat16"} if lora else {})
        label = f"{size}, {f'LoRA {lora}' if lora else 'all weights'}"
        found += pair("Updates", label, case, update_flops(SIZES[size], work, lora=bool(lora)))
    largest = update | {"model": model("8b"), "lora": LORA["8b"], "dtype": "bfloat16", "parts": True}
    found.append(Entry("Where the seconds of an update go", "8b, LoRA 16", OURS, "ours", largest))
    for mode in ("topk", "full"):
        tokens = 64 if tiny else 8192
        case = {
            "kind": "loss", "model": model("0.6b"), "tokens": tokens, "seed": 1, "mode": mode, "top_k": 100,
            "alpha": 0.5, "warm": 1, "repeats": 1 if tiny else 3,
        }  # fmt: skip
        found += pair("Loss section", f"{mode}, T = {tokens}", case)
    generator = torch.Generator().manual_seed(0)
    lengths = (
        torch.randint(4, 17, (8,), generator=generator) if tiny else torch.randint(64, 513, (64,), generator=generator)
    )
    vocabulary = SIZES["0.6b"].vocabulary
    rollouts = {
        "kind": "rollouts", "model": model("0.6b"), "dtype": "bfloat16", "repeats": 1, "ends": [1], "pad": 0,
        "prompts": [torch.randint(FIRST_ID, vocabulary, (n,), generator=generator).tolist() for n in lengths.tolist()],
        "new_tokens": 4 if tiny else 256,
    }  # fmt: skip
    label = f"{len(lengths)} ragged prompts, {rollouts['new_tokens']} tokens"
    for side, sampler in ((OURS, "ours"), (GENERATE, "generate")):
        found.append(Entry("Rollouts", label, side, "sampling", rollouts | {"sampler": sampler}))
    scale = (
        step_entries("sapling" if tiny else str(chosen.model), None, tiny=tiny, gpus=1) if tiny or chosen.model else []
    )
    return [*found, run_entry(chosen), *scale[:1]]


def written(entry: Entry) -> None:
    """Writes the random model of a case in a process of its own, which gives back the memory that it took."""
    directory = Path(str(entry.case["model"]))
    if directory.parent.name == "models" and not (directory / "config.json").is_file():
        command = [sys.executable, "-m", "benchmarks.against_trl.work", str(directory), directory.name]
        subprocess.run([*command, *(["narrow"] if directory.name in LORA else [])], check=True, capture_output=True)


def run_entry(chosen: argparse.Namespace) -> Entry:
    """Steps of SDPO on the real model; with `--tiny` on the embedded one."""
    name = "sapling" if chosen.tiny and not chosen.model else chosen.model
    settings = {
        "method": "sdpo", "env": "code", "data": str(Path(chosen.data).resolve()), "steps": 1 if chosen.tiny else 3,
        "tasks_per_step": 2 if chosen.tiny else 8, "rollouts_per_task": 2 if chosen.tiny else 8,
        "sampling": {"max_new_tokens": 16 if chosen.tiny else 384}, "checkpoint_every": 0,
        "evaluation": {"every": 0, "tasks": 1},
    }  # fmt: skip
    skipped = "" if name else "no --model was given"
    model = name if name == "sapling" or not name else str(Path(name).expanduser().resolve())
    case = {"kind": "train", "model": model, "settings": settings}
    return Entry("SDPO on a real model", str(name), OURS, "sampling", case, skipped=skipped)


def main() -> None:
    """Measures what is not measured yet until the time is up, and prints the tables."""
    start, chosen, console = time.monotonic(), arguments(), wide_console()
    if not torch.cuda.is_available() and not chosen.tiny:
        raise SystemExit("this machine has no GPU; --tiny runs everything on tiny models")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), 0.0)
    console.print(f"{name}, torch {torch.__version__}")
    board = Board(chosen.out, entries(chosen), peak, console.print, written)
    board.measure(chosen.limit_s - (time.monotonic() - start), CASE_S)
    for sheet in board.sheets():
        console.print(sheet.table())


if __name__ == "__main__":
    main()
