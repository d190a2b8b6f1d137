"""What the pages ask for, as values of JSON: one method for each kind of question.

A page of a file holds the answers to all of its questions, so nothing here knows of HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic_core import to_json

from selfdistill.errors import RunError, nearest
from selfdistill.runs.records import RolloutRecord, numbers_of
from selfdistill.types import ANSWER
from selfdistill.view.site.journal import conversation_of, journal_of
from selfdistill.view.site.library import Entry, Library, name_of, result_of, summary_of
from selfdistill.view.site.prompts import decoder, prompts_of

MOST_ROWS = 4096  # in one table
BEGINNING = 160  # characters of an answer in a table
Query = Mapping[str, str]


class Answers:
    """Answers questions about the entries of a library. Raises `RunError` for what is not there."""

    PARAMETERS: Mapping[str, tuple[str, ...]] = {
        "runs": (), "run": ("id",), "rows": ("id", "steps", "q"), "rollout": ("id", "step", "uid"),
        "prompts": ("id", "step", "uid"), "search": ("id",), "journal": ("id", "q"), "conversation": ("id", "name"),
    }  # fmt: skip

    def __init__(self, library: Library) -> None:
        self.library = library

    def __call__(self, name: str, query: Query) -> bytes:
        """The answer as JSON; numbers that are not finite are strings."""
        if name not in self.PARAMETERS:
            raise RunError(f"there is no question {name!r}", do=nearest(name, self.PARAMETERS))
        values = [query.get(key, "") for key in self.PARAMETERS[name]]
        ask: Callable[..., Any] = getattr(self, name)
        return to_json(ask(*values), inf_nan_mode="strings")

    def runs(self) -> Any:
        """The table of everything."""
        entries = [summary_of(entry) for entry in self.library.look()]
        return {"entries": entries, "roots": list(map(str, self.library.roots))}

    def run(self, name: str) -> Any:
        """A run as a whole: settings, every number of every step, evaluations, decisions of guards."""
        entry = self.library.get(name, "run")
        run = entry.run
        steps = [numbers_of(record) for record in run.steps]
        names = dict.fromkeys(key for numbers in steps for key in numbers)
        sampled, counts = run.steps[-1].completions_sampled if run.steps else 0, entry.counts
        return {
            "id": name, "status": entry.status, "path": str(entry.path), "config": run.config,
            "method": name_of(run.config["settings"].get("method")), "steps": [record.step for record in run.steps],
            "numbers": {key: [numbers.get(key) for numbers in steps] for key in names},
            "evals": run.evals, "guards": run.guards, "preflight": run.preflight, "summary": run.summary,
            "result": result_of(entry), "rows": counts and counts | {"sampled": sampled},
        }  # fmt: skip

    def rows(self, name: str, steps: str, q: str) -> Any:
        """The rollouts of a step, of steps such as 3-5, or of all, in short; with a text those that hold it."""
        entry = self.library.get(name, "run")
        index, places = entry.rows, list[int]()
        for step in _steps(steps):
            places += index.places(step)
        looked = index.read(places if q else places[:MOST_ROWS], json.dumps(q, ensure_ascii=False)[1:-1])
        rows = list[RolloutRecord]()
        for row in looked:
            rows += [row] if q in "\n".join((row.prompt, row.completion, row.feedback, *row.context.values())) else []
            if len(rows) == MOST_ROWS:
                break
        return {"of": len(places), "most": MOST_ROWS, "rows": in_short(rows), "counts": index.counts}

    def rollout(self, name: str, step: str, uid: str) -> Any:
        """One rollout with all that was recorded, and its group in short."""
        entry = self.library.get(name, "run")
        heads = entry.rows.heads(row_step(step))
        row, uids = self._row(entry, step, uid, heads), [name for _, name in heads]
        place, alike = uids.index(row.uid), uid.rpartition("-")[0]
        mine = list(entry.rows.read([at for at, name in heads if name.rpartition("-")[0] == alike]))
        around = [uids[at] if 0 <= at < len(uids) else None for at in (place - 1, place + 1)]
        group = [line for line in in_short(mine) if line["group"] == group_of(row)]
        settings = entry.run.config["settings"]
        sampling, method = settings.get("sampling"), name_of(settings.get("method"))
        return {"row": row, "group": group, "around": around, "method": method, "sampling": sampling}

    def prompts(self, name: str, step: str, uid: str) -> Any:
        """What student and teacher read before a rollout, or before each of its turns."""
        entry = self.library.get(name, "run")
        row, decode = self._row(entry, step, uid, entry.rows.heads(row_step(step))), decoder(entry.path)
        return {"tokenizer": decode is not None, "turns": prompts_of(row, decode)}

    def search(self, name: str) -> Any:
        """The tasks of a search, or of the searches of a comparison, each with its result."""
        entry = self.library.get(name, "search", "comparison")
        tasks = []
        for one in self.library.inside(entry):
            if one.kind == "run":
                folder = one.path.parent.name if entry.kind == "comparison" else ""
                tasks.append({"id": one.id, "arm": re.sub(r"-seed\d+-\d+$", "", folder), "result": result_of(one)})
        return {"id": name, "kind": entry.kind, "tasks": tasks}

    def journal(self, name: str, q: str) -> Any:
        """The conversations of a journal, with a text those that hold it, and the versions."""
        return journal_of(self.library.get(name, "journal").path, q)

    def conversation(self, name: str, conversation: str) -> Any:
        """The exchanges of one conversation."""
        return conversation_of(self.library.get(name, "journal").path, conversation)

    def _row(self, entry: Entry, step: str, uid: str, heads: list[tuple[int, str]]) -> RolloutRecord:
        found = next((row for place, name in heads if name == uid for row in entry.rows.read([place])), None)
        if found is None:
            raise RunError(f"there is no rollout {uid!r} in step {step}", do="go back to the step")
        return found


def row_step(text: str) -> int:
    """A step of a link. Raises `RunError`."""
    if not re.fullmatch(r"\d{1,9}", text):
        raise RunError("a step is a number", got=text[:40])
    return int(text)


def _steps(text: str) -> Sequence[int | None]:
    if not text:
        return [None]
    first, _, last = text.partition("-")
    return range(row_step(first), min(row_step(last or first), row_step(first) + 10_000) + 1)


def group_of(row: RolloutRecord) -> str:
    """What the uids of a group have in common: all but the number of the rollout, and its stage."""
    group = row.uid.rpartition("-")[0]
    return group if row.stage == ANSWER else f"{group} ({row.stage})"


def in_short(rows: Sequence[RolloutRecord]) -> list[dict[str, Any]]:
    """The lines of a table: outcome, length, and how far the credit of tokens is from that of GRPO.

    `grpo` is the advantage that GRPO gives all tokens: the reward minus the mean of the group. `against` is the largest
    |log-ratio| of a token that GRPO pushes the other way, or not at all. `same_as` is an earlier row with this text.
    """
    rewards: dict[str, list[float]] = {}
    for row in rows:
        if row.reward is not None:
            rewards.setdefault(group_of(row), []).append(row.reward)
    first, lines = dict[tuple[str, str], str](), []
    for row in rows:
        group, u = group_of(row), row.log_ratio
        grpo = row.reward - fmean(rewards[group]) if row.reward is not None else None
        text = "\n".join([*(turn.completion for turn in row.turns[:-1]), row.completion])
        same = first.setdefault((row.task, text), row.uid)
        lines.append({
            "step": row.step, "uid": row.uid, "group": group, "task": row.task, "stage": row.stage, "grpo": grpo,
            "reward": row.reward, "right": row.right, "drop": row.drop, "kind": row.context_kind, "stop": row.stop,
            "tokens": len(row.token_ids), "turns": len(row.turns), "fault": bool(row.fault), "data_set": row.data_set,
            "advantage": row.advantage, "distil": row.distil, "begins": row.completion[:BEGINNING],
            "same_as": "" if same == row.uid else same, "largest": max(map(abs, u), default=None), "sum": sum(u),
            "against": max((abs(x) for x in u if x * (grpo or 0) <= 0), default=None) if u else None,
        })  # fmt: skip
    return lines
