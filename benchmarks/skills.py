"""Two skills in a row: chemistry (multiple choice), then tool use; what is gained, what is lost, what else is kept.

    python -m benchmarks.skills --model DIR --data DIR --out runs/skills

For each method (SDFT, SFT, SDPO, GRPO), with and without replay, and each seed: the model as it is, after the first
skill, after the second one, each measured on both skills and on GSM8K and MBPP, of which nothing is trained. Accuracies
at temperature 0, paired by task. Three numbers sum the matrix up:

    plasticity   what a skill gains in its own stage, mean of both
    stability    what the first skill loses afterwards (below 0: forgotten)
    held-out     what GSM8K and MBPP change from the start to the end, mean of both

Replay holds the answers to 64 prompts a step (of the training parts of GSM8K and MBPP, and of the first skill in the
second stage) to the weights at the start of the stage. A run that was killed goes on, and a finished one is not
repeated. `--tiny` runs all of it in a minute; with a model of 0.5 B one core needs hours for an arm: it is for a GPU.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import arms
from benchmarks.against_trl.work import SIZES, write_model
from selfdistill.config import from_settings
from selfdistill.runs.stats import Estimate

METHODS = ("sdft", "sft", "sdpo", "grpo")
SKILLS, ABILITIES = ("chemistry", "tools"), ("gsm8k", "mbpp")
STAGES = ("start", *SKILLS)
READ: Mapping[str, Mapping[str, Any]] = {
    "chemistry": {"env": "choice"},
    "tools": {"env": "tools-text"},
    "gsm8k": {"env": {"name": "maths", "equivalence": False}, "columns": {"prompt": "question"}},
    "mbpp": {"env": "code"},
}
Matrix = Mapping[str, Mapping[str, arms.Scores]]  # by stage and set of tasks
TINY: Mapping[str, Mapping[str, Any]] = {
    "chemistry": {"prompt": "Which is a metal?", "answer": "A"},
    "tools": {"prompt": "Find x.", "answer": '[{"Action": "find", "Action_Input": "{}"}]'},
    "gsm8k": {"question": "What is 1 + 1?", "answer": "#### 2"},
    "mbpp": {"text": "Write f.", "test_list": ["assert f(1) == 1"]},
}


def rows_of(chosen: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Of each set its name, the rows of training (or replay), and those that are measured."""
    if chosen.tiny:
        for name, row in TINY.items():
            numbered = [
                {**row, "id": n, **({"prompt": f"{n} {row['prompt']}"} if "prompt" in row else {})} for n in range(6)
            ]
            yield name, numbered[:4], numbered[4:]
        return

    def read(*place: str) -> list[dict[str, Any]]:
        return arms.read_rows(chosen.data.joinpath(*place))

    yield "chemistry", read("sciknoweval", "chemistry_train.jsonl"), read("sciknoweval", "chemistry_test.jsonl")
    tools = read("tooluse", "test.jsonl")
    tools = random.Random("tools").sample(tools, len(tools))
    yield "tools", tools[24:], tools[:24]
    yield "gsm8k", read("gsm8k", "train_1000.jsonl"), read("gsm8k", "test_300.jsonl")
    programs = read("mbpp", "mbpp.jsonl")
    yield (
        "mbpp",
        [row for row in programs if row["task_id"] > 600],
        [row for row in programs if 10 < row["task_id"] <= 510],
    )


def write_data(chosen: argparse.Namespace) -> None:
    """The files of all sets: rows that are trained on with a demonstration in the form that the environment wants, rows
    that are measured, and prompts to replay."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for name, trained, measured in rows_of(chosen):
        measured = random.Random("measured").sample(measured, min(chosen.measured, len(measured)))
        arms.write_rows(chosen.out / f"{name}-test.jsonl", measured)
        train = arms.write_rows(chosen.out / f"{name}-train.jsonl", trained)
        config = from_settings({"data": str(train), **READ[name]})
        env: Any = config.make_env()
        tasks = config.tasks_of(env)
        prompts[name] = [{"prompt": [{"role": m.role, "content": m.content} for m in task.messages]} for task in tasks]
        if name in SKILLS:
            shown = zip(trained, tasks, strict=True)
            arms.write_rows(train, [{**row, "demonstration": env.reference(task)} for row, task in shown])
    for stage, skill in enumerate(SKILLS):
        names = (*ABILITIES, *SKILLS[:stage])
        mixed = [row for name in names for row in prompts[name]]
        random.Random("replay").shuffle(mixed)
        arms.write_rows(chosen.out / f"{skill}-replay.jsonl", mixed)


def shared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Settings of training and of what is measured."""
    own = {"device": chosen.device, "dtype": chosen.dtype, "sampling": {"max_new_tokens": chosen.new_tokens}}
    return own | arms.pairs(chosen.set)


