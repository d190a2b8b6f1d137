"""What the teacher should read: environment output, a group member's solution, both, and the attempt itself with them.

    python -m benchmarks.feedback_kinds --out runs/feedback-kinds

SDPO on sixteen coined verbs with the embedded model, one run for each kind and seed, and the four measures of the paper
(arXiv 2601.20802, table 6): the teacher's accuracy before training, the share of its answers that repeat the attempt,
the student's accuracy afterwards, and the mean entropy of its tokens over the run. The first two are of the teacher's
answers at temperature 1 to failed attempts. `either` is the default of `sdpo`: a solution where there is one, else the
output. A run that is finished is not repeated. About 3 minutes a run on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import arms
from selfdistill.analysis.context_gain import same_text
from selfdistill.config import load_config
from selfdistill.methods import get_method
from selfdistill.runs import Run
from selfdistill.runs.events import no_callback
from selfdistill.runs.stats import Estimate, mean, mean_of_shares
from selfdistill.training.samples import session_groups, solved
from selfdistill.training.session import open_session
from selfdistill.types import Context, DropReason, Rollout

KINDS: Mapping[str, Mapping[str, Any]] = {
    "output": {"kind": "observation"},
    "own solution": {"feedback": False},
    "either": {},
    "both": {"together": True},
    "both and the attempt": {"together": True, "attempt": True},
}
MEASURES = ("teacher before", "repeats the attempt")


def settings(chosen: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    """One run."""
    return {
        "model": chosen.model, "env": "verbs", "seed": seed, "device": chosen.device,
        "method": {"name": "sdpo", "context": dict(KINDS[kind])}, "tasks_per_step": chosen.tasks,
        "evaluation": {"every": 0, "tasks": chosen.evaluated}, "guards": {"action": "warn", "preflight": "off"},
        "checkpoint_every": 5, **arms.pairs(chosen.set),
    }  # fmt: skip


def before(chosen: argparse.Namespace, seed: int) -> dict[str, list[tuple[str, float, float]]]:
    """For each kind, of the answer to each failed attempt that has a context of this kind: its task, whether it is
    right, and whether it repeats the attempt. The attempts are those of every kind."""
    config = load_config(None, [*settings(chosen, "either", seed).items(), ("evaluation.temperature", 1.0)])
    session = open_session(config, no_callback)
    tasks = session.tasks[: chosen.tasks]
    groups = session_groups(session, tasks, rollouts=config.rollouts_per_task, label="attempt")
    found = {}
    for kind, options in KINDS.items():
        rule: Any = get_method("sdpo", {"context": dict(options)})
        read: list[tuple[Rollout, Any]] = []
        for group in groups:
            for place, rollout in enumerate(group.rollouts):
                context = rule.context.context(group, place) if rollout.outcome and not solved(rollout) else None
                if isinstance(context, Context):
                    made = session.renderer.teacher_prompt(
                        rollout.task.messages, context, config.sampling.max_new_tokens
                    )
                    if not isinstance(made, DropReason):
                        read.append((rollout, made[0]))
        answers = session_groups(
            session, [r.task for r, _ in read], rollouts=1, label=f"teacher-{kind}", evaluates=True,
            prompts=[ids for _, ids in read],
        ) if read else []  # fmt: skip
        found[kind] = [
            (attempt.task.id, float(solved(own)), float(same_text(own.completion.text, attempt.completion.text)))
            for (attempt, _), group in zip(read, answers, strict=True)
            for own in group.rollouts
        ]
    return found


def shares(seeds: Sequence[Sequence[tuple[str, float, float]]], which: int) -> Estimate | None:
    """A share over the teacher's answers, clustered by the tasks of each seed; none where no attempt has a context."""
    by_task: dict[str, list[float]] = {
        f"{seed} {task}": [float(entry[which]) for entry in own if entry[0] == task]
        for seed, own in enumerate(seeds)
        for task in {entry[0] for entry in own}
    }
    return arms.accuracy(by_task) if by_task else None


def row(kind: str, runs: Sequence[Run], teacher: Sequence[Sequence[tuple[str, float, float]]]) -> list[str]:
    """The measures of one kind, over its seeds."""
    last = {split: [run.evals_of(split)[-1].accuracy for run in runs] for split in ("train", "held_out", "forgetting")}
    entropy = mean([fmean(step.extra["entropy"] for step in run.steps if "entropy" in step.extra) for run in runs])
    cells = [arms.shown(found) if (found := shares(teacher, which)) else "–" for which in (1, 2)]
    accuracies = [arms.shown(mean_of_shares(last[split])) for split in last if last[split]]
    trained = fmean(sum(step.samples for step in run.steps) / run.steps[-1].completions_sampled for run in runs)
    return [kind, str(sum(map(len, teacher))), *cells, *accuracies, arms.shown(entropy), f"{trained:.2f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/feedback-kinds"), help="folder of runs and results")
    parser.add_argument("--model", default="sapling")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="of 8 answers to each task")
    parser.add_argument("--tasks", type=int, default=16, help="tasks of a step")
    parser.add_argument("--evaluated", type=int, default=200, help="tasks of each split that are measured, at most")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--tiny", action="store_true", help="two short steps of the smaller embedded model")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model, chosen.seeds, chosen.steps, chosen.tasks, chosen.evaluated = "sapling-small", 1, 1, 2, 2
    found: dict[str, list[Run]] = {}
    teachers = []
    for seed in range(chosen.seeds):
        file = chosen.out / f"before-seed{seed}.json"
        if not file.exists():
            arms.say(f"seed {seed}: the teacher before training")
            chosen.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(before(chosen, seed)))
        teachers.append(arms.read_json(file))
        for kind in chosen.kinds:
            path = chosen.out / f"{kind.replace(' ', '-')}-seed{seed}"
            found.setdefault(kind, []).append(arms.train_to(path, chosen.steps, settings(chosen, kind, seed)))
    rows = [row(kind, runs, [teacher[kind] for teacher in teachers]) for kind, runs in found.items()]
    head = ["teacher reads", "contexts of failed attempts", *MEASURES, "new verbs after", "plain English"]
    head += ["known verbs", "mean entropy, nats", "answers trained on"]
    arms.save(chosen.out, "results", {"head": head, "rows": rows}, arms.table(head, rows))


if __name__ == "__main__":
    main()
