"""Rollouts as the lines of a table; and of all of them what a table of any length is sorted and filtered by."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from math import isnan, nan
from statistics import fmean
from sys import intern
from threading import Lock
from typing import Any

from selfdistill.runs.records import RolloutRecord
from selfdistill.types import ANSWER
from selfdistill.view.site.index import RowIndex

BEGINNING = 160  # characters of an answer in a table
NUMBERS, LABELS = ("reward", "grpo", "tokens", "largest", "sum", "against"), ("task", "group", "kind", "drop")
TRAINED = "trained"  # in place of the reason of a drop
Places = Mapping[int, Sequence[int]]


class Columns:
    """Numbers and labels of the rollouts of one file by step, about 120 bytes a row: each step is read once."""

    def __init__(self) -> None:
        self._kept, self._lock = dict[int, tuple[tuple[int, ...], dict[str, Sequence[Any]]]](), Lock()

    def of(self, index: RowIndex, step: int, places: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """The columns of a step with rows at these places: `place`, `NUMBERS` (NaN: none), and `LABELS`."""
        mark = (index.cleared, len(places), places[-1])
        with self._lock:
            seen, columns = self._kept.get(step, ((), {}))
            if seen != mark:
                found = list(index.read(places, brief=True))
                lines = in_short([row for _, row in found])
                columns = {"place": array("Q", (place for place, _ in found))}
                for key in NUMBERS:
                    columns[key] = array("d", (nan if line[key] is None else line[key] for line in lines))
                for key in LABELS:
                    columns[key] = [intern(line[key] or (TRAINED if key == "drop" else "")) for line in lines]
                self._kept[step] = mark, columns
        return columns

    def chosen(self, index: RowIndex, steps: Places, order: Mapping[str, str]) -> list[int]:
        """The places of the rows that pass the filters of `order`, by its `sort`; those without a value come last."""
        key, down = order.get("sort", "").lstrip("-"), order.get("sort", "").startswith("-")
        least, most = (float(text) if (text := order.get(n, "")).isdecimal() else None for n in ("min", "max"))
        have, lack = list[tuple[Any, int]](), list[int]()
        for step, places in steps.items():
            columns = self.of(index, step, places)
            for n, place in enumerate(columns["place"]):
                reward, tokens = columns["reward"][n], columns["tokens"][n]
                outcome = "unscored" if isnan(reward) else "solved" if reward >= 0.5 else "unsolved"
                if (
                    order.get("outcome") not in ("", None, outcome)
                    or any(order.get(label) not in ("", None, columns[label][n]) for label in LABELS)
                    or (least is not None and tokens < least)
                    or (most is not None and tokens > most)
                ):
                    continue
                value = columns[key][n] if key in columns else ""
                if value == "" or value != value:
                    lack.append(place)
                else:
                    have.append((value, place))
        have.sort(key=lambda pair: pair[0], reverse=down)
        return [place for _, place in have] + lack

    def labels(self, index: RowIndex, steps: Places) -> dict[str, list[str]]:
        """The values that filters can take."""
        every = [self.of(index, step, places) for step, places in steps.items()]
        return {label: sorted({value for columns in every for value in columns[label]}) for label in ("kind", "drop")}

    def lines(self, index: RowIndex, rows: Sequence[tuple[int, RolloutRecord]], steps: Places) -> list[dict[str, Any]]:
        """The lines of some rows, with the GRPO advantage of their whole groups."""
        grpo = dict[int, float]()
        for step in {row.step for _, row in rows}:
            columns = self.of(index, step, steps[step])
            grpo |= zip(columns["place"], columns["grpo"], strict=True)
        return in_short([row for _, row in rows], [grpo[place] for place, _ in rows])


def group_of(row: RolloutRecord) -> str:
    """What the uids of a group have in common: all but the number of the rollout, and its stage."""
    group = row.uid.rpartition("-")[0]
    return group if row.stage == ANSWER else f"{group} ({row.stage})"


def in_short(rows: Sequence[RolloutRecord], advantages: Sequence[float] = ()) -> list[dict[str, Any]]:
    """The lines of a table: outcome, length, and how far the credit of tokens is from that of GRPO.

    `grpo` is the advantage that GRPO gives all tokens: the reward minus the mean of the group, of `rows` where no
    `advantages` are given. `against` is the largest |log-ratio| of a token that GRPO pushes the other way, or not at
    all, `at` its place. `same_as` is an earlier row with this text.
    """
    rewards: dict[str, list[float]] = {}
    for row in rows:
        if row.reward is not None:
            rewards.setdefault(group_of(row), []).append(row.reward)
    means = {group: fmean(own) for group, own in rewards.items()}
    first, lines = dict[tuple[str, str], str](), []
    for number, row in enumerate(rows):
        group, u = group_of(row), row.log_ratio
        grpo = None if row.reward is None else advantages[number] if advantages else row.reward - means[group]
        text = "\n".join([*(turn.completion for turn in row.turns[:-1]), row.completion])
        same = first.setdefault((row.task, text), row.uid)
        other = max((x for x in u if x * grpo <= 0) if grpo else u, key=abs, default=None)
        lines.append({
            "step": row.step, "uid": row.uid, "group": group, "task": row.task, "stage": row.stage, "grpo": grpo,
            "reward": row.reward, "right": row.right, "drop": row.drop, "kind": row.context_kind, "stop": row.stop,
            "tokens": len(row.token_ids), "turns": len(row.turns), "fault": bool(row.fault), "data_set": row.data_set,
            "advantage": row.advantage, "distil": row.distil, "begins": row.completion[:BEGINNING],
            "same_as": "" if same == row.uid else same, "largest": max(map(abs, u), default=None), "sum": sum(u),
            "against": None if other is None else abs(other), "at": None if other is None else u.index(other),
        })  # fmt: skip
    return lines
