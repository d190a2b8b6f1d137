"""Discovery side by side: how many tasks are solved by how many attempts, as curves and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from selfdistill.runs import discovery
from selfdistill.runs.discovery import Discovery, Independent, Sequential
from selfdistill.runs.solving import SolveResult
from selfdistill.view.plots import COLOURS, STYLE, plot_band, write_figure
from selfdistill.view.tables import Table, with_interval

POINTS = 40  # of a curve
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")


@dataclass(frozen=True, slots=True)
class ArmResults:
    """One strategy on the tasks of the comparison, in their order: by attempts, and by rounds of attempts made at once,
    of which the budget allows `rounds`."""

    label: str
    by_attempts: Sequence[Discovery]
    by_rounds: Sequence[Discovery]
    rounds: int


def arm_of(label: str, results: Sequence[SolveResult], *, batch: int, independent: bool = False) -> ArmResults:
    """From the results of all seeds and tasks under one budget of attempts. `batch` attempts make a round.

    `independent` attempts, which must have gone on to the end of their budget, are pooled over seeds.
    """
    tasks: dict[str, list[SolveResult]] = {}
    for result in sorted(results, key=lambda result: result.task):
        tasks.setdefault(result.task, []).append(result)
    budget = results[0].budget
    rounds = -(-budget // batch)
    if independent:
        counts = [(sum(r.attempts for r in own), sum(r.right for r in own)) for own in tasks.values()]
        by_rounds = [Independent(*both, per=batch) for both in counts]
        return ArmResults(label, [Independent(*both) for both in counts], by_rounds, rounds)
    rounds = max(rounds, *(result.rounds for result in results))  # a round may have fewer attempts than its batch
    return ArmResults(
        label,
        [Sequential(tuple(r.solved_at for r in own), budget) for own in tasks.values()],
        [Sequential(tuple(r.solved_round for r in own), rounds) for own in tasks.values()],
        rounds,
    )


def report(arms: Sequence[ArmResults], budget: int) -> str:
    """The tables as Markdown."""
    parts = [
        means_table(arms, budget),
        f"paired: geometric mean over tasks of the attempts of the arm ÷ those of {arms[-1].label} at the same task\n",
        f"Attempts to reach each level of discovery, and how many times fewer {arms[-1].label} needs:\n",
        levels_table(arms, budget),
    ]
    for arm in arms:
        if all(isinstance(task, Independent) for task in arm.by_attempts):
            parts.append(_never_solved(arm, [other for other in arms if other is not arm], budget))
    return "\n".join(parts)


def _never_solved(arm: ArmResults, others: Sequence[ArmResults], budget: int) -> str:
    never = [place for place, task in enumerate(arm.by_attempts) if task.by(budget) == 0]
    found = (f"{o.label} {sum(o.by_attempts[place].by(budget) > 0 for place in never)}" for o in others)
    return f"Of the {len(never)} tasks that {arm.label} never solves, solved by some seed: {', '.join(found)}\n"


def discovery_figure(arms: Sequence[ArmResults], budget: int, title: str, file: Path) -> Path:
    """Curves by attempts and by rounds, bands of 95 % over tasks, as a PNG. Raises `RunError` if it cannot be
    written."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for index, arm in enumerate(arms):
            _curve(left, arm.label, arm.by_attempts, budget, index)
            _curve(right, arm.label, arm.by_rounds, arm.rounds, index)
        left.set(title=title, xlabel="k, attempts", ylabel="discovery@k", ylim=(0, 1.02))
        right.set(title="the same by rounds", xlabel="k, sequential rounds of attempts made at once")
        right.legend(loc="best", fontsize=8)
        return write_figure(figure, "bands: 95 % intervals over tasks", file)


def _curve(axes: Axes, label: str, tasks: Sequence[Discovery], last: int, index: int) -> None:
    places = sorted({max(1, round(last ** (point / (POINTS - 1)))) for point in range(POINTS)})
    found = [discovery.discovery_at(tasks, k) for k in places]
    colour = COLOURS[index % len(COLOURS)]
    plot_band(axes, places, found, color=colour, alpha=0.1, step="post")
    style = DASHES[index % len(DASHES)]
    axes.step(places, [e.value for e in found], where="post", label=label, color=colour, ls=style, lw=1.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def means_table(arms: Sequence[ArmResults], budget: int) -> str:
    """Markdown: each arm's discovery@k, mean attempts, their ratio to those of the last arm, and the geometric mean of
    the ratio of the same task's attempts."""
    best, rows = arms[-1], []
    marks = sorted({max(1, budget // share) for share in (16, 4, 1)})
    head = ["arm", *(f"discovery@{k}" for k in marks), f"mean attempts (≤ {budget:,})"]
    head += [f"÷ {best.label}", "paired", "rounds"]
    for arm in arms:
        ratio = discovery.ratio_of_means(arm.by_attempts, best.by_attempts, budget)
        rounds = discovery.mean_attempts(arm.by_rounds, arm.rounds)
        cells = [with_interval(discovery.discovery_at(arm.by_attempts, k), ".2f") for k in marks]
        cells += [with_interval(discovery.mean_attempts(arm.by_attempts, budget), ",.0f")]
        paired = discovery.paired_ratio(arm.by_attempts, best.by_attempts, budget)
        cells += ["" if arm is best else with_interval(ratio, ".1f", "×")]
        cells += ["" if arm is best else with_interval(paired, ".2f", "×"), f"{rounds.value:,.1f}"]
        rows.append([arm.label, *cells])
    return Table(head, rows).markdown()


def levels_table(arms: Sequence[ArmResults], budget: int) -> str:
    """Markdown: attempts of each arm to reach each tenth of discovery, and their ratio to those of the last arm."""
    best, rows = arms[-1], []
    levels = [tenth / 10 for tenth in range(1, 11)]
    for arm in arms:
        cells = []
        for level in levels:
            own, least = (
                discovery.attempts_to_reach(tasks, level, budget) for tasks in (arm.by_attempts, best.by_attempts)
            )
            ratio = "" if arm is best or own is None or least is None else f" ({own / least:.1f}×)"
            cells.append("–" if own is None else f"{own:,}{ratio}")
        rows.append([arm.label, *cells])
    return Table(["arm", *(f"{level:.0%}" for level in levels)], rows).markdown()
