"""Rich feedback on real programs: SDPO (its preset for feedback, frozen teacher) against GRPO on MBPP, with LoRA.

    python -m benchmarks.mbpp --model DIR --data mbpp.jsonl --out runs/mbpp
    python -m benchmarks.mbpp … --turns 3            conversations: does what later turns teach reach the first turn?

Trained on the tasks 601–974, as many answers for each method; accuracy on 150 tasks of 11–510 at temperature 0, before,
between and after, paired by task. Beside it the context gain of the model before training (`eval --teacher`). All of it
is what `selfdistill train` and `selfdistill eval` do. A run that was killed goes on with the same command, a finished
arm is not repeated, and `results.json` and `results.md` are written after every arm.

On one core with a model of 0.5 B and --dtype bfloat16: 1 to 1.5 hours (sdpo) and half an hour (grpo) a seed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import selfdistill as sd
from benchmarks import arms
from benchmarks.against_trl.work import SIZES, write_model
from selfdistill.runs import Estimate

ARMS: Mapping[str, Mapping[str, Any]] = {
    "sdpo": {"method": "sdpo_rich_feedback", "teacher": {"kind": "frozen"}},
    "grpo": {"method": "grpo"},
}
TRAINED, HELD_OUT = (601, 974), (11, 510)
TINY_ROWS = [
    {"task_id": number, "text": f"Write f{number}.", "test_list": [f"assert f{number}({n}) == {n}" for n in (1, 2)]}
    for number in (*range(11, 15), *range(601, 605))
]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arms.parser(__doc__, "mbpp")
    parser.add_argument("--data", type=Path, help="MBPP as JSONL; left out with --tiny")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--turns", type=int, default=1, help="attempts of a conversation, each after the feedback")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--stages", type=int, default=2, help="evaluations, the last one at the end")
    parser.add_argument("--tasks", type=int, default=8, help="tasks of a step")
    parser.add_argument("--rollouts", type=int, default=8, help="answers to each")
    parser.add_argument("--held-out", type=int, default=150)
    parser.add_argument("--gain-tasks", type=int, default=48, help="tasks of the context gain; 0: not measured")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model = str(write_model(chosen.out / "model", SIZES["tiny"]))
        chosen.steps, chosen.tasks, chosen.rollouts, chosen.new_tokens, chosen.gain_tasks = 2, 2, 2, 8, 2
    elif not chosen.model or not chosen.data:
        parser.error("--model and --data are needed (or --tiny)")
    return chosen


def trained_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are trained on, without their solutions."""
    low, high = TRAINED
    return [{key: row[key] for key in row if key != "code"} for row in rows if low <= row["task_id"] <= high]


def data_files(chosen: argparse.Namespace) -> tuple[Path, Path]:
    """The rows that are trained on, without their solutions, and those that are not; the same ones for every seed."""
    rows = TINY_ROWS if chosen.tiny else arms.read_rows(chosen.data)
    low, high = HELD_OUT
    held_out = [row for row in rows if low <= row["task_id"] <= high]
    held_out = random.Random("held out").sample(held_out, len(held_out))[: chosen.held_out]
    out = chosen.out
    return arms.write_rows(out / "train.jsonl", trained_rows(rows)), arms.write_rows(out / "held_out.jsonl", held_out)


