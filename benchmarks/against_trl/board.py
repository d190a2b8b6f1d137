"""A list of cases that is measured one by one, can be stopped and begun again, and is a table at any time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.against_trl.child import ROOT, Skipped, run_case
from benchmarks.against_trl.ratios import MISSING, Sheet, agree

OURS, BEFORE, TRL, GENERATE = "this library", "this library, before", "TRL SDPO", "generate"
NOT_MEASURED = "not measured"
TOLERANCE = 2e-2  # of losses in bfloat16
COLUMNS = ("case", "side", "time", "peak", "tokens/s", "ours / theirs: time", "peak", "MFU", "notes")


@dataclass(frozen=True, slots=True)
class Entry:
    """One process: a worker module, its case, the interpreter, and the sources of this library. `flops` of its work."""

    section: str
    label: str
    side: str
    module: str
    case: Mapping[str, Any]
    python: str = sys.executable
    sources: Path = ROOT
    flops: float = 0.0
    skipped: str = ""

    @property
    def key(self) -> str:
        """What a result is kept under: another case is measured again."""
        return json.dumps([self.section, self.label, self.side, self.module, self.case, str(self.sources)], default=str)


@dataclass
class Board:
    """Results by entry, in `results.json`, and the tables in `results.md`; both are written after every case.
    `prepare` is called before each."""

    folder: Path
    entries: Sequence[Entry]
    peak_flops: float = 0.0
    say: Callable[[str], None] = print
    prepare: Callable[[Entry], None] = lambda entry: None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "results.json"
        if file.is_file():
            self.results = json.loads(file.read_text(encoding="utf-8"))

    def measure(self, limit_s: float, case_s: float) -> None:
        """Runs what was not measured yet, each case for at most `case_s` seconds, all for at most `limit_s`."""
        end = time.monotonic() + limit_s
        self.write()
        for entry in self.entries:
            left = end - time.monotonic()
            if self.results.get(entry.key, {}).get("seconds") or entry.skipped or left < 5:
                continue
            self.say(f"{entry.section} · {entry.label} · {entry.side}")
            self.prepare(entry)
            found = run_case(entry.python, entry.module, entry.case, min(case_s, left), entry.sources)
            self.results[entry.key] = {"why": found.why} if isinstance(found, Skipped) else found
            self.write()

    def write(self) -> None:
        """Both files."""
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        text = "\n".join(sheet.markdown() for sheet in self.sheets())
        (self.folder / "results.md").write_text(text, encoding="utf-8")

    def sheets(self) -> list[Sheet]:
        """A table for each section."""
        sheets = []
        for title, entries in groupby(self.entries, key=lambda entry: entry.section):
            sheet = Sheet(title, COLUMNS)
            for _, sides in groupby(entries, key=lambda entry: entry.label):
                listed = list(sides)
                own = self.results.get(listed[0].key, {})
                sheet.rows += [self._row(entry, own) for entry in listed]
            sheets.append(sheet)
        return sheets

    def _row(self, entry: Entry, own: Mapping[str, Any]) -> list[str]:
        found = self.results.get(entry.key, {})
        if "seconds" not in found:
            why = entry.skipped or found.get("why", "")
            return [entry.label, entry.side, NOT_MEASURED, *[MISSING] * 5, why]
        mfu = f"{entry.flops / found['seconds'] / self.peak_flops:.1%}" if entry.flops and self.peak_flops else MISSING
        ratios = [MISSING, MISSING]
        if own is not found and "seconds" in own:
            ratios = [
                f"{_cost(own) / _cost(found):.3f}",
                f"{own['peak'] / found['peak']:.3f}" if found["peak"] else MISSING,
            ]
        tokens = _tokens(found)
        rate = f"{tokens / found['seconds']:.1f}" if tokens else MISSING
        cells = [f"{found['seconds']:.2f} s", f"{found['peak'] / 1e9:.2f} GB", rate, *ratios, mfu]
        return [entry.label, entry.side, *cells, _notes(found, own)]


def _tokens(found: Mapping[str, Any]) -> float:
    value = found["value"]
    return float(value.get("tokens", 0)) if isinstance(value, dict) else 0.0


def _cost(found: Mapping[str, Any]) -> float:
    """Seconds, for each token where tokens were sampled."""
    return float(found["seconds"]) / (_tokens(found) or 1.0)


def _notes(found: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    notes = []
    if found.get("parts"):
        known = sum(found["parts"].values())
        notes += [f"{name} {part / found['seconds']:.1%}" for name, part in found["parts"].items()]
        notes.append(f"outside the model {1 - known / found['seconds']:.1%}")
    value, other = found["value"], own.get("value")
    if own is not found and isinstance(value, list) and isinstance(other, list) and value and other:
        differs = agree({"loss": other[0]["loss"]}, {"loss": value[0]["loss"]}, TOLERANCE)
        notes.append(differs or "same loss")
    if isinstance(value, dict) and "reward" in value:
        notes.append(f"reward of the last step {value['reward']:.2f}")
        notes += [f"{name} {part / found['seconds']:.1%}" for name, part in found["phases"].items()]
        notes.append(f"else {1 - sum(found['phases'].values()) / found['seconds']:.1%}")
        notes.append(f"weights to the sampler {value['sync_s']:.2f} s" if value["sync_s"] else "")
    return "; ".join(filter(None, notes))
