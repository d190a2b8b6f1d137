"""Discovery at test time: every strategy on the same hard tasks, under the same budget of attempts.

    python -m benchmarks.discovery --out runs/discovery
    python -m benchmarks.discovery --data mbpp.jsonl --model DIR --out runs/discovery-mbpp [--unique] [--device cuda]
    python -m benchmarks.discovery --tiny --out DIR      programs on a small random model, to see that it runs

Sets are chosen before any strategy runs, by what none of them does, with seeds that no strategy samples with:

    hard           (programs) bare pass@64 < 0.5, estimated without bias from --samples attempts of the weights
    very hard      bare pass@64 < 0.03
    teacher blind  (verbs) moreover none of 48 answers is right that the same weights give when each of them reads
                   three failing cases of one bare attempt

The tasks are three-step coined verbs, or rows of MBPP (--data). Sets are the first --tasks of them in their order. What
follows is one `selfdistill compare` on the tasks of all sets, and with --unique a second one in which no strategy
submits an attempt that equals a failed one: what is finished is not repeated, what was stopped goes on. Writes
results.md and a figure of each set. On one core an attempt of a 0.5 B model takes about 2 s, so that --candidates 40
--samples 64 --tasks 4 --budget 64 --seeds 1 takes 4 hours at most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.against_trl.work import SIZES, write_model
from selfdistill.cli.compare import arms_of
from selfdistill.cli.output import print_notes
from selfdistill.config import from_settings, load_config, resolved
from selfdistill.envs.turns import single_turn
from selfdistill.prompts.context import teacher_messages
from selfdistill.runs.discovery import mean_log, paired_ratio, pass_at_k
from selfdistill.runs.events import Note, RunStart
from selfdistill.runs.solving import SolveResult
from selfdistill.test_time.comparison import StrategyComparison, parse_arm, run_comparison
from selfdistill.training.samples import roll_out, solved
from selfdistill.training.session import Session, open_session
from selfdistill.training.side_by_side import Job, attend, places, side_by_side
from selfdistill.types import Context, Task
from selfdistill.view.discovery import ArmResults, discovery_figure, report
from selfdistill.view.progress import RunDisplay

K, HARD = 64, 0.03  # very hard: pass@K below HARD
SHOWN = 48  # answers of the informed weights
CASES = 3  # failing cases in one feedback
CHUNK = 256  # bare attempts at a time
PART = "--measure-candidates-into"
SELECTION_SEED = 90_000  # no strategy samples with it
LIMITS = {"hard": 0.5, "very hard": HARD}  # of pass@K, by set
BLIND = "teacher blind"
READING = (
    "multi-turn: multi-turn {window}",
    "multi-turn, attempts: multi-turn {window} strategy.attempts=true",
    'multi-turn, random: multi-turn {window} strategy.keep="random"',
)
LEARNING = (
    "self-distill: self-distill {lora}",
    "hybrid: hybrid {window} {lora}",
    "read-first: read-first {window} {lora}",
)
VERBS_WINDOW = 288  # the sapling met contexts of up to so many tokens while it grew: a longer window is no favour to it
PROGRAMS_LORA = "lora.rank=16 optimiser.lr=2e-4"
TINY_ROWS = [{"task_id": n, "text": f"Write f{n}.", "test_list": [f"assert f{n}(1) == {n}"]} for n in range(4)]


def arms_for(window: int, lora: str = "") -> list[str]:
    """The arms as `selfdistill compare --arm` takes them, with at most `window` tokens of a prompt (0: as many as the
    model reads)."""
    texts = {"window": f"strategy.window={window}" if window else "", "lora": lora}
    return ["best-of-k", *(arm.format_map(texts) for arm in (*READING, *LEARNING))]


def settings_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The settings of every run: the environment, from which every candidate is drawn, and the model."""
    own = {name: value for name in ("model", "device", "dtype") if (value := getattr(chosen, name))}
    if chosen.data is not None:
        own |= {"data": str(chosen.out / "candidates.jsonl"), "sampling.max_new_tokens": chosen.new_tokens}
        return {"env": "code", **own}
    return {"env": "verbs", "env.verbs": chosen.candidates, "env.steps": [3], "env.draw": chosen.draw,
            "env.cases": CASES, **own}  # fmt: skip


