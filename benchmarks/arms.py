"""What the benchmarks on real data share: arms that are trained in stages and measured between them, and their tables.

A stage ends at a number of steps: the run is trained up to it (`sd.train`, resumed where it had begun) and the weights
it then has are measured (`sd.evaluate`). What is finished is not done again, so that a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import selfdistill as sd
from selfdistill.config import parse_override
from selfdistill.runs import Event, Note, RolloutRecord, StepEnd
from selfdistill.runs.stats import Estimate, clustered_share, paired_difference
from selfdistill.runs.store import CONFIG, write_atomic

SOLVED = 0.5  # a reward from which an answer counts as right
Scores = Mapping[str, Sequence[float]]  # by task, of each of its answers 1 (right) or 0


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def parser(about: str | None, out: str, *, trains: bool = True) -> argparse.ArgumentParser:
    """A command line with the options that every benchmark of a real model has, and those of training; `out` names its
    folder in `runs`."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="", help="directory or hub name; left out with --tiny")
    found.add_argument("--out", type=Path, default=Path("runs", out), help="folder of runs and results")
    found.add_argument("--device", default="auto")
    found.add_argument("--dtype", default="auto")
    found.add_argument("--new-tokens", type=int, default=128, help="most tokens of an answer")
    if trains:
        found.add_argument("--seeds", type=int, default=1)
        found.add_argument("--lr", type=float, default=1e-4)
        found.add_argument("--lora", type=int, default=16, help="rank; 0: all weights")
    found.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    found.add_argument("--tiny", action="store_true", help="a small random model, to see that it runs")
    return found


def pairs(settings: Iterable[str]) -> dict[str, Any]:
    """Settings as KEY=VALUE."""
    return dict(map(parse_override, settings))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def read_json(path: Path) -> Any:
    """A file of JSON."""
    return json.loads(path.read_text("utf-8"))


def clear(path: Path) -> None:
    """Removes what a measurement that was killed has left."""
    shutil.rmtree(path, ignore_errors=True)


def train_to(path: Path, steps: int, settings: Mapping[str, Any]) -> sd.Run:
    """The run of a directory, trained up to so many steps: begun, resumed, or read where it has come so far."""
    begun = (path / CONFIG).is_file()
    if begun and (run := sd.read_run(path)).summary and run.summary.steps >= steps:
        return run
    say(f"{path.name}: training to step {steps}")
    if begun:
        return sd.train(resume=path, steps=steps, progress=False, callbacks=_shown)
    clear(path)
    return sd.train(out=path, steps=steps, progress=False, callbacks=_shown, **settings)


def _shown(event: Event) -> None:
    """The step and what was measured in it, one line each."""
    if isinstance(event, StepEnd):
        record = event.record
        say(f"  step {record.step}: right {record.accuracy:.2f}, {record.wall_s:.0f} s, dropped {dict(record.dropped)}")
    elif isinstance(event, Note):
        say(f"  {event.text}")


def measured(model: str | Path, out: Path, settings: Mapping[str, Any]) -> list[RolloutRecord]:
    """The answers of a model to the tasks of `settings`, measured once."""
    if not (out / "done").exists():
        say(f"{out.name}: measuring {model}")
        clear(out)
        sd.evaluate(model, out=out, split="train", progress=False, **settings)
        (out / "done").touch()
    return list(sd.read_run(out).rollouts())


def right(answers: Iterable[RolloutRecord], *, first_turn: bool = False) -> dict[str, list[float]]:
    """By task which answers are right; with `first_turn`, of conversations, which were right at once."""
    found: dict[str, list[float]] = {}
    for one in answers:
        solved = (one.reward or 0.0) >= SOLVED and not (first_turn and len(one.turns) > 1)
        found.setdefault(one.task, []).append(float(solved))
    return found


def accuracy(scores: Scores) -> Estimate:
    """The share of right answers, clustered by task."""
    return clustered_share([(sum(own), len(own)) for own in scores.values()])


def change(after: Sequence[Scores], before: Sequence[Scores]) -> Estimate:
    """The mean difference of accuracy on the same tasks; seeds of one task are averaged, and tasks are the units."""
    differences: dict[str, list[float]] = {}
    for one, other in zip(after, before, strict=True):
        for task in one.keys() & other.keys():
            differences.setdefault(task, []).append(fmean(one[task]) - fmean(other[task]))
    return paired_difference([fmean(differences[task]) for task in sorted(differences)])


def pooled(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """The answers of all seeds, by task."""
    found: dict[str, list[float]] = {}
    for one in scores:
        for task, own in one.items():
            found.setdefault(task, []).extend(own)
    return found


def learning_seconds(run: sd.Run, steps: int) -> float:
    """Seconds that the first steps took, without what was measured between them."""
    return sum(sum(record.seconds.values()) for record in run.steps if record.step <= steps)


def shown(value: Estimate, *, sign: bool = False) -> str:
    """An estimate as text: .29 [.22, .37], or +.04 [−.02, +.10]."""
    numbers = (value.value, value.low, value.high)
    texts = [f"{number:{'+.2f' if sign else '.2f'}}".replace("0.", ".", 1).replace("-", "−") for number in numbers]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; columns of numbers are not set apart."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def save(out: Path, name: str, values: Any, text: str) -> None:
    """The results as NAME.json and NAME.md, and on standard output."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{name}.json", json.dumps(values, indent=1) + "\n")
    write_atomic(out / f"{name}.md", text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