def run_arm(chosen: argparse.Namespace, method: str, replay: bool, seed: int) -> dict[str, dict[str, arms.Scores]]:
    """The matrix of one method: trained on one skill after the other, all sets measured after each."""
    name, model = f"{method}{'-replay' if replay else ''}-seed{seed}", Path(chosen.model)
    matrix = {"start": measured(chosen, chosen.out / "start", model)}
    for skill in SKILLS:
        settings: dict[str, Any] = {
            "model": model, "method": method, "seed": seed, "data": chosen.out / f"{skill}-train.jsonl",
            "tasks_per_step": chosen.tasks, "optimiser": {"lr": chosen.lr, "warmup_steps": 1}, "checkpoint_every": 5,
            "evaluation": {"every": 0, "tasks": 2}, "guards": {"action": "warn", "preflight": "off"},
            **READ[skill], **shared(chosen),
        }  # fmt: skip
        if chosen.lora and model == Path(chosen.model):  # afterwards the model is an adapter, which is trained on
            settings["lora"] = chosen.lora
        if replay:
            prompts = str(chosen.out / f"{skill}-replay.jsonl")
            settings["replay"] = {"prompts": prompts, "per_step": chosen.replayed, "weight": 0.5}
        if method in ("sdpo", "grpo"):
            settings["rollouts_per_task"] = chosen.rollouts
        run = arms.train_to(chosen.out / f"{name}-{skill}", chosen.steps, settings)
        model = run.model_dir
        matrix[skill] = measured(chosen, chosen.out / f"{name}-{skill}-measured", model)
    return matrix


def measured(chosen: argparse.Namespace, out: Path, model: Path) -> dict[str, arms.Scores]:
    """Which tasks of every set a model solves."""
    found = dict[str, arms.Scores]()
    for name in (*SKILLS, *ABILITIES):
        settings = {"data": chosen.out / f"{name}-test.jsonl", "tasks": chosen.measured, **READ[name], **shared(chosen)}
        found[name] = arms.right(arms.measured(model, out / name, settings))
    return found


def averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent differences; its interval is as far from it as theirs are together (MOVER)."""
    value, count = fmean(one.value for one in estimates), len(estimates)
    below = sqrt(sum((one.value - one.low) ** 2 for one in estimates)) / count
    above = sqrt(sum((one.high - one.value) ** 2 for one in estimates)) / count
    return Estimate(value, sum(one.n for one in estimates), value - below, value + above)


def difference(seeds: Sequence[Matrix], name: str, after: str, before: str) -> Estimate:
    """What the accuracy on a set changes between two stages, paired by task."""
    return arms.change([matrix[after][name] for matrix in seeds], [matrix[before][name] for matrix in seeds])


def plasticity(seeds: Sequence[Matrix]) -> Estimate:
    """What a skill gains in its own stage, mean of all skills."""
    return averaged([difference(seeds, skill, skill, STAGES[place]) for place, skill in enumerate(SKILLS)])


def stability(seeds: Sequence[Matrix]) -> Estimate:
    """What the skills but the last change after their own stage, mean of them."""
    return averaged([difference(seeds, skill, STAGES[-1], skill) for skill in SKILLS[:-1]])


def kept(seeds: Sequence[Matrix]) -> Estimate:
    """What the abilities that nothing was trained of change from the start to the end, mean of them."""
    return averaged([difference(seeds, name, STAGES[-1], STAGES[0]) for name in ABILITIES])


def report(found: Mapping[str, Sequence[Matrix]]) -> str:
    """The three numbers of each arm, and the matrix of each."""
    sums = [(plasticity(seeds), stability(seeds), kept(seeds)) for seeds in found.values()]
    rows = [
        [arm, str(len(found[arm])), *(arms.shown(one, sign=True) for one in values)]
        for arm, values in zip(found, sums, strict=True)
    ]
    text = arms.table(["arm", "seeds", "plasticity", "stability", "held-out"], rows)
    names = (*SKILLS, *ABILITIES)
    cells = [
        [
            arm,
            stage,
            *(arms.shown(arms.accuracy(arms.pooled([matrix[stage][name] for matrix in seeds]))) for name in names),
        ]
        for arm, seeds in found.items()
        for stage in STAGES
    ]
    return f"{text}\n{arms.table(['arm', 'after', *names], cells)}"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = arms.parser(__doc__, "skills")
    parser.set_defaults(new_tokens=384)
    parser.add_argument("--data", type=Path, help="folder with sciknoweval, tooluse, gsm8k and mbpp")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--replay", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--steps", type=int, default=20, help="of each skill")
    parser.add_argument("--tasks", type=int, default=16, help="tasks of a step")
    parser.add_argument("--rollouts", type=int, default=8, help="answers to each, of sdpo and grpo")
    parser.add_argument("--replayed", type=int, default=64, help="prompts of a step to replay")
    parser.add_argument("--measured", type=int, default=150, help="tasks of each set that are measured, at most")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model = str(write_model(chosen.out / "model", SIZES["tiny"]))
        chosen.steps, chosen.tasks, chosen.rollouts, chosen.new_tokens, chosen.replayed = 1, 2, 2, 4, 2
        chosen.replay = ["on"]
    elif not chosen.model or not chosen.data:
        parser.error("--model and --data are needed (or --tiny)")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, seed by seed, and writes the tables after every arm."""
    chosen = options(arguments)
    write_data(chosen)
    found: dict[str, list[dict[str, dict[str, arms.Scores]]]] = {}
    for seed in range(chosen.seeds):
        for replay in chosen.replay:
            for method in chosen.methods:
                matrix = run_arm(chosen, method, replay == "on", seed)
                found.setdefault(f"{method}{', replay' if replay == 'on' else ''}", []).append(matrix)
                arms.save(chosen.out, "results", found, report(found))


if __name__ == "__main__":
    main()
