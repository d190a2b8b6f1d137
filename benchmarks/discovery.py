"""Discovery at test time: every strategy on the same hard verbs, under the same budget of attempts.

    python benchmarks/discovery.py --out runs/discovery

Two sets of three-step coined verbs, chosen before any strategy runs and by what none of them does:

    very hard      bare pass@64 < 0.03, estimated without bias from --samples attempts of the weights as they are
    teacher blind  moreover none of 48 answers is right that the same weights give when each of them reads three
                   failing cases of one bare attempt

Sets are the first --tasks verbs in the order in which the environment draws them. What follows is one `selfdistill
compare` on the verbs of both: what is finished is not repeated, what was stopped goes on. Writes results.md and a
figure of each set.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.cli.compare import arms_of
from selfdistill.cli.output import print_notes
from selfdistill.config import from_settings, resolved
from selfdistill.prompts.context import teacher_messages
from selfdistill.runs.discovery import pass_at_k
from selfdistill.runs.events import Note, RunStart
from selfdistill.test_time.comparison import StrategyComparison, parse_arm, run_comparison
from selfdistill.training.samples import roll_out, solved
from selfdistill.training.session import Session, open_session
from selfdistill.training.side_by_side import Job, attend, places, side_by_side
from selfdistill.types import Context, Task
from selfdistill.view.discovery import discovery_figure, report
from selfdistill.view.progress import RunDisplay

K, HARD = 64, 0.03  # very hard: pass@K below HARD
SHOWN = 48  # answers of the informed weights
CASES = 3  # failing cases in one feedback
CHUNK = 256  # bare attempts at a time
PART = "--measure-candidates-into"
SELECTION_SEED = 90_000  # no strategy samples with it
SETS = ("very hard", "teacher blind")
# The sapling met contexts of up to 288 tokens while it grew: a longer window is no favour to who reads it.
ARMS = (
    "best-of-k",
    "multi-turn: multi-turn strategy.window=288",
    "multi-turn, attempts: multi-turn strategy.window=288 strategy.attempts=true",
    'multi-turn, random: multi-turn strategy.window=288 strategy.keep="random"',
    "self-distill",
    "hybrid: hybrid strategy.window=288",
)


def env(chosen: argparse.Namespace) -> dict[str, Any]:
    """The settings of the environment, from which every candidate is drawn."""
    return {"name": "verbs", "verbs": chosen.candidates, "steps": [3], "draw": chosen.draw, "cases": CASES}


def measure_candidates(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes one line for each candidate of a part: right bare attempts, right informed answers."""
    run = from_settings(settings["run"])
    session = open_session(run, print_notes)
    own = session.tasks[settings["part"] :: settings["parts"]]
    rows = rows_of(path)
    done = {row["task"] for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")  # without half a line
    for number, task in enumerate(own):
        if number % 10 == 0:
            print_notes(Note(f"measuring candidates {number}/{len(own)}"))
        if task.id not in done:
            row = {"task": task.id, "place": session.tasks.index(task), **measure(session, task, settings["samples"])}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def measure(session: Session, task: Task, samples: int) -> dict[str, int]:
    """Bare attempts until the task is known not to be very hard; for a very hard one, also informed answers."""
    made = right = 0
    feedback: list[str] = []
    while made < samples and pass_at_k(samples, right, K) < HARD:
        count = min(CHUNK, samples - made)
        rewards, texts = bare(session, task, count, made)
        made, right = made + count, right + rewards
        feedback += [text for text in texts if text.count("Expected: ") == CASES][: SHOWN - len(feedback)]
    if pass_at_k(samples, right, K) >= HARD:
        return {"samples": made, "right": right}
    return {
        "samples": made,
        "right": right,
        "informed": len(feedback),
        "informed_right": informed(session, task, feedback),
    }


def bare(session: Session, task: Task, count: int, start: int) -> tuple[int, list[str]]:
    """How many bare attempts pass all tests, and the feedback on all of them."""
    config = session.config
    [made] = roll_out(
        session.policy, session.env, session.renderer, [task], config.sampling,
        rollouts=count, seed=SELECTION_SEED, label=f"bare-{task.id}-{start}",
    )  # fmt: skip
    passed = [(r.task, r.completion) for r in made.rollouts if solved(r)]
    outcomes = [session.evaluation_env.score(*pair) for pair in passed]
    return sum(outcome.reward == 1 for outcome in outcomes), [r.outcome.feedback for r in made.rollouts if r.outcome]


def informed(session: Session, task: Task, feedback: Sequence[str]) -> int:
    """The number of right answers of the untrained weights, one answer given each feedback."""
    conversations = [teacher_messages(task.messages, Context("feedback", feedback=text)) for text in feedback]
    prompts = [session.renderer.prompt(messages) for messages in conversations]
    found = roll_out(
        session.policy, session.evaluation_env, session.renderer, [task] * len(prompts), session.config.sampling,
        rollouts=1, seed=SELECTION_SEED, label=f"told-{task.id}", prompts=prompts,
    )  # fmt: skip
    return sum(solved(rollout) for group in found for rollout in group.rollouts)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, if it is there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short by a kill; measured again
            continue
    return found


def choose_sets(rows: Sequence[Mapping[str, Any]], samples: int, tasks: int) -> dict[str, list[str]]:
    """The ids of each set, by the rule in the head of this file."""
    hard = [row for row in sorted(rows, key=lambda row: row["place"]) if pass_at_k(samples, row["right"], K) < HARD]
    blind = [row for row in hard if row["informed"] == SHOWN and row["informed_right"] == 0]
    return {name: [row["task"] for row in found[:tasks]] for name, found in zip(SETS, (hard, blind), strict=True)}


def selection(chosen: argparse.Namespace, display: RunDisplay) -> dict[str, list[str]]:
    """Measures what was not measured yet, as many parts at a time as there are places for."""
    run = resolved(from_settings({"env": env(chosen), "sampling": {"temperature": 1.0}}))
    parts = places([run["device"]])
    names = [chosen.out / "candidates" / f"part-{part}-of-{parts}.jsonl" for part in range(parts)]
    jobs = []
    for part, name in enumerate(names):
        if len(rows_of(name)) < len(range(part, chosen.candidates, parts)):
            settings = {"run": run, "part": part, "parts": parts, "samples": chosen.samples}
            start = RunStart(name, "candidates", run["model"], "verbs", run["device"], 0, 0)
            jobs.append(Job(name, (sys.executable, __file__, PART, str(name)), start, json.dumps(settings)))
    side_by_side(jobs, display, at_once=parts)
    found = choose_sets([row for name in names for row in rows_of(name)], chosen.samples, chosen.tasks)
    (chosen.out / "sets.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def strategy_comparison(chosen: argparse.Namespace, tasks: Sequence[str]) -> StrategyComparison:
    """All arms on the tasks of both sets."""
    settings = tuple(("env." + key if key != "name" else "env", value) for key, value in env(chosen).items())
    arms = tuple(parse_arm(arm) for arm in chosen.arms)
    return StrategyComparison(arms, tuple(tasks), seeds=chosen.seeds, budget=chosen.budget, settings=settings)


def main() -> None:
    """Chooses the sets, runs what is missing, then tabulates and plots everything."""
    if sys.argv[1:2] == [PART]:  # a subprocess of `selection`
        attend()
        measure_candidates(Path(sys.argv[2]), json.load(sys.stdin))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/discovery"), help="folder for searches and results")
    parser.add_argument("--tasks", type=int, default=20, help="tasks of each set, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=640, help="attempts for each task and seed")
    parser.add_argument("--candidates", type=int, default=60, help="verbs from which the sets are chosen")
    parser.add_argument("--samples", type=int, default=2176, help="bare attempts behind pass@64 of a candidate")
    parser.add_argument("--draw", type=int, default=4000, help="decides which verbs are drawn")
    parser.add_argument("--arms", nargs="*", default=ARMS, help="as `selfdistill compare --arm` takes them")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with RunDisplay() as display:
        sets = selection(chosen, display)
        tasks = sorted({task for own in sets.values() for task in own})
        whole, found = run_comparison(strategy_comparison(chosen, tasks), chosen.out, display)
    arms = {name: arms_of(whole, found, own) if own else [] for name, own in sets.items()}
    parts = ["# Discovery\n", (__doc__ or "").split("\n\n", 1)[1], f"\nSettings: {vars(chosen)}\n"]
    for name, own in sets.items():
        parts.append(f"\n## {name}: {len(own)} tasks x {whole.seeds} seeds\n")
        parts.append(report(arms[name], whole.budget) if own else "None is one.\n")
    (chosen.out / "results.md").write_text("\n".join(parts), encoding="utf-8")
    for name in (name for name, own in sets.items() if own):
        figure = chosen.out / f"discovery-{name.replace(' ', '-')}.png"
        discovery_figure(arms[name], whole.budget, f"Discovery, {name}", figure)


if __name__ == "__main__":
    main()
