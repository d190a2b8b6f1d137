"""Ratios with intervals, and the tables they stand in: on a terminal, as markdown and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.against_trl.child import Result, Skipped

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs, once per alternation: median, and the smallest and the largest."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        spread = "" if self.count == 1 else f" ({self.low:.3f}–{self.high:.3f})"
        return f"{self.median:.3f}{spread}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Pair by pair: what ran side by side is compared, so that a busy minute touches both. None without pairs."""
    found = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0 and math.isfinite(a / b)]
    return Ratio(statistics.median(found), min(found), max(found), len(found)) if found else None


def agree(ours: Mapping[str, float], theirs: Mapping[str, float], tolerance: float) -> str:
    """Empty when every number is the same within a share of `tolerance`; else which one is not."""
    for name, wanted in theirs.items():
        got = ours[name]
        if not math.isclose(got, wanted, rel_tol=tolerance, abs_tol=1e-9):
            return f"{name} differs: ours {got:.6g}, theirs {wanted:.6g}"
    return ""


@dataclass
class Measurement:
    """All repeats of one case."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    value: Any = None
    parts: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""

    def add(self, found: Result | Skipped) -> None:
        """One more repeat."""
        if isinstance(found, Skipped):
            self.skipped = found.why
            return
        self.seconds.append(found["seconds"])
        self.peaks.append(found["peak"])
        self.value, self.parts = found["value"], found.get("parts", {})

    @property
    def cells(self) -> list[str]:
        """Seconds and peak, or the reason why there are none."""
        if not self.seconds:
            return [self.skipped or MISSING, MISSING]
        return [f"{statistics.median(self.seconds):.2f} s", f"{statistics.median(self.peaks) / 1e9:.3f} GB"]


@dataclass
class Sheet:
    """A section's table, with what has to be said about it."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """For a terminal."""
        table = Table(*self.columns, title=self.title, caption="\n".join(self.notes), caption_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"## {self.title}\n\n{body}\n\n" + "".join(f"- {note}\n" for note in self.notes)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def goal(name: str, found: Ratio | None, limit: float) -> str:
    """Whether a goal is reached; never an assertion."""
    if found is None:
        return f"{name}: goal ≤ {limit:g}, not measured"
    return f"{name}: goal ≤ {limit:g}, measured {found}: {'reached' if found.median <= limit else 'NOT reached'}"


def seconds_to(points: Sequence[Sequence[float]], accuracy: float, window: int = 3) -> float | None:
    """When the mean of `window` batches in a row first reached an accuracy; None when it never did.

    >>> seconds_to([(1.0, 0.1), (2.0, 0.5), (3.0, 0.7)], 0.4, window=2)
    3.0
    """
    values = smoothed(points, window)
    return next((at for at, value in values if value >= accuracy), None)


def enough(points: Sequence[Sequence[float]], limit_s: float, accuracy: float) -> bool:
    """Whether a side may stop: it has learned this much, or its time is up.

    >>> enough([(1.0, 0.5), (2.0, 0.6), (3.0, 0.7)], 60.0, 0.6)
    True
    """
    return points[-1][0] > limit_s or seconds_to(points, accuracy) is not None


def smoothed(points: Sequence[Sequence[float]], window: int = 3) -> list[tuple[float, float]]:
    """Each time with the mean of the last `window` accuracies."""
    return [
        (points[i][0], statistics.fmean(p[1] for p in points[i + 1 - window : i + 1]))
        for i in range(window - 1, len(points))
    ]


def common_accuracy(curves: Sequence[Sequence[Sequence[float]]]) -> float:
    """The highest accuracy that every curve reaches; 0 when one of them is too short."""
    return min((max((v for _, v in smoothed(curve)), default=0.0) for curve in curves), default=0.0)
