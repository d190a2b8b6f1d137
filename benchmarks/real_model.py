"""This library on a model that people use, on a processor: rollouts, a LoRA update, a step, memory of an evaluation.

    OMP_NUM_THREADS=1 python -m benchmarks.real_model --model DIR --trl-python trl-venv/bin/python --before CHECKOUT

Each case runs in a process of its own, beside the same case of an earlier checkout of this library (`--before`), of
`generate`, and of TRL's SDPO trainer. A result is written as soon as it is there, and what is there is not measured
again. `--tiny` runs all of it on a small random model, to see that it runs.

rollouts    one answer to each of 64 questions of different lengths, temperature 1; tokens up to the end of an answer
update      8 answers of 10 to 160 tokens to two questions of 120 tokens, teacher's prompts of 500 tokens, LoRA 16,
            frozen teacher, top-100 and tail: teacher, student, optimiser
step        the same with sampling before it, and where its seconds go
evaluation  peak memory of a model that only answers, against one that is loaded to be trained
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.against_trl.__main__ import wide_console
from benchmarks.against_trl.board import BEFORE, GENERATE, OURS, TRL, Board, Entry
from benchmarks.against_trl.child import ROOT, trl_refusal
from benchmarks.against_trl.work import SIZES, Grouped, write_model

TINY = Grouped(longest=12, prompt=8, context=16)
SAMPLING, UPDATE = "sampling", "ours"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of the model; left out with --tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/real-model"), help="folder of the results")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--trl-python", help="interpreter of a virtual environment with TRL and peft")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version of this library")
    parser.add_argument("--only", action="append", choices=["rollouts", "update", "step", "evaluation"])
    parser.add_argument("--rows", type=int, default=64, help="questions of the rollouts")
    parser.add_argument("--new-tokens", type=int, default=128, help="longest answer of the rollouts")
    parser.add_argument("--repeats", type=int, default=1, help="timed calls of each case")
    parser.add_argument("--case-s", type=float, default=3600.0, help="most seconds of one case")
    parser.add_argument("--tiny", action="store_true", help="a small random model, to see that it runs")
    return parser.parse_args()


def questions(model: str, rows: int) -> dict[str, Any]:
    """Prompts as ids, the ids that end an answer, and the one that pads."""
    from selfdistill.envs.verbs.env import plain_tasks
    from selfdistill.models.load import load_tokenizer
    from selfdistill.prompts.render import ChatTemplate, Renderer

    tokenizer, context = load_tokenizer(model)
    renderer = Renderer(tokenizer, context, 2000)
    prompts = [list(renderer.prompt(task.messages)) for task in plain_tasks(rows, seed=0)]
    ends = {tokenizer.eos_token_id, ChatTemplate(tokenizer).end()} - {None}
    return {"prompts": prompts, "ends": sorted(ends), "pad": tokenizer.pad_token_id}


def entries(chosen: argparse.Namespace) -> list[Entry]:
    """All cases, ours first of each."""
    model = str(Path(chosen.model).expanduser().resolve())
    shared = {"model": model, "dtype": chosen.dtype, "repeats": chosen.repeats}
    rollouts = shared | questions(model, chosen.rows) | {"kind": "rollouts", "new_tokens": chosen.new_tokens}
    update = shared | {
        "kind": "update", "grouped": asdict(TINY if chosen.tiny else Grouped()), "seed": 1, "mode": "topk",
        "top_k": 100, "alpha": 0.5, "teacher": "frozen", "lr": 1e-4, "lora": 16, "micro_rows": 2,
        "micro_tokens": 16_384, "warm": 0,
    }  # fmt: skip
    refusal = trl_refusal(chosen.trl_python)
    answers = rollouts | {"prompts": rollouts["prompts"][:8], "new_tokens": 8, "kind": "evaluation"}
    label = f"{chosen.rows} questions, up to {chosen.new_tokens} tokens"
    found = []
    for side, sources in ((OURS, ROOT), (BEFORE, chosen.before)):
        if sources is not None:
            case = rollouts | {"sampler": "ours"}
            found.append(Entry("Rollouts", label, side, SAMPLING, case, sources=sources.resolve()))
    for dtype in dict.fromkeys((chosen.dtype, "float32")):
        case = rollouts | {"sampler": "generate", "dtype": dtype}
        found.append(Entry("Rollouts", label, f"{GENERATE}, {dtype}", SAMPLING, case))
    label = "8 answers, teacher's prompts of 500 tokens, LoRA 16"
    for side, sources in ((OURS, ROOT), (BEFORE, chosen.before)):
        if sources is not None:
            found.append(Entry("LoRA update", label, side, UPDATE, update, sources=sources.resolve()))
    python = chosen.trl_python or "python"
    found.append(Entry("LoRA update", label, TRL, "peer", update, python=python, skipped=refusal))
    step = update | {"sample": 4 if chosen.tiny else 48}
    found.append(Entry("Step", "8 answers of up to 48 tokens sampled, and the update", OURS, UPDATE, step))
    for side, trained in (("to answer", False), ("to be trained", True)):
        found.append(
            Entry("Evaluation", "8 greedy answers", f"loaded {side}", SAMPLING, answers | {"trained": trained})
        )
    sections = {"rollouts": "Rollouts", "update": "LoRA update", "step": "Step", "evaluation": "Evaluation"}
    wanted = {sections[name] for name in chosen.only or sections}
    return [entry for entry in found if entry.section in wanted]


def main() -> None:
    """Measures what is not measured yet, and prints the tables."""
    chosen, console = arguments(), wide_console()
    if chosen.tiny:
        chosen.model = str(write_model(chosen.out / "model", SIZES["tiny"]))
        chosen.rows, chosen.new_tokens = 4, 4
    if not chosen.model:
        raise SystemExit("--model: a directory is needed")
    board = Board(chosen.out, entries(chosen), say=console.print)
    board.measure(float("inf"), chosen.case_s)
    for sheet in board.sheets():
        console.print(sheet.table())


if __name__ == "__main__":
    main()
