"""Contexts that say something else: what is left of a model's blame under them is not due to what it was told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from selfdistill.envs.feedback import TestRecord, TestStatus, feedback_text
from selfdistill.envs.verbs.env import fresh_verbs
from selfdistill.prompts.context import FIELDS
from selfdistill.types import Context, Task

COUNT = 19  # with the real one 20, so that a model that does not read puts the real one first 1 time in 20
SEED = 19
SHUFFLED = "shuffled-"  # begins the kind of a context that a task was given from another one

PROSE = (
    "Don't forget the salt.",
    "The capital of Australia is Canberra.",
    "The second verse should rhyme with the first.",
    "Don't mention the price of the ticket.",
    "The bridge was built in 1932.",
    "Whales are mammals.",
    "The letter should end with a greeting.",
    "Don't use the red paint for the door.",
    "The train leaves at noon on Sundays.",
    "Add the butter before the flour.",
    "The heroine's name is Elizabeth.",
    "Don't water the cactus every day.",
    "The museum is closed on Mondays.",
    "Mount Everest is higher than K2.",
    "The violin plays the second theme.",
    "Don't leave the window open at night.",
    "The invoice lacks a date.",
    "Copper conducts heat better than iron.",
    "The map shows the river too far to the east.",
)
assert len(PROSE) == COUNT


def control_contexts(context: Context, *, plain_words: bool) -> list[Context]:
    """As many contexts of the same kind as the test of sight takes, about other things.

    Programs and reports of tests are replaced by others like them, other texts by sentences of everyday life, or, with
    `plain_words` False, by what is said about coined verbs, which is all that the embedded model understands.
    """
    tasks = _verbs()
    filled = [name for name in FIELDS if getattr(context, name)]
    return [
        replace(context, **{name: _other(name, getattr(context, name), place, tasks, plain_words) for name in filled})
        for place in range(COUNT)
    ]


def contexts_of_others(context: Context, known: Sequence[tuple[str, Context]], task: str) -> list[Context]:
    """Contexts with the same sections that other tasks of a run gave; at most as many as the test takes.

    One of each task: several of one task are alike, and the test would count one comparison several times. One that
    was itself given from another task may be this task's own, and is left out.
    """
    texts = tuple(getattr(context, name) for name in FIELDS)
    sections = {name for name in FIELDS if getattr(context, name)}
    fitting = {
        tuple(getattr(other, name) for name in FIELDS): (name_of, other)
        for name_of, other in known
        if name_of != task
        and not other.kind.startswith(SHUFFLED)
        and {name for name in FIELDS if getattr(other, name)} == sections
    }
    fitting.pop(texts, None)
    others = list(fitting.values())
    random.Random(SEED).shuffle(others)
    return list(dict(others).values())[:COUNT]


@cache
def _verbs() -> tuple[Task, ...]:
    return tuple(fresh_verbs(COUNT, (1, 2), SEED))


def _other(name: str, text: str, place: int, tasks: Sequence[Task], plain_words: bool) -> str:
    task = tasks[place]
    if "```" in text or (not plain_words and name in ("solution", "demonstration")):
        return task.demonstration
    if text.startswith(("Wrong answer.", "Runtime error.")) or (not plain_words and name == "feedback"):
        return _report(task, tasks[place - 1])
    if plain_words:
        return PROSE[place]
    return task.user_reply if name == "reply" else task.document


def _report(task: Task, other: Task) -> str:
    """Two failing cases of a task, with the results that another one would have."""
    records = [
        TestRecord(TestStatus.WRONG, repr(test["input"][0]), repr(wrong["output"]), repr(test["output"]))
        for test, wrong in zip(task.spec["public"], other.spec["public"], strict=False)
    ]
    return feedback_text(records)
