"""Control contexts: of the same form as a context, with other content."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from selfdistill.envs.scoring import TestRecord, TestStatus, feedback_text
from selfdistill.envs.verbs.env import fresh_verbs
from selfdistill.prompts.context import FIELDS
from selfdistill.types import Context, Task

SEED = 19
SHUFFLED = "shuffled-"  # prefix of the kind of a context from another task

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
COUNT = len(PROSE)  # with the real one 20: a model that ignores the content ranks the real one first 1 time in 20


def control_contexts(context: Context, *, plain_words: bool) -> list[Context]:
    """`COUNT` contexts of the same kind about other things.

    Programs and test reports are replaced by others like them, other texts by everyday sentences, or, with
    `plain_words` False, by texts about coined verbs, all that the sapling understands.
    """
    tasks = _verbs()
    filled = [name for name in FIELDS if getattr(context, name)]
    return [
        replace(context, **{name: _other(name, getattr(context, name), place, tasks, plain_words) for name in filled})
        for place in range(COUNT)
    ]


def contexts_of_others(context: Context, known: Sequence[tuple[str, Context]], task: str) -> list[Context]:
    """At most `COUNT` contexts with the same sections from other tasks of a run, by pairs of task and context.

    One of each task: several of one task are alike, and would count one comparison several times. Contexts that came
    from another task are left out: they may be this task's own.
    """
    texts, fitting = _texts(context), dict[tuple[str, ...], tuple[str, Context]]()
    for name, other in known:
        same_sections = list(map(bool, _texts(other))) == list(map(bool, texts))
        if name != task and same_sections and _texts(other) != texts and not other.kind.startswith(SHUFFLED):
            fitting[_texts(other)] = name, other
    others = list(fitting.values())
    random.Random(SEED).shuffle(others)
    return list(dict(others).values())[:COUNT]


def _texts(context: Context) -> tuple[str, ...]:
    return tuple(getattr(context, name) for name in FIELDS)


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
    """Two failing cases of a task, with the results of another task."""
    records = [
        TestRecord(TestStatus.WRONG, repr(test["input"][0]), repr(wrong["output"]), repr(test["output"]))
        for test, wrong in zip(task.spec["public"], other.spec["public"], strict=False)
    ]
    return feedback_text(records)
