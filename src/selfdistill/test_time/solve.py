"""Solving tasks at test time: attempt, judge, learn, and again, until an attempt is right or the budget is used.

One loop for every strategy. Each task has a run directory of its own, and weights of its own that begin where the
model began:

    <out>/config.json    settings of all                    <out>/000-<task>/    a run directory, and result.json

A search can be killed at any moment and goes on, on a CPU to the same bits: what was attempted is in the records, what
was learned in the checkpoints, and everything random follows from the seed, the round and the place of an attempt.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from selfdistill.data.tasks import check_conversations, fitting_tasks, training_tasks, usable_tasks
from selfdistill.errors import ConfigError, DataError, nearest
from selfdistill.plugins import short_name
from selfdistill.prompts.stages import Attempts
from selfdistill.runs import allowed_changes, fresh_path
from selfdistill.runs.events import Callback, Interrupted, named, no_callback
from selfdistill.runs.solving import SolveResult, read_result
from selfdistill.runs.store import CONFIG, probe, refuse_in_use, write_atomic
from selfdistill.test_time.config import SolveConfig, is_file, solve_settings
from selfdistill.test_time.search import MAY_CHANGE, Search, rounds_made, until_done
from selfdistill.test_time.strategies import MultiTurn
from selfdistill.test_time.strategies.base import learner_of
from selfdistill.test_time.strategies.window import NOTHING_SAID
from selfdistill.training.session import Session, open_session, restarted
from selfdistill.training.stopping import StopSign
from selfdistill.types import Message, Task

TOGETHER = 32  # tasks at a time; `sampling.batch_tokens` bounds what one batch of the sampler holds


def solve(
    config: SolveConfig, callback: Callback = no_callback, *, out: Path | None = None, resume: bool = False
) -> list[SolveResult]:
    """Searches for a solution of each task and returns the results, in order. A strategy that learns takes the tasks
    one after the other; one that does not makes its attempts at several tasks together.

    Events of a task carry its id as their `run`. With `resume`, tasks that are done in `out` are not repeated. Raises
    what `selfdistill.errors` lists; `Interrupted` after Ctrl-C, when the round is finished and saved.
    """
    out = out or default_path(config)
    settings = solve_settings(config)
    if resume:
        allowed_changes(out, settings, MAY_CHANGE)
    elif out.exists():
        probe(out, 0)
        refuse_in_use(out)
    asking = _open(config, callback)
    tasks = _chosen(config, asking, callback)
    if not resume:
        probe(out, 0)
        write_atomic(out / CONFIG, json.dumps({"settings": settings}, indent=2) + "\n")
    start = _start(asking) if len(tasks) > 1 else {}
    numbered = [(task_path(out, number, task), task) for number, task in enumerate(tasks)]
    size = 1 if config.strategy.learns or config.limits.unit == "seconds" else TOGETHER
    stop = StopSign(callback)
    with stop.watched():
        for first in range(0, len(tasks), size):
            left = [pair for pair in numbered[first : first + size] if read_result(pair[0]) is None]
            with ExitStack() as stack:
                searches, rounds = [], rounds_made([path for path, _ in left])
                for path, task in left:
                    own = restarted(asking, start) if start else asking
                    opened = Search.opened(config, own, task, path, named(callback, task.id), stop, rounds=rounds)
                    searches.append(stack.enter_context(opened))
                until_done(searches)
            if stop.asked and first + size < len(tasks):
                raise Interrupted(out, None, "solve")
    return [result for path, _ in numbered if (result := read_result(path)) is not None]


def default_path(config: SolveConfig) -> Path:
    """A directory under `runs` that is not used yet."""
    run = config.run
    names = f"{short_name(config.strategy.name)}-{short_name(run.env.name)}"
    return fresh_path(Path("runs"), f"solve-{names}-seed{run.seed}")


def task_path(out: Path, number: int, task: Task) -> Path:
    """The run directory of the `number`-th task."""
    return out / f"{number:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', task.id)[:80]}"


def _open(config: SolveConfig, callback: Callback) -> Session:
    """A strategy that learns needs a session; one that does not keeps no teacher and no optimiser."""
    if not config.strategy.learns:
        return _checked(config, open_session(config.run, callback))
    session = open_session(config.run, callback, learns=True)
    assert session.learner is not None
    if session.learner.method.stages != (Attempts(),):
        raise ConfigError(
            "this method asks for more than attempts",
            got=f"method = {config.run.method.name}",
            why="a strategy decides what every attempt reads",
            do="choose a method that learns from attempts alone, such as sdpo",
        )
    session.learner = session.learner.with_method(learner_of(config.strategy, session.learner.method), config.run)
    return _checked(config, session)


def _checked(config: SolveConfig, asking: Session) -> Session:
    """The same. Raises `ModelError` where the chat template refuses conversations that the strategy goes on with."""
    if isinstance(config.strategy, MultiTurn) and config.strategy.attempts:
        turns = (Message("assistant", "An answer."), Message("user", NOTHING_SAID))
        check_conversations(asking.renderer, asking.tasks, lambda task: [(*task.messages, *turns)])
    return asking


def _start(asking: Session) -> dict[str, Tensor]:
    """The weights that every task begins with."""
    if asking.learner is None:
        return {}
    return {name: value.detach().clone() for name, value in asking.policy.trainable().items()}


def _chosen(config: SolveConfig, asking: Session, callback: Callback) -> list[Task]:
    """The tasks that were asked for; all of the run where none was. Raises `DataError` for an unknown id."""
    if not config.tasks:
        return usable_tasks(asking.tasks, asking.env, callback)
    every = {task.id: task for task in training_tasks(asking.env, config.run.data)}
    chosen: list[Task] = []
    for name in config.tasks:
        if not is_file(name) and name not in every:
            do = f"{nearest(name, every)}; a file of tasks ends with .jsonl"
            raise DataError("there is no such task", got=name, do=do)
        found = training_tasks(asking.env, name) if is_file(name) else [every[name]]
        chosen += [task for task in found if task not in chosen]
    ids = [task.id for task in chosen]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise DataError("two tasks have the same id", got=", ".join(twice), do="give each its own, in all files")
    chosen = usable_tasks(chosen, asking.env, callback)
    return fitting_tasks(chosen, asking.renderer, config.run.context.max_prompt_tokens, callback)
