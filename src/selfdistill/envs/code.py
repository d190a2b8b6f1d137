"""The code environment: an answer is a program, tests decide the reward, errors and failing cases are the feedback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Self

from selfdistill.envs.base import Fault, Scored, guarded, required
from selfdistill.envs.sandbox.lockdown import isolation_warning
from selfdistill.envs.sandbox.pool import Sandbox, shared_sandbox
from selfdistill.envs.sandbox.program import Result
from selfdistill.envs.scoring import (
    CodeOptions,
    TestRecord,
    TestSplit,
    cases_of,
    outcome_of,
    program_for,
    program_text,
    record_of,
    why_unusable,
)
from selfdistill.errors import ProgramLostError
from selfdistill.types import Completion, DropReason, Outcome, Task


class ProgramEnvironment:
    """Scores programs in a sandbox: the process's shared one, started with the first program, unless one is given.

    Raises `SandboxError` when this machine cannot isolate programs and `allow_weaker` is off.
    """

    name = "programs"

    def __init__(self, scoring: CodeOptions | None = None, *, sandbox: Sandbox | None = None) -> None:
        self.scoring = scoring or CodeOptions()
        self.sandbox = sandbox or shared_sandbox(allow_weaker=self.scoring.allow_weaker)

    @property
    def isolation(self) -> str:
        """How programs are isolated, for a run's records: the level, and what it leaves open."""
        level, warning = self.sandbox.level, isolation_warning(self.sandbox.level)
        return f"{level} ({warning})" if warning else str(level)

    def with_split(self, split: TestSplit) -> Self:
        """The same environment deciding by other tests."""
        other = copy(self)
        other.scoring = replace(self.scoring, split=split)
        return other

    def for_evaluation(self) -> Self:
        """The same environment deciding by the private tests, which training never shows."""
        return self.with_split("private")

    def unusable(self, task: Task) -> str:
        """Why no program can pass the tests of a task."""
        return why_unusable(task)

    def score(self, task: Task, completion: Completion) -> Outcome:
        """One answer. Raises `EnvError` where it cannot be scored, and as `score_batch` does."""
        return required(self.score_batch([(task, completion)])[0])

    def score_batch(self, pairs: Sequence[tuple[Task, Completion]]) -> list[Scored]:
        """One outcome a pair, in order, scored in parallel; a `Fault` for an answer that cannot be scored.

        Equal programs for one task run once: the sandbox repeats itself, and a policy that has learned does too. Raises
        `DataError` for a task without tests, `SandboxError`.
        """
        codes = [guarded(partial(program_text, *pair)) for pair in pairs]
        programs = {
            (task.id, code): task for (task, _), code in zip(pairs, codes, strict=True) if isinstance(code, str)
        }
        tasks = list(programs.values())

        def records(job: int, results: Iterator[Result]) -> list[TestRecord] | Fault:
            kind, tests = tasks[job].spec["kind"], cases_of(tasks[job], self.scoring.split)
            try:
                return guarded(lambda: [record_of(kind, *pair) for pair in zip(tests, results, strict=False)])
            except ProgramLostError as error:
                return Fault(DropReason.PROGRAM_LOST, str(error))

        jobs = [program_for(task, code, self.scoring) for (_, code), task in programs.items()]
        found = dict(zip(programs, self.sandbox.run_each(jobs, records), strict=True))

        scored: list[Scored] = []
        for (task, completion), code in zip(pairs, codes, strict=True):
            ran = found[task.id, code] if isinstance(code, str) else code
            scored.append(ran if isinstance(ran, Fault) else outcome_of(task, completion, ran, self.scoring))
        return scored


class CodeEnvironment(ProgramEnvironment):
    """Programming tasks of your own, from a file: programs are run on the tests of their task."""

    name = "code"
    row_kind = "programs"