def shared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Settings of training and of what is measured."""
    found: dict[str, Any] = {"env": "code", "device": chosen.device, "dtype": chosen.dtype}
    found["sampling"] = {"max_new_tokens": chosen.new_tokens}
    if chosen.turns > 1:
        found["env"] = {"name": "code", "turns": chosen.turns}
    return found | arms.pairs(chosen.set)


def training(chosen: argparse.Namespace, train: Path, arm: str, seed: int) -> dict[str, Any]:
    """The settings of one run. It measures little itself: what is paired by task is measured between the stages."""
    return {
        "model": chosen.model, "data": train, "seed": seed, "lora": chosen.lora or None, "tasks_per_step": chosen.tasks,
        "rollouts_per_task": chosen.rollouts, "tasks_per_update": 2, "checkpoint_every": 1,
        "optimiser": {"lr": chosen.lr, "warmup_steps": 1}, "evaluation": {"every": 0, "tasks": 4},
        "guards": {"action": "warn", "preflight": "off"}, **ARMS[arm], **shared(chosen),
    }  # fmt: skip


def run_arm(
    chosen: argparse.Namespace, files: tuple[Path, Path], arm: str, seed: int, base: Any
) -> list[dict[str, Any]]:
    """A row for each stage: completions, seconds of learning, and which held-out tasks are right."""
    train, held_out = files
    name = f"{arm}-seed{seed}"
    rows = [{"completions": 0, "seconds": 0.0, **base}]
    for stage in range(1, chosen.stages + 1):
        steps = chosen.steps * stage // chosen.stages
        run = arms.train_to(chosen.out / name, steps, training(chosen, train, arm, seed))
        found = measured(chosen, run.model_dir, chosen.out / f"{name}-at{steps}", held_out)
        done = [record for record in run.steps if record.step <= steps]
        rows.append({
            "completions": done[-1].completions_sampled, "seconds": arms.learning_seconds(run, steps),
            "tokens": done[-1].tokens, **found,
        })  # fmt: skip
    return rows


def measured(chosen: argparse.Namespace, model: str | Path, out: Path, held_out: Path) -> dict[str, Any]:
    """The held-out tasks that a model solves, and of conversations those that it solves in the first turn."""
    settings = {"data": held_out, "tasks": chosen.held_out, **shared(chosen)}
    answers = arms.measured(model, out, settings)
    found: dict[str, Any] = {"right": arms.right(answers)}
    if chosen.turns > 1:
        found["first_turn"] = arms.right(answers, first_turn=True)
    return found


def context_gain(chosen: argparse.Namespace, train: Path) -> list[dict[str, Any]]:
    """The gain from each kind of context before training, as `eval --teacher` reports it."""
    report = chosen.out / "context-gain" / "context_gain.json"
    if not report.exists():
        arms.say("context gain before training")
        arms.clear(report.parent)
        settings = {"data": train, "tasks": chosen.gain_tasks, "rollouts": 2, "rollouts_per_task": 4}
        settings |= shared(chosen) | {"env": "code", "method": "sdpo_rich_feedback", "out": report.parent}
        sd.evaluate(chosen.model, teacher=True, temperature=1.0, progress=False, **settings)
    found: list[dict[str, Any]] = arms.read_json(report)["gains"]
    return found


def report(chosen: argparse.Namespace, found: Mapping[str, list[list[dict[str, Any]]]], gains: Any) -> str:
    """The tables: held-out accuracy by stage, and the difference of the methods after equal completions."""
    kinds = ["right", "first_turn"] if chosen.turns > 1 else ["right"]
    names = {"right": "held-out accuracy", "first_turn": "of it in the first turn"}
    head = ["method", "seeds", "completions", "seconds"]
    for kind in kinds:
        head += [names[kind], "change"]
    rows = []
    for arm, seeds in found.items():
        for stage in zip(*seeds, strict=True):
            cells = [
                arm,
                str(len(seeds)),
                str(stage[0]["completions"]),
                f"{sum(p['seconds'] for p in stage) / len(stage):.0f}",
            ]
            for kind in kinds:
                before, after = ([place[kind] for place in side] for side in ([one[0] for one in seeds], stage))
                cells += [arms.shown(arms.accuracy(arms.pooled(after)))]
                cells += [arms.shown(arms.change(after, before), sign=True) if stage[0]["completions"] else ""]
            rows.append(cells)
    text = arms.table(head, rows)
    if len(found) == 2:
        (one, first), (other, second) = found.items()
        count = min(len(first), len(second))
        for kind in kinds:
            sides = ([own[-1][kind] for own in side[:count]] for side in (first, second))
            difference = arms.change(*sides)
            text += f"\n{one} − {other} at the end, {names[kind]}: {arms.shown(difference, sign=True)}\n"
    if gains:
        text += "\nBefore training, answers to tasks of the training set with a context:\n\n" + gain_table(gains)
    return text


def gain_table(gains: Sequence[Mapping[str, Any]]) -> str:
    """One row for each kind of context."""
    estimates = [[Estimate(**gain[key]) if gain[key] else None for key in ("gain", "over_control")] for gain in gains]
    rows = [
        [gain["kind"], str(gain["tasks"]), f"{gain['bare']:.2f}", f"{gain['with_context']:.2f}",
         *(arms.shown(value, sign=True) if value else "" for value in pair),
         "" if gain["p"] is None else f"{gain['p']:.3f}"]
        for gain, pair in zip(gains, estimates, strict=True)
    ]  # fmt: skip
    return arms.table(["context", "tasks", "without", "with", "gain", "over another task's", "p"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, seed by seed, and writes the tables after every arm."""
    chosen = options(arguments)
    files = data_files(chosen)
    base = measured(chosen, chosen.model, chosen.out / "base", files[1])
    found: dict[str, list[list[dict[str, Any]]]] = {}

    def write(gains: Any) -> None:
        about = {key: str(value) for key, value in vars(chosen).items()}
        arms.save(chosen.out, "results", {"about": about, "arms": found, "gains": gains}, report(chosen, found, gains))

    for seed in range(chosen.seeds):
        for arm in chosen.arms:
            found.setdefault(arm, []).append(run_arm(chosen, files, arm, seed, base))
            write([])
    if chosen.gain_tasks:
        write(context_gain(chosen, files[0]))


if __name__ == "__main__":
    main()
