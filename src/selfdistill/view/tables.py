"""Run directories side by side, as text: a column for each method, a row for each thing measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

from selfdistill.runs import Estimate, EvalSplit, Run
from selfdistill.view.groups import Group, first, grouped, last, split_name

TARGETS = (0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. `note` describes the numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown, its note below it."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{body}\n\n{self.note}\n" if self.note else f"{body}\n"


def comparison(runs: Sequence[Run], targets: Sequence[float] = TARGETS) -> Table:
    """Accuracy, cost and forgetting of each method."""
    groups = grouped(runs)
    rows: dict[str, list[str]] = {}
    splits: tuple[EvalSplit, ...] = ("train", "held_out", "forgetting")
    for split in splits:
        if any(run.evals_of(split) for run in runs):
            for moment, pick in (("before", first), ("after", last)):
                rows[f"{split_name(runs, split)}: {moment}"] = [_estimate(group.at(split, pick)) for group in groups]
        if split == "train":
            rows["tasks solved"] = [_solved(group) for group in groups]
            for target in targets:
                rows[f"completions to reach {target:.2f}"] = [_completions_to(group, target) for group in groups]
    rows["completions"] = [span([_completions(run) for run in group.runs]) for group in groups]
    rows["wall time"] = [duration(fmean(_wall_s(run) for run in group.runs)) for group in groups]
    header = ("", *(group.label for group in groups))
    return Table(header, [(name, *cells) for name, cells in rows.items()], _note(groups, runs))


def completions_to_reach(run: Run, target: float, split: EvalSplit = "train") -> int | None:
    """Completions sampled before the first evaluation with at least this accuracy; None when there is none."""
    return next((record.completions_sampled for record in run.evals_of(split) if record.accuracy.value >= target), None)


def duration(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def with_interval(estimate: Estimate, form: str, unit: str = "") -> str:
    """A value with its 95 % interval, both in one format."""
    return f"{estimate.value:{form}}{unit} ({estimate.low:{form}}–{estimate.high:{form}})"


def _estimate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.3f} ({estimate.low:.2f}–{estimate.high:.2f})"


def _solved(group: Group) -> str:
    counts = [(record.solved, record.tasks) for run in group.runs if (record := last(run.evals_of("train")))]
    if not counts:
        return "–"
    return f"{sum(solved for solved, _ in counts) / len(counts):.4g} of {counts[0][1]}"


def _completions_to(group: Group, target: float) -> str:
    reached = [value for run in group.runs if (value := completions_to_reach(run, target)) is not None]
    if not reached:
        return "not reached"
    partly = f" ({len(reached)} of {len(group.runs)} seeds)" if len(reached) < len(group.runs) else ""
    return span(reached) + partly


def span(values: Collection[int]) -> str:
    """The least and the largest number, once where they are equal."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def sample_size(answers: Collection[int]) -> str:
    """How many answers the evaluations of training tasks have, for a caption; `answers` is empty without any."""
    return f"n = {span(answers)} answers an evaluation" if answers else "no evaluation of training tasks"


def _completions(run: Run) -> int:
    return run.steps[-1].completions_sampled if run.steps else 0


def _wall_s(run: Run) -> float:
    if run.summary:
        return run.summary.wall_s
    return run.steps[-1].wall_s if run.steps else 0.0


def _note(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    seeds = max(len(group.runs) for group in groups)
    sizes = {record.accuracy.n for run in runs if (record := last(run.evals_of("train")))}
    one = "one seed, 95 % by Wilson's interval over tasks"
    interval = f"mean of {seeds} seeds, 95 % over seeds" if seeds > 1 else one
    return f"Accuracy ({interval}); {sample_size(sizes)}."
