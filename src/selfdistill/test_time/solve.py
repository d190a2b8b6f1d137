"""Test-time search: attempts are sampled, scored and learned from in rounds, until a task is solved or its budget used.

One loop for every strategy. Each task has a run directory and weights of its own, which begin as those of the model:

    <out>/config.json    settings of all                    <out>/000-<task>/    a run directory, and result.json

A search that was killed at any moment resumes, on a CPU bit-identically: attempts are in the records, weights in the
checkpoints, and all random numbers follow from the seed, the round and the place of an attempt.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from selfdistill.data.tasks import check_conversations, fitting_tasks, training_tasks, usable_tasks
from selfdistill.envs.turns import NO_FEEDBACK, single_turn
from selfdistill.errors import ConfigError, DataError, nearest
from selfdistill.plugins import short_name
from selfdistill.prompts.stages import Attempts
from selfdistill.runs import fresh_path
from selfdistill.runs.events import Callback, Interrupted, named, no_callback
from selfdistill.runs.solving import SolveResult, read_result
from selfdistill.runs.store import CONFIG, probe, refuse_in_use, write_atomic
from selfdistill.test_time.config import SolveConfig, is_file, solve_settings
from selfdistill.test_time.search import Search, found_changes, rounds_made, until_done
from selfdistill.test_time.strategies.base import learner_of
from selfdistill.test_time.strategies.multi_turn import MultiTurn
from selfdistill.training.ahead import refuse_servers
from selfdistill.training.session import Session, open_session, restarted
from selfdistill.training.stopping import StopSign
from selfdistill.types import Message, Task

TOGETHER = 32  # tasks at a time; `sampling.batch_tokens` bounds a batch of the sampler


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
        found_changes(config, out)
    elif out.exists():
        probe(out, 0)
        refuse_in_use(out)
    session = _open(config, callback)
    tasks = _chosen(config, session, callback)
    if not resume:
        probe(out, 0)
        write_atomic(out / CONFIG, json.dumps({"settings": settings}, indent=2) + "\n")
    start = {}
    if session.learner is not None and len(tasks) > 1:
        start = {name: value.detach().clone() for name, value in session.policy.trainable().items()}
    numbered = [(task_path(out, number, task), task) for number, task in enumerate(tasks)]
    size = 1 if config.strategy.learns or config.limits.unit == "seconds" else TOGETHER
    stop = StopSign(callback)
    with stop.watched():
        for first in range(0, len(tasks), size):
            left = [pair for pair in numbered[first : first + size] if read_result(pair[0]) is None]
            searches, rounds = list[Search](), rounds_made([path for path, _ in left])
            with ExitStack() as stack:
                for path, task in left:
                    own = restarted(session, start) if start else session
                    search = Search.opened(config, own, task, path, named(callback, task.id), stop, rounds=rounds)
                    stack.callback(search.run.close)
                    searches.append(search)
                until_done(searches)
            if stop.requested and first + size < len(tasks):
                raise Interrupted(out, None, "solve")
    return [result for path, _ in numbered if (result := read_result(path)) is not None]


def default_path(config: SolveConfig) -> Path:
    """A directory under `runs` that is not used yet."""
    run = config.run
    names = f"{short_name(config.name)}-{short_name(run.env.name)}"
    return fresh_path(Path("runs"), f"solve-{names}-seed{run.seed}")


def task_path(out: Path, number: int, task: Task) -> Path:
    """The run directory of the `number`-th task."""
    return out / f"{number:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', task.id)[:80]}"


def _open(config: SolveConfig, callback: Callback) -> Session:
    """The session of a search, with a learner where the strategy learns. Raises `ConfigError` for a method with stages
    of its own, `ModelError` where the chat template refuses the strategy's conversations."""
    refuse_servers(config.run, "solve")
    session = open_session(config.run, callback, learns=bool(config.strategy.learns), answers=config.strategy.batch)
    session.env = single_turn(session.env, "solve")
    if session.learner is not None:
        if session.learner.method.stages != (Attempts(),):
            raise ConfigError(
                "this method samples more than attempts",
                got=f"method = {config.run.method.name}",
                why="a strategy decides what every attempt reads",
                do="choose a method that learns from attempts alone, such as sdpo",
            )
        session.learner = session.learner.with_method(learner_of(config.strategy, session.learner.method), config.run)
    if isinstance(config.strategy, MultiTurn) and config.strategy.attempts:
        turns = (Message("assistant", "An answer."), Message("user", NO_FEEDBACK))
        check_conversations(session.renderer, session.tasks, lambda task: [(*task.messages, *turns)])
    return session


def _chosen(config: SolveConfig, session: Session, callback: Callback) -> list[Task]:
    """The named tasks, or all tasks of the run. Raises `DataError` for an unknown id."""
    if not config.tasks:
        return usable_tasks(session.tasks, session.bad_rows(session.tasks), callback)
    every = {task.id: task for task in config.run.tasks_of(session.env)}
    chosen: list[Task] = []
    for name in config.tasks:
        if not is_file(name) and name not in every:
            do = f"{nearest(name, every)}; a file of tasks ends with .jsonl"
            raise DataError("there is no such task", got=name, do=do)
        found = training_tasks(session.env, name, config.run.row_options()) if is_file(name) else [every[name]]
        chosen += [task for task in found if task not in chosen]
    twice = [name for name, count in Counter(task.id for task in chosen).items() if count > 1]
    if twice:
        do = "give each task an id of its own, across all files"
        raise DataError("two tasks have the same id", got=", ".join(twice), do=do)
    chosen = usable_tasks(chosen, session.bad_rows(chosen), callback)
    return [*fitting_tasks(chosen, session.renderer, config.run.context.max_prompt_tokens, callback)]