def measure_candidates(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes one line for each candidate of a part: right bare attempts, right informed answers."""
    run = from_settings(settings["run"])
    limit, k = settings["limit"], settings["k"]
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
            row = {
                "task": task.id,
                "place": session.tasks.index(task),
                **measure(session, task, settings["samples"], k, limit),
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def measure(session: Session, task: Task, samples: int, k: int = K, limit: float = HARD) -> dict[str, int]:
    """Bare attempts until the task is known to be in no set; for a very hard verb, also informed answers."""
    made = right = 0
    feedback: list[str] = []
    while made < samples and pass_at_k(samples, right, k) < limit:
        count = min(CHUNK, samples - made)
        rewards, texts = bare(session, task, count, made)
        made, right = made + count, right + rewards
        feedback += [text for text in texts if text.count("Expected: ") == CASES][: SHOWN - len(feedback)]
    if limit > HARD or pass_at_k(samples, right, k) >= limit:
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
    env = single_turn(session.evaluation_env, "discovery")
    outcomes = [env.score(*pair) for pair in passed]
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


def choose_sets(
    rows: Sequence[Mapping[str, Any]], samples: int, tasks: int, k: int = K, sets: Sequence[str] = ("very hard", BLIND)
) -> dict[str, list[str]]:
    """The ids of each set, by the rule in the head of this file."""
    ordered = sorted(rows, key=lambda row: row["place"])
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in sets:
        limit = LIMITS.get(name, HARD)
        found[name] = [row for row in ordered if pass_at_k(samples, row["right"], k) < limit]
        if name == BLIND:
            found[name] = [row for row in found[name] if row["informed"] == SHOWN and row["informed_right"] == 0]
    return {name: [row["task"] for row in own[:tasks]] for name, own in found.items()}


def selection(chosen: argparse.Namespace, display: RunDisplay) -> dict[str, list[str]]:
    """Measures what was not measured yet, as many parts at a time as there are places for."""
    run = resolved(load_config(None, list(settings_of(chosen).items())))
    sets = ("very hard", BLIND) if chosen.data is None else tuple(LIMITS)
    parts = places([run["device"]])
    names = [chosen.out / "candidates" / f"part-{part}-of-{parts}.jsonl" for part in range(parts)]
    jobs = []
    for part, name in enumerate(names):
        if len(rows_of(name)) < len(range(part, chosen.candidates, parts)):
            settings = {"run": run, "part": part, "parts": parts, "samples": chosen.samples, "k": chosen.k}
            settings["limit"] = max(LIMITS.get(each, HARD) for each in sets)
            start = RunStart(name, "candidates", run["model"], run["env"]["name"], run["device"], 0, 0)
            jobs.append(
                Job(name, (sys.executable, "-m", "benchmarks.discovery", PART, str(name)), start, json.dumps(settings))
            )
    side_by_side(jobs, display, at_once=parts)
    rows = [row for name in names for row in rows_of(name)]
    found = choose_sets(rows, chosen.samples, chosen.tasks, chosen.k, sets)
    (chosen.out / "sets.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def strategy_comparison(chosen: argparse.Namespace, tasks: Sequence[str], *, unique: bool) -> StrategyComparison:
    """All arms on the tasks of all sets."""
    settings = (*settings_of(chosen).items(), *[("strategy.unique", True)] * unique)
    arms = tuple(parse_arm(arm) for arm in chosen.arms)
    return StrategyComparison(arms, tuple(tasks), seeds=chosen.seeds, budget=chosen.budget, settings=settings)


def against_reading(arms: Sequence[ArmResults], budget: int) -> str:
    """Of each arm the paired ratio of attempts to the form of multi-turn that needs the fewest, as Markdown."""
    forms = [arm for arm in arms if arm.label.startswith("multi-turn")]
    if not forms:
        return ""
    best = min(forms, key=lambda arm: fmean(mean_log(task, budget) for task in arm.by_attempts))
    ratios = {arm.label: paired_ratio(arm.by_attempts, best.by_attempts, budget) for arm in arms if arm not in forms}
    cells = [f"{label} {found.value:.2f} ({found.low:.2f}–{found.high:.2f})" for label, found in ratios.items()]
    return f"Attempts ÷ those of {best.label} (the best form) at the same task, geometric mean: {', '.join(cells)}\n"


def main() -> None:
    """Chooses the sets, runs what is missing, then tabulates and plots everything."""
    if sys.argv[1:2] == [PART]:  # a subprocess of `selection`
        attend()
        measure_candidates(Path(sys.argv[2]), json.load(sys.stdin))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/discovery"), help="folder for searches and results")
    parser.add_argument("--data", type=Path, help="MBPP as JSONL, in place of coined verbs")
    parser.add_argument("--model", default="", help="directory or hub name (default: the sapling)")
    parser.add_argument("--device", default="", help="cpu, cuda, … (default: what there is)")
    parser.add_argument("--dtype", default="", help="float32 or bfloat16 (default: by the device)")
    parser.add_argument("--new-tokens", type=int, default=256, help="of an answer, with --data")
    parser.add_argument("--tasks", type=int, default=20, help="tasks of each set, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=640, help="attempts for each task and seed")
    parser.add_argument("--candidates", type=int, default=60, help="verbs or rows from which the sets are chosen")
    parser.add_argument("--samples", type=int, default=2176, help="bare attempts behind pass@k of a candidate")
    parser.add_argument("--k", type=int, default=K, help="k of pass@k, at most --samples")
    parser.add_argument("--draw", type=int, default=4000, help="decides which verbs are drawn")
    parser.add_argument("--arms", nargs="*", help="as `selfdistill compare --arm` takes them")
    parser.add_argument(
        "--window", type=int, default=0, help="most tokens of a prompt (default: 288, or with --data all)"
    )
    parser.add_argument("--unique", action="store_true", help="also without attempts that equal a failed one")
    parser.add_argument("--tiny", action="store_true", help="a small random model and two programs")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.tiny:
        chosen.model, chosen.data = str(write_model(chosen.out / "model", SIZES["tiny"])), chosen.out / "tiny.jsonl"
        chosen.data.write_text("".join(json.dumps(row) + "\n" for row in TINY_ROWS), encoding="utf-8")
        chosen.seeds, chosen.budget, chosen.candidates, chosen.samples, chosen.tasks = 1, 4, 2, 4, 2
        chosen.k, chosen.new_tokens, chosen.unique = 2, 8, True
    if chosen.arms is None:
        window, lora = (VERBS_WINDOW, "") if chosen.data is None else (0, PROGRAMS_LORA)
        chosen.arms = arms_for(chosen.window or window, lora)
    if chosen.data is not None:
        lines = chosen.data.read_text(encoding="utf-8").splitlines(keepends=True)[: chosen.candidates]
        (chosen.out / "candidates.jsonl").write_text("".join(lines), encoding="utf-8")
        chosen.candidates = len(lines)
    with RunDisplay() as display:
        sets = selection(chosen, display)
        tasks = sorted({task for own in sets.values() for task in own})
        for unique in (False, True)[: 1 + chosen.unique] if tasks else ():
            out = chosen.out / "unique" if unique else chosen.out
            whole, found = run_comparison(strategy_comparison(chosen, tasks, unique=unique), out, display)
            write_results(chosen, sets, whole, found, out)


def write_results(
    chosen: argparse.Namespace,
    sets: Mapping[str, Sequence[str]],
    whole: StrategyComparison,
    found: Mapping[str, Sequence[SolveResult]],
    out: Path,
) -> None:
    """Tables and a figure of each set."""
    parts = ["# Discovery\n", (__doc__ or "").split("\n\n", 1)[1], f"\nSettings: {vars(chosen)}\n"]
    for name, own in sets.items():
        parts.append(f"\n## {name}: {len(own)} tasks x {whole.seeds} seeds\n")
        if not own:
            parts.append("None is one.\n")
            continue
        arms = arms_of(whole, found, own)
        parts += [report(arms, whole.budget), against_reading(arms, whole.budget)]
        figure = out / f"discovery-{name.replace(' ', '-')}.png"
        discovery_figure(arms, whole.budget, f"Discovery, {name}", figure)
    (out / "results.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
