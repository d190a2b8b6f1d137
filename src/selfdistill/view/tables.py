"""Run directories side by side, as text: a column for each method, a row for each thing measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfdistill.runs import Estimate, EvalSplit, Run
from selfdistill.view.groups import Group, first, grouped, last, split_name

TARGETS = (0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. `note` describes the numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown, its note below it."""
        lines = [self.header, tuple("---" if i == 0 else "---:" for i in range(len(self.header))), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{body}\n\n{self.note}\n" if self.note else f"{body}\n"


def comparison(runs: Sequence[Run], targets: Sequence[float] = TARGETS) -> Table:
    """Accuracy, cost and forgetting of each method."""
    groups = grouped(runs)
    rows: list[tuple[str, ...]] = []

    def add(name: str, cell: Callable[[Group], str]) -> None:
        rows.append((name, *(cell(group) for group in groups)))

    for split in ("train", "held_out", "forgetting"):
        if any(run.evals_of(split) for run in runs):
            add(f"{split_name(runs, split)}: before", lambda group, s=split: _estimate(group.at(s, first)))  # type: ignore[misc]
            add(f"{split_name(runs, split)}: after", lambda group, s=split: _estimate(group.at(s, last)))  # type: ignore[misc]
        if split == "train":
            add("tasks solved", _solved)
            for target in targets:
                add(f"completions to reach {target:.2f}", lambda group, t=target: _completions_to(group, t))  # type: ignore[misc]
    add("completions", lambda group: _range([_completions(run) for run in group.runs]))
    add("wall time", lambda group: duration(sum(_wall_s(run) for run in group.runs) / len(group.runs)))
    return Table(("", *(group.label for group in groups)), tuple(rows), _note(groups, runs))


def completions_to_reach(run: Run, target: float, split: EvalSplit = "train") -> int | None:
    """Completions sampled before the first evaluation with at least this accuracy; None when there is none."""
    return next((record.completions_sampled for record in run.evals_of(split) if record.accuracy.value >= target), None)


def duration(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


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
    return _range(reached) + partly


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _completions(run: Run) -> int:
    return run.steps[-1].completions_sampled if run.steps else 0


def _wall_s(run: Run) -> float:
    if run.summary:
        return run.summary.wall_s
    return run.steps[-1].wall_s if run.steps else 0.0


def _note(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    seeds = max(len(group.runs) for group in groups)
    sizes = {record.accuracy.n for run in runs if (record := last(run.evals_of("train")))}
    n = f"n = {_range(sorted(sizes))}" if sizes else "no evaluation yet"
    interval = (
        f"mean of {seeds} seeds, 95 % over seeds" if seeds > 1 else "one seed, 95 % by Wilson's interval over tasks"
    )
    return f"Accuracy ({interval}); {n} answers an evaluation."
