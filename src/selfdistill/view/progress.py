"""How runs look while they run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selfdistill.runs import EvalEnd, Event, Guard, Note, Phase, RunEnd, RunStart, StepEnd, StepRecord
from selfdistill.view.tables import duration

REDRAW_S = 0.1
PLAIN_PHASE_S = 5.0  # seconds between two lines about the current phase, without a terminal
MANY = 12  # runs from which on finished ones are hidden
COLUMNS = ("run", "", "step", "accuracy", "batch", "reward", "loss", "dropped", "completions", "left", "now")
LEGEND = "accuracy: greedy, on the run's tasks · batch: share of this step's rollouts"


@dataclass(slots=True)
class RunRow:
    """The state of one run."""

    label: str
    began: float
    start: RunStart | None = None
    last: StepRecord | None = None
    accuracy: str = "–"
    dropped: int = 0
    phase: str = "starting"
    printed: float = 0.0
    done: bool = False

    @property
    def step(self) -> int:
        """Steps made, before a resume too."""
        return self.last.step if self.last else self.start.first_step if self.start else 0

    def cells(self, now: float) -> tuple[str, ...]:
        """Step, accuracy, batch, reward, loss, dropped, completions and time left, as text."""
        total, last = self.start.steps if self.start else 0, self.last
        steps = f"{self.step}/{total}" if total else str(self.step or "–")
        if last is None:
            return (steps, self.accuracy, *("–",) * 6)
        numbers = (f"{last.accuracy:.3f}", f"{last.reward:.3f}", f"{last.loss:.4f}", f"{self.dropped:,}")
        return (steps, self.accuracy, *numbers, f"{last.completions_sampled:,}", self.left(now))

    def left(self, now: float) -> str:
        """The time left at the mean pace so far, where the number of steps is known."""
        made = self.step - (self.start.first_step if self.start else 0)
        if self.start is None or not self.start.steps or not made:
            return "–"
        return duration((now - self.began) / made * max(0, self.start.steps - self.step))


class RunDisplay:
    """A callback that shows one or several runs at once. Use it in a `with`; `label` names events of no named run.

    It draws on events and not from a thread of its own.
    """

    def __init__(
        self, label: str = "", console: Console | None = None, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self.label = label
        self.console = console or Console()
        self.timer = timer
        self.rows: dict[str, RunRow] = {}
        self._drawn = 0.0
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> RunDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Prints what stays, and redraws the table at most ten times a second."""
        now, label = self.timer(), event.run or self.label
        row = self.rows.setdefault(label, RunRow(label, now))
        text = self._line(row, event, now)
        if text and (self._live is None or isinstance(event, RunStart | Note | Guard)):
            row.printed = now
            self.console.print(f"{label}: {text}", highlight=False, markup=False)
        at_once = isinstance(event, RunStart | EvalEnd | RunEnd)
        if self._live and (at_once or now - self._drawn >= REDRAW_S):
            self._drawn = now
            self._live.update(self.table(), refresh=True)

    def _line(self, row: RunRow, event: Event, now: float) -> str:
        """Takes the event into its row; returns the line that describes it."""
        match event:
            case RunStart():
                row.start, row.began, row.done = event, now, False
                return _described(event)
            case Note() | Guard():
                return event.text
            case Phase():
                row.phase = f"{event.name} {event.done}/{event.total}" if event.total else event.name
                return row.phase if now - max(row.printed, row.began) >= PLAIN_PHASE_S else ""
            case StepEnd():
                row.last = event.record
                row.dropped += sum(event.record.dropped.values())
                pairs = zip((COLUMNS[2], *COLUMNS[3:-1]), row.cells(now), strict=True)
                return "  ".join(f"{name} {cell}" for name, cell in pairs)
            case EvalEnd(record=record):
                if record.split == "train":
                    row.accuracy = f"{record.accuracy.value:.3f}"
                return f"step {record.step}, accuracy on {record.split} {record.accuracy}"
            case RunEnd():
                row.phase, row.done = f"done in {duration(event.summary.wall_s)}", True
                return row.phase
        return ""

    def table(self) -> Group:
        """All runs; of many, those that are not finished."""
        table, now = Table(*COLUMNS, box=None, pad_edge=False, header_style="dim"), self.timer()
        for row in self.rows.values():
            if len(self.rows) >= MANY and row.done:
                continue
            steps = row.start.steps if row.start else 0
            bar = ProgressBar(total=max(steps, 1), completed=row.step if steps else 0, width=16)
            made, accuracy, *numbers = row.cells(now)
            phase, accurate = Text(row.phase, style="dim"), Text(accuracy, style="bold green")
            table.add_row(Text(row.label, style="bold"), bar, made, accurate, *numbers, phase)
        return Group(table, Text(LEGEND, style="dim"))


def _described(start: RunStart) -> str:
    """Method, environment, model, device, number of steps and answers, and the run directory."""
    kinds = {"completions": start.completions_sampled, "given answers": start.given}
    counts = " and ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    amount = f"{start.steps} steps" if start.steps else "steps while the budget lasts"
    amount += f", {'at least ' if start.more else ''}{counts}" if counts else ""
    resumed = f", resumed after step {start.first_step}" if start.first_step else ""
    where = f"{start.method} on {start.env}, model {start.model}, device {start.device}"
    return f"{where}, {amount}{resumed} → {start.path}"
