"""How runs look while they run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selfdistill.runs import EvalRecord, EvalSplit, RunInfo, StepRecord, Summary
from selfdistill.view.tables import duration

REDRAW_S = 0.1
PLAIN_PHASE_S = 5.0
MANY = 12  # rows from which on those that are done make room
COLUMNS = ("run", "", "step", "accuracy", "batch", "reward", "loss", "dropped", "completions", "left", "now")


@dataclass(slots=True)
class Row:
    """What is known of one run."""

    label: str
    began: float
    info: RunInfo | None = None
    last: StepRecord | None = None
    accuracies: dict[EvalSplit, EvalRecord] = field(default_factory=dict)
    dropped: int = 0
    phase: str = "starting"
    spoke: float = 0.0
    done: bool = False

    def left(self, now: float) -> str:
        """The time left at the pace so far; unknown where nobody knows how many steps there will be."""
        if self.info is None or not self.info.steps or self.last is None or self.last.step == self.info.first_step:
            return "–"
        pace = (now - self.began) / (self.last.step - self.info.first_step)
        return duration(pace * max(0, self.info.steps - self.last.step))

    def steps(self) -> str:
        """Steps made, of how many where that is known."""
        made = self.last.step if self.last else self.info.first_step if self.info else 0
        return f"{made}/{self.info.steps}" if self.info and self.info.steps else str(made) if made else "–"

    def accuracy(self) -> str:
        """The latest measured accuracy on the run's tasks."""
        record = self.accuracies.get("train")
        return f"{record.accuracy.value:.3f}" if record else "–"


class RunDisplay:
    """Shows one or several runs at once. Use it in a `with`, and give `reporter(label)` to each run.

    It draws when something happens and not from a thread of its own: nothing moves between two events.
    """

    def __init__(self, console: Console | None = None, timer: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console()
        self.timer = timer
        self.rows: list[Row] = []
        self._drawn = 0.0
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def reporter(self, label: str) -> RowReporter:
        """A reporter that shows its run on a row of its own."""
        row = Row(label, self.timer())
        self.rows.append(row)
        return RowReporter(self, row)

    def __enter__(self) -> RunDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def changed(self, *, at_once: bool = False) -> None:
        """Draws again, at most ten times a second."""
        now = self.timer()
        if self._live and (at_once or now - self._drawn >= REDRAW_S):
            self._drawn = now
            self._live.update(self.table(), refresh=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False)

    @property
    def is_live(self) -> bool:
        """Whether a terminal shows the table."""
        return self._live is not None

    def table(self) -> RenderableType:
        """All rows as they stand."""
        table = Table(*COLUMNS, box=None, pad_edge=False, header_style="dim")
        shown = self.rows if len(self.rows) < MANY else [row for row in self.rows if not row.done]
        for row in shown:
            table.add_row(*self._cells(row))
        return Group(
            table, Text("accuracy: greedy, on the run's tasks · batch: share of this step's rollouts", style="dim")
        )

    def _cells(self, row: Row) -> tuple[RenderableType, ...]:
        steps = row.info.steps if row.info else 0
        step = row.last.step if row.last else row.info.first_step if row.info else 0
        numbers = _numbers(row)
        return (
            Text(row.label, style="bold"),
            ProgressBar(total=max(steps, 1), completed=step if steps else 0, width=16),
            row.steps(),
            Text(row.accuracy(), style="bold green"),
            *numbers,
            row.left(self.timer()),
            Text(row.phase, style="dim"),
        )


class RowReporter:
    """The `Reporter` of one run."""

    def __init__(self, display: RunDisplay, row: Row) -> None:
        self.display, self.row = display, row

    def started(self, info: RunInfo) -> None:
        """Says what runs, on what, and where its records go."""
        self.row.info, self.row.began, self.row.done = info, self.display.timer(), False
        again = f", going on after step {info.first_step}" if info.first_step else ""
        self.display.say(
            f"{self.row.label}: {info.method} on {info.env}, model {info.model}, device {info.device}, "
            f"{_amount(info)}{again} → {info.path}"
        )
        self.display.changed(at_once=True)

    def note(self, text: str) -> None:
        """A sentence that stays on the screen."""
        self.display.say(f"{self.row.label}: {text}")

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """What is going on now; without a terminal, said every few seconds only."""
        self.row.phase = f"{name} {done}/{total}" if total else name
        now = self.display.timer()
        if not self.display.is_live and now - max(self.row.spoke, self.row.began) >= PLAIN_PHASE_S:
            self.row.spoke = now
            self.display.say(f"{self.row.label}: {self.row.phase}")
        self.display.changed()

    def step(self, record: StepRecord) -> None:
        """One step was made: a generation batch, and its updates."""
        self.row.last = record
        self.row.dropped += sum(record.dropped.values())
        if not self.display.is_live:
            self.row.spoke = self.display.timer()
            self.display.say(_line(self.row, record, self.row.left(self.display.timer())))
        self.display.changed()

    def evaluated(self, record: EvalRecord) -> None:
        """An accuracy was measured."""
        self.row.accuracies[record.split] = record
        if not self.display.is_live:
            self.display.say(f"{self.row.label}: step {record.step}, accuracy on {record.split} {record.accuracy}")
        self.display.changed(at_once=True)

    def finished(self, summary: Summary) -> None:
        """The run is done."""
        self.row.phase, self.row.done = f"done in {duration(summary.wall_s)}", True
        if not self.display.is_live:
            self.display.say(f"{self.row.label}: {self.row.phase}")
        self.display.changed(at_once=True)


def _amount(info: RunInfo) -> str:
    """How many steps and answers there will be, as far as that is known."""
    kinds = {"completions": info.completions_sampled, "given answers": info.given}
    counts = " and ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    steps = f"{info.steps} steps" if info.steps else "steps while the budget lasts"
    return f"{steps}, {'at least ' if info.more else ''}{counts}" if counts else steps


def _numbers(row: Row) -> tuple[str, ...]:
    record = row.last
    if record is None:
        return ("–",) * 5
    return (
        f"{record.accuracy:.3f}",
        f"{record.reward:.3f}",
        f"{record.loss:.4f}",
        f"{row.dropped:,}",
        f"{record.completions_sampled:,}",
    )


def _line(row: Row, record: StepRecord, left: str) -> str:
    batch, reward, loss, dropped, completions = _numbers(row)
    return (
        f"{row.label}: step {row.steps()}  accuracy {row.accuracy()}  batch {batch}  reward {reward}  "
        f"loss {loss}  dropped {dropped}  completions {completions}  left {left}"
    )
