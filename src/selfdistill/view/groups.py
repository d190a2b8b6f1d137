"""Groups of runs that differ in their seed only, with the mean of their accuracies and its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.errors import RunError
from selfdistill.runs import Estimate, EvalRecord, EvalSplit, Run
from selfdistill.runs.stats import mean_of_shares
from selfdistill.runs.store import SEARCH

# Names of the splits by environment.
SPLIT_NAMES: Mapping[str, Mapping[EvalSplit, str]] = {
    "verbs": {"train": "new verbs", "held_out": "plain English", "forgetting": "known verbs"},
}
GENERAL: Mapping[EvalSplit, str] = {
    "train": "training tasks",
    "held_out": "held-out tasks",
    "forgetting": "earlier skills",
    "teacher": "teacher",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one method, by seed."""

    label: str
    runs: tuple[Run, ...]

    def at(self, split: EvalSplit, pick: Callable[[Sequence[EvalRecord]], EvalRecord | None]) -> Estimate | None:
        """The accuracy of the evaluation that `pick` chooses in each run; None when no run has one.

        One run: its own interval, over tasks. Several: that of their mean, over seeds.
        """
        chosen = [record for run in self.runs if (record := pick(run.evals_of(split))) is not None]
        if len(chosen) == 1:
            return chosen[0].accuracy
        if not chosen:
            return None
        return mean_of_shares([record.accuracy for record in chosen])

    def curve(self, split: EvalSplit) -> list[tuple[int, Estimate]]:
        """Accuracy by completions, where every run has an evaluation."""
        steps = [{record.completions_sampled for record in run.evals_of(split)} for run in self.runs]
        shared = sorted(set.intersection(*steps)) if steps else []
        points = [(completions, self.at(split, _at(completions))) for completions in shared]
        return [(completions, estimate) for completions, estimate in points if estimate is not None]


def first(records: Sequence[EvalRecord]) -> EvalRecord | None:
    """The evaluation before training."""
    return next((record for record in records if record.step == 0), None)


def last(records: Sequence[EvalRecord]) -> EvalRecord | None:
    """The latest evaluation."""
    return records[-1] if records else None


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Groups by method, in the order in which they first come; by learning rate too where those of a method differ.

    Raises `RunError` for a search of `selfdistill solve`: it has no accuracies, and its budget is another one.
    """
    runs = list(runs)
    for run in runs:
        if SEARCH in run.config.get("settings", {}):
            raise RunError(
                "this is a search for solutions, and no run of training",
                got=run.path,
                why="a search measures no accuracy; searches are compared by how soon they solve their tasks",
                do="selfdistill compare --arm … compares strategies; --resume resumes a strategy comparison",
            )
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run_label(run), set()).add(_rate(run))
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        label = run_label(run)
        several = len(rates[label]) > 1
        by_label.setdefault(f"{label}, lr {_rate(run):g}" if several else label, []).append(run)
    return [Group(label, tuple(members)) for label, members in by_label.items()]


def run_label(run: Run) -> str:
    """The label of a run in tables and plots: its method, with replay or not."""
    settings = run.config.get("settings", {})
    name = str(_name(settings.get("method", run.path.name)))
    label = name.upper() if len(name) <= 4 else name
    return f"{label} + replay" if settings.get("replay") else label


def _rate(run: Run) -> float:
    return float(run.config.get("settings", {}).get("optimiser", {}).get("lr", 0.0))


def split_name(runs: Sequence[Run], split: EvalSplit) -> str:
    """The name of a split for these runs."""
    envs = {str(_name(run.config.get("settings", {}).get("env", ""))) for run in runs}
    names = SPLIT_NAMES.get(envs.pop(), {}) if len(envs) == 1 else {}
    return names.get(split, GENERAL[split])


def _name(entry: Any) -> Any:
    return entry.get("name", "") if isinstance(entry, Mapping) else entry


def _at(completions: int) -> Callable[[Sequence[EvalRecord]], EvalRecord | None]:
    return lambda records: next((record for record in records if record.completions_sampled == completions), None)
