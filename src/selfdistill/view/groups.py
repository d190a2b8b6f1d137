"""Groups of runs that differ in their seed only, with the mean of their accuracies and its interval."""

from __future__ import annotations

from collections import Counter
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
        chosen = [record.accuracy for run in self.runs if (record := pick(run.evals_of(split))) is not None]
        return mean_of_shares(chosen) if chosen else None

    def curve(self, split: EvalSplit) -> dict[int, Estimate]:
        """Accuracy by completions, where every run has an evaluation; of several the first."""
        found = [{record.completions_sampled: record for record in run.evals_of(split)[::-1]} for run in self.runs]
        shared = sorted(set.intersection(*map(set, found)))
        return {completions: mean_of_shares([own[completions].accuracy for own in found]) for completions in shared}


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
    searches = [run.path for run in runs if SEARCH in run.config["settings"]]
    if searches:
        raise RunError(
            "this is a search for solutions, and no run of training",
            got=searches[0],
            why="a search measures no accuracy; searches are compared by how soon they solve their tasks",
            do="selfdistill compare --arm … compares strategies; --resume resumes a strategy comparison",
        )
    rates = Counter(label for label, _ in {(run_label(run), _rate(run)) for run in runs})
    groups: dict[str, tuple[Run, ...]] = {}
    for run in runs:
        label = run_label(run)
        label += f", lr {_rate(run):g}" if rates[label] > 1 else ""
        groups[label] = (*groups.get(label, ()), run)
    return [Group(label, members) for label, members in groups.items()]


def run_label(run: Run) -> str:
    """The label of a run in tables and plots: its method, with replay or not."""
    settings = run.config["settings"]
    name = str(_name(settings.get("method", run.path.name)))
    label = name.upper() if len(name) <= 4 else name
    return f"{label} + replay" if settings.get("replay") else label


def _rate(run: Run) -> float:
    return float(run.config["settings"].get("optimiser", {}).get("lr", 0.0))


def split_name(runs: Sequence[Run], split: EvalSplit) -> str:
    """The name of a split for these runs."""
    envs = {str(_name(run.config["settings"].get("env", ""))) for run in runs}
    names = SPLIT_NAMES.get(envs.pop(), {}) if len(envs) == 1 else {}
    return names.get(split, GENERAL[split])


def _name(entry: Any) -> Any:
    return entry.get("name", "") if isinstance(entry, Mapping) else entry
