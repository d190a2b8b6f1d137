"""What the pages ask for, as values of JSON: one method for each kind of question.

A page of a file holds the answers to all of its questions, so nothing here knows of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from statistics import fmean
from typing import Any
from urllib.parse import parse_qsl

from pydantic_core import to_json

from selfdistill.errors import RunError, nearest
from selfdistill.runs.records import RolloutRecord, numbers_of
from selfdistill.view.site.journal import conversation_of, journal_of
from selfdistill.view.site.library import Entry, Library, name_of, result_of, summary_of
from selfdistill.view.site.prompts import decoder, prompts_of
from selfdistill.view.site.table import group_of, in_short

MOST_ROWS = 4096  # on one page of a table
MOST_TASKS, TOP = 50, 5  # of a comparison: tasks, and rollouts of each run
Query = Mapping[str, str]


class Answers:
    """Answers questions about the entries of a library. Raises `RunError` for what is not there."""

    PARAMETERS: Mapping[str, tuple[str, ...]] = {
        "runs": (), "run": ("id",), "rows": ("id", "steps", "q", "order"), "rollout": ("id", "step", "uid"),
        "prompts": ("id", "step", "uid"), "differences": ("ids",), "search": ("id",), "journal": ("id", "q", "page"),
        "conversation": ("id", "name", "page"),
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

    def rows(self, name: str, steps: str, q: str, order: str) -> Any:
        """A page of the rollouts of a step, of steps such as 3-5, or of all, in short; with a text those that hold it.
        `order` is a query string with `sort`, filters and `page`."""
        entry = self.library.get(name, "run")
        index, query = entry.rows, dict(parse_qsl(order))
        first, by_step = MOST_ROWS * _whole(query.pop("page", "0"), "a page"), index.by_step()
        if steps:
            by_step = {step: by_step[step] for step in _steps(steps) if step in by_step}
        every = list(chain(*by_step.values()))
        places = entry.columns.chosen(index, by_step, query) if query else every
        if q:
            found = list(islice(_holding(index.read(places, q), q.casefold()), first, first + MOST_ROWS + 1))
        else:
            found = list(index.read(places[first : first + MOST_ROWS]))
        return {
            "rows": entry.columns.lines(index, found[:MOST_ROWS], by_step), "first": first, "of": len(every),
            "more": len(found) > MOST_ROWS if q else first + MOST_ROWS < len(places), "counts": index.counts,
            **({"found": len(places), "labels": entry.columns.labels(index, by_step)} if query else {}),
        }  # fmt: skip

    def rollout(self, name: str, step: str, uid: str) -> Any:
        """One rollout with all that was recorded, and its group in short."""
        entry = self.library.get(name, "run")
        heads = entry.rows.heads(row_step(step))
        row, uids = self._row(entry, step, uid, heads), [name for _, name in heads]
        place, alike = uids.index(row.uid), uid.rpartition("-")[0]
        mine = [one for _, one in entry.rows.read([at for at, n in heads if n.rpartition("-")[0] == alike])]
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

    def differences(self, names: str) -> Any:
        """Of several runs the tasks whose mean rewards differ most, and of each run the rollouts in which the credit of
        tokens differs most from that of GRPO."""
        runs, tasks, ids = list[dict[str, Any]](), dict[str, dict[str, list[float]]](), names.split("|")
        for name in ids:
            entry = self.library.get(name, "run")
            index, by_step = entry.rows, entry.rows.by_step()
            for step, places in by_step.items():
                columns = entry.columns.of(index, step, places)
                for task, reward in zip(columns["task"], columns["reward"], strict=True):
                    if reward == reward:  # a number
                        tasks.setdefault(task, {}).setdefault(name, []).append(reward)
            top = list(index.read(entry.columns.chosen(index, by_step, {"sort": "-against"})[:TOP]))
            lines = [
                line | {"u": row.log_ratio[line["at"]], "token": (row.token_texts or {line["at"]: None})[line["at"]]}
                for line, (_, row) in zip(entry.columns.lines(index, top, by_step), top, strict=True)
                if line["against"]
            ]
            runs.append({"id": name, "top": lines, "method": name_of(entry.run.config["settings"].get("method"))})
        rows = list[tuple[float, dict[str, Any]]]()
        for task, own in tasks.items():
            means = [{"mean": fmean(own[name]), "n": len(own[name])} if name in own else None for name in ids]
            known = [one["mean"] for one in means if one]
            if len(known) > 1:
                rows.append((max(known) - min(known), {"task": task, "means": means}))
        rows.sort(key=lambda pair: -pair[0])
        found = [row | {"spread": spread} for spread, row in rows[:MOST_TASKS]]
        return {"runs": runs, "tasks": found, "of": len(rows)}

    def search(self, name: str) -> Any:
        """The tasks of a search, or of the searches of a comparison, each with its result."""
        entry = self.library.get(name, "search", "comparison")
        tasks = []
        for one in self.library.inside(entry):
            if one.kind == "run":
                folder = one.path.parent.name if entry.kind == "comparison" else ""
                tasks.append({"id": one.id, "arm": re.sub(r"-seed\d+-\d+$", "", folder), "result": result_of(one)})
        return {"id": name, "kind": entry.kind, "tasks": tasks}

    def journal(self, name: str, q: str, page: str) -> Any:
        """A page of the conversations of a journal, with a text those that hold it, and the versions."""
        return journal_of(self.library.get(name, "journal").path, q, _whole(page or "0", "a page"))

    def conversation(self, name: str, conversation: str, page: str) -> Any:
        """A page of the exchanges of one conversation."""
        return conversation_of(self.library.get(name, "journal").path, conversation, _whole(page or "0", "a page"))

    def _row(self, entry: Entry, step: str, uid: str, heads: list[tuple[int, str]]) -> RolloutRecord:
        found = next((row for place, name in heads if name == uid for _, row in entry.rows.read([place])), None)
        if found is None:
            raise RunError(f"there is no rollout {uid!r} in step {step}", do="go back to the step")
        return found


def row_step(text: str) -> int:
    """A step of a link. Raises `RunError`."""
    return _whole(text, "a step")


def _whole(text: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise RunError(f"{what} is a number", got=text[:40])
    return int(text)


def _steps(text: str) -> range:
    first, _, last = text.partition("-")
    return range(row_step(first), min(row_step(last or first), row_step(first) + 10_000) + 1)


def _holding(rows: Iterator[tuple[int, RolloutRecord]], text: str) -> Iterator[tuple[int, RolloutRecord]]:
    """The rows with a text in question, answers, feedback or context; upper and lower case are the same."""
    for place, row in rows:
        texts = (row.prompt, row.completion, row.feedback, *row.context.values(), *(t.completion for t in row.turns))
        if text in "\n".join(texts).casefold():
            yield place, row
